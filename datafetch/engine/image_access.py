"""ImageAccess: where the bytes of a job's images come from, for any process that fetches them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from datafetch.engine.archives import NO_ARCHIVES, Archives, open_members
from datafetch.engine.earlier_images import open_earlier_images
from datafetch.engine.image_source import Adoption, FileFolder, ImageSource
from datafetch.engine.job import Job
from datafetch.fetch import Fetcher
from datafetch.output.merge import Output
from datafetch.process.threads import run_in_thread
from datafetch.store.job_file import Identity
from datafetch.transcode import Encoding, ImageSpec


@dataclass(frozen=True, slots=True)
class ImageAccess:
    """Where the bytes of images come from, and what becomes of them; can be pickled.

    Attributes:
        job: What to do.
        output: How records become rows, and where they go.
        spec: What an image becomes.
        archives: The archives that images are members of.
        adoption: How files are taken that are in their place already; None if they are not.
        identity: The identity of a job that takes images of earlier outputs; None for one that takes none.
    """

    job: Job
    output: Output
    spec: ImageSpec
    archives: Archives = NO_ARCHIVES
    adoption: Adoption | None = None
    identity: Identity | None = None

    @classmethod
    def find(
        cls, job: Job, output: Output, spec: ImageSpec, archives: Archives, identity: Identity | None
    ) -> ImageAccess:
        """Look at what is in the output, before anything is added to it."""
        adoption = None
        if output.dataset.adopts_files and _is_in_use(output.layout.out):
            adoption = Adoption(
                output.layout.out,
                job.fresh,
                keeps_bodies=spec.encode is Encoding.RECEIVED,
                max_file_bytes=job.fetch.max_body_bytes,
            )
        return cls(job, output, spec, archives, adoption, identity)

    @asynccontextmanager
    async def open(self, fetch: Fetcher, until_s: float | None) -> AsyncIterator[ImageSource]:
        """Open what gets the bytes of images.

        Args:
            fetch: Makes all requests.
            until_s: From when on, by the event loop's clock, nothing is waited for any more; None for never.
        """
        job, archives = self.job, self.archives
        async with AsyncExitStack() as resources:
            earlier = members = folder = None
            if self.identity is not None:
                earlier = await resources.enter_async_context(
                    open_earlier_images(self.output.layout, self.identity, job)
                )
            if archives.unpacked is not None:
                folder = FileFolder(archives.unpacked, is_in_place=archives.is_in_place)
            if archives.locations:
                members = await run_in_thread(open_members, archives, fetch, job.fetch, job.memory_bytes)
                resources.push_async_callback(members.close)
            yield ImageSource(
                fetch,
                members=members,
                folder=folder,
                adoption=self.adoption,
                max_file_bytes=job.fetch.max_body_bytes,
                until_s=until_s,
                earlier=earlier,
                has_hashes=self.output.dataset.has_hashes,
            )


def _is_in_use(folder: Path) -> bool:
    return folder.is_symlink() or (folder.is_dir() and next(folder.iterdir(), None) is not None)
