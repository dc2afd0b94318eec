"""Look at an output in a bucket, as it is now, without disturbing who works on it.

Theory of operation: what the commit log says is copied to a folder of this machine's cache, where it stays, so the next
look copies only what is new: objects of the log never change. Of rows there are hollow files, whose content is
downloaded while it is read (``at_hand``). Who holds the lease, and the last heartbeat, become the files that a local
run would have written. So what looks at a local output looks at this one, too.

Rules: nothing in the bucket is locked or written. What the trainer would find there is what is shown: the trainer's
files as the bucket lists them, be they others than the log says. Anybody may have put these, so none becomes a file
whose name leads out of the folder, takes the place of another file, or is one of too many; such are counted.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec
import orjson

from datafetch.errors import ConfigurationError
from datafetch.model.location import is_bucket
from datafetch.model.untrusted import is_plain_path, short_repr
from datafetch.model.wording import counted
from datafetch.store.buckets.bucket import Bucket
from datafetch.store.buckets.commit_log import CommitLog, LoggedFile, keys_of
from datafetch.store.buckets.lease import read_lease
from datafetch.store.buckets.local_files import LocalFiles, MissingObjectError, holds_rows
from datafetch.store.buckets.place import Place
from datafetch.store.layout import OutputLayout

JOB, RETRY = "state/job.json", "state/retry.json"
_SMALL_BYTES = 64 << 10
_LOOKS = 3
_MAX_OTHERS = 1000  # a file each, on this machine
_SPOOL_SUFFIX = ".spool"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ObservedPlace:
    """An output that is looked at, wherever it is.

    Attributes:
        out: The folder to look at: the output's own, or one with what is in the bucket.
        location: The output as it was given.
        view: What is in the bucket; None if the output is local.
    """

    out: Path
    location: str
    view: View | None = None

    def at_hand(self, path: Path) -> AbstractContextManager[None]:
        """Have the content of a file while its rows are read."""
        return nullcontext() if self.view is None else self.view.at_hand(path)

    def renamed(self, text: str) -> str:
        """A message with the output's location in place of the folder that is looked at."""
        return text if self.view is None else text.replace(str(self.out), self.location)


@contextmanager
def observed_place(out: Path | str) -> Iterator[ObservedPlace]:
    """Open an output for looking at it, be it in a bucket or not.

    Raises:
        ConfigurationError: There is no run in this place of the bucket.
        ResourceError: The store can't be reached.
        TypeError: It is no path.
    """
    if not isinstance(out, str | Path):
        raise TypeError(f"an output is given by its path, not {short_repr(out)}; give a string or a Path")
    if isinstance(out, Path) or not is_bucket(out):
        yield ObservedPlace(Path(out), str(out))
        return
    place = Place.of(out)
    with View(place) as view:
        observed = ObservedPlace(view.layout.out, str(place), view)
        try:
            yield observed
        except ConfigurationError as error:
            raise ConfigurationError(observed.renamed(str(error))) from error


def read_recorded(location: str, name: str) -> bytes | None:
    """The content of one small file of an output in a bucket; None if there is none.

    Raises:
        ConfigurationError: There is no run in this place of the bucket.
        ResourceError: The store can't be reached.
    """
    place = Place.of(location)
    with Bucket(place.bucket) as bucket:
        for _ in range(_LOOKS):
            files = CommitLog(bucket, place.log_prefix, str(place)).read().files
            if JOB not in files:
                raise no_run(place)
            if name not in files:
                return None
            found = bucket.get(files[name].key)
            if found is not None:
                return found.body
    return None


def no_run(place: Place) -> ConfigurationError:
    """The error for a place in which there is no run."""
    return ConfigurationError(
        f"there is no run in {place}; give an output itself, which 'prepare' puts below its --root, such as "
        "s3://BUCKET/FOLDER/coyo-700m/pkl03-split"
    )


class View:
    """What is in a bucket of an output, as a context.

    Args:
        place: The output.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._opened = ExitStack()
        self._files: Mapping[str, LoggedFile] = {}
        self._local: LocalFiles | None = None

    @property
    def layout(self) -> OutputLayout:
        """The paths of the local copy."""
        assert self._local is not None, "the context was entered"
        return self._local.layout

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def at_hand(self, path: Path) -> AbstractContextManager[None]:
        """Have the content of a file of rows while it is read."""
        assert self._local is not None, "the context was entered"
        return self._local.at_hand(self._files, path, keeps=False)

    def _open(self) -> None:
        bucket = Bucket(self._place.bucket)
        self._opened.callback(bucket.close)
        log = CommitLog(bucket, self._place.log_prefix, str(self._place))
        if JOB not in log.read().files:
            raise no_run(self._place)
        self._local = local = self._open_folder(bucket)
        for look in range(_LOOKS):
            try:
                self._files = self._as_listed(bucket, log.read().files)
                local.bring(self._files, _is_needed)
                break
            except MissingObjectError:  # replaced since the log was read
                if look == _LOOKS - 1:
                    raise
        self._show_others(bucket)
        self._show_lease(bucket)

    def _as_listed(self, bucket: Bucket, files: Mapping[str, LoggedFile]) -> dict[str, LoggedFile]:
        """The files, but of the trainer's only those that are there, with the sizes that they have."""
        prefix = self._place.out_prefix
        own = keys_of(files)
        listed = {one.key: one for one in bucket.list(prefix) if one.key in own}
        seen = {}
        for name, file in files.items():
            found = listed.get(file.key)
            if not file.key.startswith(prefix):
                seen[name] = file
            elif found is not None:
                seen[name] = msgspec.structs.replace(file, size_bytes=found.size_bytes, etag=found.etag)
        return seen

    def _show_others(self, bucket: Bucket) -> None:
        """Show files of others among the trainer's, which would count them; without their content."""
        own, shown, hidden = keys_of(self._files), 0, 0
        for one in bucket.list(self._place.out_prefix):
            is_folder = one.key.endswith("/") and not one.size_bytes  # what some tools make of a folder
            if one.key in own or is_folder:
                continue
            if shown < _MAX_OTHERS and self._show_other(one.key.removeprefix(self._place.out_prefix)):
                shown += 1
            else:
                hidden += 1
        if hidden:
            _log.warning(
                "%s below %s %s not shown, since there are too many, or files can't have their names; move away what "
                "does not belong to the output",
                counted(hidden, "other object"),
                self._place,
                "is" if hidden == 1 else "are",
            )

    def _show_other(self, name: str) -> bool:
        """Make an empty file; False if there can be none of this name, or is one."""
        if not is_plain_path(name):
            return False
        path = self.layout.out / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(exist_ok=False)
        except (FileExistsError, NotADirectoryError):  # keys may have a file and a folder of one name
            return False
        return True

    def _show_lease(self, bucket: Bucket) -> None:
        layout = self.layout
        for path in (layout.lock, layout.progress, layout.cluster):
            path.unlink(missing_ok=True)
        lease = read_lease(bucket, self._place.lease)
        if lease is not None:
            layout.lock.write_bytes(orjson.dumps(lease.holder))
            shown = {layout.progress: lease.observed.progress, layout.cluster: lease.observed.cluster}
            for path, content in shown.items():
                if content is not None:
                    path.write_bytes(orjson.dumps(content))

    def _open_folder(self, bucket: Bucket) -> LocalFiles:
        """Open the folder for this output, or a temporary one while another process looks at the same output."""
        local = LocalFiles(bucket, self._place.view_folder(), self._place.name, checks_out=False)
        is_free = local.open()
        self._opened.callback(local.close)
        if is_free:
            return local
        folder = Path(tempfile.mkdtemp(prefix="datafetch-"))
        self._opened.callback(shutil.rmtree, folder, ignore_errors=True)
        local = LocalFiles(bucket, folder, self._place.name, checks_out=False)
        local.open()
        self._opened.callback(local.close)
        return local


def _is_needed(name: str, file: LoggedFile) -> bool:
    return file.size_bytes <= _SMALL_BYTES or not (holds_rows(name) or name.endswith(_SPOOL_SUFFIX))
