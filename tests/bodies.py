"""Image files for the codec's tests, written by Pillow where it can, and else by hand; and the recipe's snippet."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

Array: TypeAlias = npt.NDArray[Any]
Chunk: TypeAlias = tuple[bytes, bytes]
Tags: TypeAlias = dict[int, int | list[int] | bytes]

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Adam7: the first column and row of each pass, and its steps.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def saved(picture: Image.Image, name: str, **options: object) -> bytes:
    """Encode a picture with Pillow."""
    file = BytesIO()
    picture.save(file, format=name, **options)
    return file.getvalue()


def recipe(body: bytes, size_limit: int | None) -> bytes:
    """Run the recipe's snippet: VILA's for a size limit of 336, and that of the Japanese sets without a limit."""
    img = Image.open(BytesIO(body)).convert("RGB")
    if size_limit is not None and min(img.size) > size_limit:
        w, h = img.size
        if h < w:
            new_h, new_w = size_limit, int(size_limit * w / h)
        else:
            new_w, new_h = size_limit, int(size_limit * h / w)
        img = img.resize((new_w, new_h))
    buffered = BytesIO()
    img.save(buffered, format="JPEG")
    return buffered.getvalue()


def png(samples: Array, depth: int, colour: int, chunks: Iterable[Chunk] = (), *, interlaced: bool = False) -> bytes:
    """Create a PNG of these samples.

    Args:
        samples: Height × width, or height × width × channels, each below 2 ** ``depth``.
        depth: Bits of a sample: 1, 2, 4, 8 or 16.
        colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA.
        chunks: What stands before the pixels: type and content.
        interlaced: By Adam7.
    """
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    passes = [samples[y::dy, x::dx] for x, y, dx, dy in _ADAM7] if interlaced else [samples]
    data = b"".join(_scanlines(part, depth) for part in passes if part.size)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def chunk(name: bytes, content: bytes) -> bytes:
    """Create a PNG chunk."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _scanlines(samples: Array, depth: int) -> bytes:
    rows = samples.reshape(samples.shape[0], -1)
    if depth == 16:
        packed: Array = np.ascontiguousarray(rows, ">u2").view(np.uint8)
    else:
        bits = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        packed = np.packbits(bits.reshape(rows.shape[0], -1), axis=-1)
    return b"".join(b"\0" + row.tobytes() for row in packed)


def tiff(strip: bytes, tags: Tags, order: str = "<") -> bytes:
    """Create a TIFF with one strip, or with the tiles of equal size into which ``strip`` is divided.

    Args:
        strip: The pixels as they stand in the file.
        tags: LONG, or UNDEFINED for bytes; offsets and lengths of the data are added.
        order: Byte order, as ``struct`` has it.
    """
    tags = dict(tags)
    tiles = _tiles(tags)
    at, length = (324, 325) if tiles > 1 or 322 in tags else (273, 279)
    tags[at] = [8 + number * len(strip) // tiles for number in range(tiles)]
    tags[length] = [len(strip) // tiles] * tiles
    extra = strip
    entries = []
    for tag, value in sorted(tags.items()):
        kind = 7 if isinstance(value, bytes) else 4
        values = [value] if isinstance(value, int) else list(value)
        data = value if isinstance(value, bytes) else struct.pack(f"{order}{len(values)}I", *values)
        if len(data) > 4:
            data, extra = struct.pack(f"{order}I", 8 + len(extra)), extra + data
        entries.append(struct.pack(f"{order}HHI", tag, kind, len(values)) + data.ljust(4, b"\0"))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(extra))
    return head + extra + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)


def _tiles(tags: Tags) -> int:
    match tags:
        case {256: int(width), 257: int(height), 322: int(across), 323: int(down)}:
            return -(-width // across) * -(-height // down)
        case _:
            return 1


def exif(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """Create EXIF that contains an orientation, and another tag before it."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    artist = struct.pack(f"{order}HHI", 0x0100, 3, 1) + struct.pack(f"{order}HH", 6, 6)
    turn = struct.pack(f"{order}HHI", 0x0112, kind, 1) + struct.pack(f"{order}HH", orientation, 0)
    return b"Exif\0\0" + head + struct.pack(f"{order}H", 2) + artist + turn + bytes(4)


def with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    """Insert a segment right after the start of a JPEG."""
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + jpeg[2:]


def trainers_size(body: bytes, path: Path) -> tuple[int, int] | None:
    """Return the size in pixels that a body has for the trainer, or None if the trainer's code raises.

    Args:
        body: What was, or was not, kept.
        path: Where to write it: a trainer opens files, some of which Pillow reads in other ways than what is in memory.
    """
    path.write_bytes(body)
    sizes: set[tuple[int, int] | None] = set()
    for file in (path, BytesIO(body)):
        try:
            with Image.open(file) as opened:
                sizes.add(opened.convert("RGB").size)
        except Exception:  # noqa: BLE001 - on such data Pillow raises anything
            sizes.add(None)
    (size,) = sizes
    return size


def ycck(picture: Image.Image, **options: object) -> bytes:
    """Create a JPEG in YCCK: the four bands are written unchanged, and Adobe's marker declares their meaning."""
    jpeg = saved(picture, "JPEG", **options)
    at = jpeg.index(b"Adobe") + 11
    return jpeg[:at] + b"\2" + jpeg[at + 1 :]


def framed_gif(picture: Image.Image, left: int, top: int, canvas: tuple[int, int]) -> bytes:
    """Create a GIF whose only frame covers a part of its canvas."""
    gif = bytearray(saved(picture.convert("P"), "GIF", interlace=0))
    gif[6:10] = struct.pack("<HH", *canvas)
    at = gif.index(b",\0\0\0\0" + struct.pack("<HH", *picture.size)) + 1
    gif[at : at + 4] = struct.pack("<HH", left, top)
    return bytes(gif)


# What a profile of the ICC's version 2 needs.

_D50 = (0.9642, 1.0, 0.8249)
SRGB_COLOURANTS = np.array([[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]])
"""XYZ of red, green and blue, for D50 (IEC 61966-2-1, adapted by Bradford's matrix)."""
P3_COLOURANTS = np.array([[0.51512, 0.24120, -0.00105], [0.29198, 0.69225, 0.04189], [0.15710, 0.06657, 0.78407]])
"""The same of Display P3."""

Curve: TypeAlias = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def srgb_to_linear(value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Apply the curve of IEC 61966-2-1, from 0 to 1."""
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Apply the inverse curve, clipped to what sRGB can show."""
    value = value.clip(0, 1)
    return np.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055)


def rgb_profile(colourants: npt.NDArray[np.float64], curve: Curve = srgb_to_linear) -> bytes:
    """Create the profile of a display from its colourants and the curve that all three share."""
    tags = {name: _xyz(row) for name, row in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colourants, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(curve))
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(curve: Curve) -> bytes:
    """Create the profile of a grey display."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _curve(curve)})


def cmyk_profile(*, colorimetric: bool = False) -> bytes:
    """Create a printer's profile in which only black has an effect: L* falls from 100 to 0 with K.

    Args:
        colorimetric: Add a second table, for the colorimetric intent, by which L* rises with K.
    """
    tags = {b"A2B0": _black_ink(paper=255, ink=0)}
    if colorimetric:
        tags[b"A2B1"] = _black_ink(paper=0, ink=255)
    return _profile(b"prtr", b"CMYK", b"Lab ", tags)


def _black_ink(*, paper: int, ink: int) -> bytes:
    identity = bytes(range(256))
    nodes = b"".join(struct.pack("BBB", ink if node & 1 else paper, 128, 128) for node in range(16))
    unit = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    return b"mft1\0\0\0\0" + struct.pack("4B", 4, 3, 2, 0) + unit + identity * 4 + nodes + identity * 3


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"wtpt": _xyz(np.array(_D50)), **tags}
    at = 128 + 4 + 12 * len(tags)
    table, contents = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(contents), len(content))
        contents += content + bytes(-len(content) % 4)
    size = struct.pack(">I", at + len(contents))
    head = size + b"\0\0\0\0" + b"\x02\x10\0\0" + kind + space + connection + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3i", *(round(value * 65536) for value in _D50))
    return head.ljust(128, b"\0") + table + contents


def _xyz(values: npt.NDArray[np.float64]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def _curve(curve: Curve) -> bytes:
    values = (curve(np.linspace(0, 1, 4096)) * 65535).round().astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", len(values)) + values.tobytes()
