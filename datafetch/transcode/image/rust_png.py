"""Colour PNGs decoded by the Rust crate ``png``, in kornia-rs: Pillow undoes the filters of their rows byte by byte.

Theory of operation: the crate has a decompressor of its own, which ignores the checksum of what it decompresses. So
zlib-ng decompresses, as in Pillow, and the crate gets the rows as a PNG that is not compressed. That is faster than
letting the crate decompress the file, and checking the checksum separately.

Rules: kornia-rs is optional, and used only if it was found to give Pillow's pixels in this very environment. It gets
nothing of a file but its rows, and only what Pillow has found in the file decides which these are. What is damaged or
odd in any way is left to Pillow, which decides whether the image fails, and why. Pixels are bounded, so that decoding
an image twice fits into the time that one may take; and where memory is short, Pillow decodes, which needs less.
"""

from __future__ import annotations

import functools
import itertools
import mmap
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO

from PIL import Image, ImageFile
from zlib_ng import zlib_ng

from datafetch.model.checksum import crc32
from datafetch.transcode.image.png_chunks import CHUNK_HEADER, CRC_BYTES, SIGNATURE, chunk, chunks

_MAX_PIXELS = 1 << 24  # of which Pillow decodes any in a second or two
_MAX_CHUNKS = 1 << 16  # each costs a microsecond; usual are some hundred
_HEADER = struct.Struct(">II5B")  # width, height, depth, colour type, compression, filters, interlacing
_COLOUR_TYPES = {"RGB": 2, "RGBA": 6}
_BITS = 8
_FILTERS = 5
# Of zlib (RFC 1950) and DEFLATE (RFC 1951), in which a block that is not compressed has its length, also inverted.
_ZLIB_HEADER = b"\x78\x01"
_BLOCK = struct.Struct("<BHH")
_MAX_BLOCK_BYTES = (1 << 16) - 1
# Of the rows, beside them: the PNG that is made of them, what the crate makes of it, and that as an array and an image.
_MEMORY_FACTOR = 4
_SPARE_BYTES = 32 << 20  # for whatever the crate and numpy hold besides
_PROBE_SIZES_PX = ((1, 1), (37, 21), (1, 9), (16, 16))


def decode_colour_png(source: ImageFile.ImageFile, body: bytes) -> Image.Image | None:
    """Decode the pixels of an opened PNG of 8 bits in RGB or RGBA.

    Args:
        source: Opened but not loaded.
        body: The file.

    Returns:
        The pixels as ``source.convert("RGB")`` gives them; None if Pillow must decode it.
    """
    width_px, height_px = source.size
    if source.format != "PNG" or source.mode not in _COLOUR_TYPES or width_px * height_px > _MAX_PIXELS:
        return None
    return _decode(source, body) if gives_pillows_pixels() else None


@functools.cache
def gives_pillows_pixels() -> bool:
    """Return whether kornia-rs is installed and decodes a set of small PNGs as the installed Pillow does.

    One that can't be loaded, or does not work with the installed numpy, is as none: nothing depends on it.
    """
    try:
        import kornia_rs.io  # noqa: F401, PLC0415 - optional, and it loads numpy

        return all(_decodes_alike(png) for png in _probes())
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - whatever is wrong with it
        return False


def _decode(source: ImageFile.ImageFile, body: bytes) -> Image.Image | None:
    from kornia_rs.io import decode_image_png_u8  # noqa: PLC0415 - as in gives_pillows_pixels()

    width_px, height_px = source.size
    try:
        rows = _filtered_rows(source, body)
        if rows is None or not _has_memory(_MEMORY_FACTOR * len(rows) + _SPARE_BYTES):
            return None
        stored = _stored(rows, _header(source.size, source.mode))
        pixels = decode_image_png_u8(stored, (height_px, width_px), source.mode.lower())
        image = Image.frombuffer(source.mode, source.size, pixels, "raw", source.mode, 0, 1)
        image.info = source.info
        return image if image.mode == "RGB" else image.convert("RGB")
    except Exception:  # noqa: BLE001 - it raises that very class
        return None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # by which PyO3 passes on that a Rust program has given up
            raise
        return None


def _has_memory(size_bytes: int) -> bool:
    """Return whether so much memory could be allocated: where it can't, Rust ends or stops the process."""
    try:
        mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return False
    return True


def _filtered_rows(source: ImageFile.ImageFile, body: bytes) -> bytes | None:
    """Return the rows of a PNG as they were before they were compressed; None if something is odd about the file.

    What Pillow has found decides where they are: texts and chunks of animations in front of them have an influence.
    """
    if len(source.tile) != 1 or getattr(source, "is_animated", False) or source.info.get("interlace"):
        return None
    codec, extents, offset, mode = source.tile[0]
    if (codec, extents, mode) != ("zip", (0, 0, *source.size), source.mode):  # another mode at 16 bits
        return None
    content = memoryview(body)
    data: list[memoryview] = []
    for name, start, end in itertools.islice(chunks(body, offset - CHUNK_HEADER.size), _MAX_CHUNKS):
        inner = content[start + CHUNK_HEADER.size : end - CRC_BYTES]
        if name != b"IDAT":
            # Behind the pixels Pillow reads what may follow, such as texts, and may refuse the file for it.
            return _inflated(b"".join(data), source) if data and name == b"IEND" and not inner else None
        data.append(inner)
    return None


def _inflated(compressed: bytes, source: ImageFile.ImageFile) -> bytes | None:
    """Decompress rows; None if they are not as many as there should be, followed by their checksum and nothing else."""
    width_px, height_px = source.size
    size_bytes = height_px * (1 + width_px * len(source.mode))  # of each row, first the number of its filter
    decompressor = zlib_ng.decompressobj()
    try:
        rows = decompressor.decompress(compressed, size_bytes + 1)
    except zlib_ng.error:  # type: ignore[misc]  # its stub does not say that it is a class
        return None
    return rows if decompressor.eof and not decompressor.unused_data and len(rows) == size_bytes else None


def _stored(rows: bytes, header: bytes) -> bytes:
    """Return a PNG of rows that are not compressed: blocks of 64 KB, without a checksum behind them."""
    content = memoryview(rows)
    pieces: list[bytes | memoryview] = [b"IDAT", _ZLIB_HEADER]
    for start in range(0, len(rows), _MAX_BLOCK_BYTES):
        block = content[start : start + _MAX_BLOCK_BYTES]
        is_last = start + len(block) == len(rows)
        pieces += (_BLOCK.pack(is_last, len(block), len(block) ^ 0xFFFF), block)
    length = sum(map(len, pieces)) - len(b"IDAT")
    checksum = functools.reduce(lambda crc, piece: crc32(piece, crc), pieces, 0)
    before = SIGNATURE + chunk(b"IHDR", header) + length.to_bytes(4, "big")
    return b"".join((before, *pieces, checksum.to_bytes(CRC_BYTES, "big"), chunk(b"IEND", b"")))


def _header(size_px: tuple[int, int], mode: str) -> bytes:
    return _HEADER.pack(*size_px, _BITS, _COLOUR_TYPES[mode], 0, 0, 0)


def _decodes_alike(png: bytes) -> bool:
    with Image.open(BytesIO(png), formats=["PNG"]) as source:
        decoded = _decode(source, png)
        pillows = source.convert("RGB")
    return decoded is not None and decoded.mode == "RGB" and decoded.tobytes() == pillows.tobytes()


def _probes() -> Iterator[bytes]:
    """Yield PNGs in which each filter stands in each place, and all values occur."""
    for (width_px, height_px), mode in ((size, mode) for size in _PROBE_SIZES_PX for mode in _COLOUR_TYPES):
        row_bytes = width_px * len(mode)
        for first in range(_FILTERS):
            rows = (
                bytes([(first + row) % _FILTERS, *((row * row_bytes + at) ** 2 % 251 for at in range(row_bytes))])
                for row in range(height_px)
            )
            header, pixels = _header((width_px, height_px), mode), zlib.compress(b"".join(rows))
            yield SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
