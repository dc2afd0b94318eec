"""The libraries whose versions may decide which bytes an image becomes, for machines that are to make the same ones."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from PIL import __version__ as pillow_version
from PIL import features

_IN_PILLOW = {
    "libjpeg": "jpg",
    "libjpeg-turbo": "libjpeg_turbo",
    "zlib": "zlib",
    "OpenJPEG": "jpg_2000",
    "libtiff": "libtiff",
    "libwebp": "webp",
    "libavif": "avif",
    "Little CMS": "littlecms2",
}
"""The libraries that Pillow decodes, converts and encodes with, and their names there."""
_DISTRIBUTIONS = ("cykooz-resizer", "simplejpeg", "kornia-rs")


def library_versions() -> dict[str, str]:
    """The version of each, by name; empty for one that is not there. Loads Pillow."""
    own = {name: str(features.version(feature) or "") for name, feature in _IN_PILLOW.items()}
    return {"Pillow": pillow_version, **own, **{name: _version_of(name) for name in _DISTRIBUTIONS}}


def _version_of(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
