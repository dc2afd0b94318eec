"""What a node must have in common with the driver, found out on the node before it is given anything to do.

Rules: two nodes write rows of one output, so whatever decides their bytes must be the same: this package to the byte,
Python's minor version, Pillow and the libraries in it, and the extras that decode or shrink. And a node must see the
same folders: a random token that the driver has written to the state folder shows that it does.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from datafetch.monitor.cluster_snapshot import read_cluster
from datafetch.store.layout import OutputLayout

TOKEN_MODE = "token"  # noqa: S105 - no password: of RAY_AUTH_MODE, that requests are authenticated
_DISTRIBUTION = "vlm-datafetch"
_CODE = "code of datafetch"
_SHORT_DIGEST = 12


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node, or the driver.

    Attributes:
        versions: The versions of all that decides bytes, by name; empty for what is not there.
        host: The machine's name.
        sees_output: Whether it sees the driver's state folder.
        is_authenticated: Whether its part of the cluster was started with token authentication.
    """

    versions: Mapping[str, str]
    host: str
    sees_output: bool
    is_authenticated: bool

    def differences_from(self, driver: NodeFacts) -> str:
        """What differs from the driver, in words; empty if nothing does."""
        names = [*driver.versions, *(name for name in self.versions if name not in driver.versions)]
        pairs = ((name, self.versions.get(name, ""), driver.versions.get(name, "")) for name in names)
        return ", ".join(
            f"{name} {own or 'none'} instead of {other or 'none'}" for name, own, other in pairs if own != other
        )


def find_facts(out: str, token: str) -> NodeFacts:
    """Find out about this process's machine.

    Args:
        out: The output folder.
        token: What the driver has written to the output's state folder.
    """
    snapshot = read_cluster(OutputLayout(Path(out)))
    return NodeFacts(
        versions=_versions(),
        host=platform.node(),
        sees_output=snapshot is not None and snapshot.token == token,
        is_authenticated=asks_for_token(),
    )


def asks_for_token() -> bool:
    """Whether the part of a cluster that has started this process asks everybody for a token."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == TOKEN_MODE


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
