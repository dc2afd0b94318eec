"""What a node must have in common with the driver, found out on the node before it is given anything to do.

Rules: two nodes write rows of one output, so whatever decides their bytes must be the same: this package to the byte,
Python's minor version, Pillow and the libraries in it, and the extras that decode or shrink. And a node must see the
same output: a random token that the driver has written to the state folder shows that it does, or, in a bucket, the
object with the job, whose key is used once.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from datafetch.engine.cluster.messages import NodeOutput, OutputInFolder
from datafetch.errors import DatafetchError
from datafetch.monitor.cluster_snapshot import read_cluster
from datafetch.store.buckets.bucket import Bucket
from datafetch.store.buckets.stored_output import read_stored_job
from datafetch.store.layout import OutputLayout

_DISTRIBUTION = "vlm-datafetch"
_CODE = "code of datafetch"
_SHORT_DIGEST = 12


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node, or the driver.

    Attributes:
        versions: The versions of all that decides bytes, by name; empty for what is not there.
        unseen: Why it does not see the driver's output; empty if it does.
    """

    versions: Mapping[str, str]
    unseen: str

    def differences_from(self, driver: NodeFacts) -> str:
        """What differs from the driver, in words; empty if nothing does."""
        names = [*driver.versions, *(name for name in self.versions if name not in driver.versions)]
        pairs = ((name, self.versions.get(name, ""), driver.versions.get(name, "")) for name in names)
        return ", ".join(
            f"{name} {own or 'none'} instead of {other or 'none'}" for name, own, other in pairs if own != other
        )


def find_facts(output: NodeOutput) -> NodeFacts:
    """Find out about this process's machine.

    Args:
        output: The output that it is to see.
    """
    return NodeFacts(versions=_versions(), unseen=_why_unseen(output))


def _why_unseen(output: NodeOutput) -> str:
    if isinstance(output, OutputInFolder):
        layout = OutputLayout(Path(output.out))
        snapshot = read_cluster(layout)
        if snapshot is not None and snapshot.token == output.token:
            return ""
        return (
            f"it does not see {layout.state_folder}; the output has to lie on a filesystem that all nodes share, under "
            "the same path, or in a bucket"
        )
    try:
        with Bucket(output.place.bucket) as bucket:
            if read_stored_job(output, bucket) is not None:
                return ""
        reason = "there is no such run"
    except DatafetchError as error:
        reason = str(error)
    return (
        f"it does not see {output.location}: {reason}; a node needs the bucket's login and endpoint in its environment"
    )


def _versions() -> dict[str, str]:
    from datafetch.transcode.libraries import library_versions  # noqa: PLC0415 - it loads Pillow

    return {
        "datafetch": version(_DISTRIBUTION),
        _CODE: _digest_of_package(),
        "Python": f"{sys.version_info.major}.{sys.version_info.minor}",
        **library_versions(),
    }


def _digest_of_package() -> str:
    """A digest of all modules, since a version under development has the number of the last release."""
    folder = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:_SHORT_DIGEST]
