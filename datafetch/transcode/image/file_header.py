"""What a file says of itself: its format, its size in pixels, and whether its own end is there. Nothing is decoded.

Each format says in its own way where a file ends, and a file that does not reach that place is cut off:

* JPEG has an end marker behind its last scan (``jpeg_markers``). What follows the marker belongs to no JPEG (the second
  picture of a camera, the video of a motion photo, bytes of a careless server), and is not looked at.
* PNG ends with the chunk IEND, GIF with a trailer behind its last block, WebP after the length in its first bytes; what
  follows is not looked at either.
* AVIF is a sequence of boxes that all have to be there; TIFF and BMP say where their pixels are.

Rules: nothing here raises for any body, and nothing is allocated that grows with it. Time is bounded: by the length of
the body where a regular expression skips pixels, and else by a number of steps, which only crafted files exceed. Pillow
is not loaded, for this runs in the process that fetches.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat

from datafetch.model.outcome import FailureKind
from datafetch.transcode.image.fitting import Refusal, Size
from datafetch.transcode.image.jpeg_markers import END_OF_IMAGE, START_OF_SCAN, find_markers
from datafetch.transcode.image.tiff_tags import directory_values

_MAX_STEPS = 16_384  # segments, chunks or boxes of a file; and one more for each …
_BYTES_PER_STEP = 64  # of these, for the blocks of an animated GIF, which have at most 255 bytes
_MAX_STRIPS = 1 << 17  # of a TIFF; more than the rows of any

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_FRAME = struct.Struct(">BHHB")  # bits of a sample, height, width, components; behind the segment's length
_BITS, _COMPONENTS = 8, frozenset({1, 3, 4})  # of JPEGs that Pillow reads

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNK = struct.Struct(">I4s")
_CHECKSUM_BYTES = 4
_MAX_CHUNK_BYTES = 2**31 - 1
_IHDR = struct.Struct(">II")

_SCREEN = struct.Struct("<HHBBB")
_FRAME_OF_GIF = struct.Struct("<HHHHB")
_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B
_HAS_PALETTE, _PALETTE_BITS = 0x80, 0x07

_RIFF = struct.Struct("<4sI4s4sI")
_RIFF_CHUNK = struct.Struct("<4sI")
_VP8_START, _VP8L_START = b"\x9d\x01\x2a", b"\x2f"
_14_BITS = 0x3FFF
_PICTURES_OF_WEBP = frozenset({b"VP8 ", b"VP8L", b"ANMF"})

_BMP = struct.Struct("<2sIHHII")
_CORE, _INFO = struct.Struct("<HHHH"), struct.Struct("<iiHHII")
_CORE_BYTES = 12
_UNCOMPRESSED, _RUN_LENGTHS = frozenset({0, 3}), frozenset({1, 2})

_WIDTH, _LENGTH, _ORIENTATION = 256, 257, 274
_STRIPS, _TILES = (273, 279), (324, 325)  # tags with offsets, and with counts of bytes
_TRANSPOSED = frozenset({5, 6, 7, 8})

_BOX = struct.Struct(">I4s")
_ISPE = struct.Struct(">II")
_MAX_PROPERTIES = 1024


@dataclass(frozen=True, slots=True)
class FileHeader:
    """What a file says of itself.

    Attributes:
        file_format: Its format, by Pillow's name; ``JPEG`` for a JPEG that holds several pictures, too.
        size_px: Its size, as Pillow opens it.
    """

    file_format: str
    size_px: Size


class _FaultError(Exception):
    """The file is not whole. The message goes into the ledger."""

    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(detail)
        self.refusal = Refusal(kind, detail)


def _truncated(detail: str) -> _FaultError:
    return _FaultError(FailureKind.TRUNCATED, detail)


def _corrupt(detail: str) -> _FaultError:
    return _FaultError(FailureKind.CORRUPT, detail)


def read_header(body: bytes) -> FileHeader | Refusal:
    """Find format, size and end of a file.

    Returns:
        What it says of itself; or why it is no whole image: NOT_AN_IMAGE, TRUNCATED, or CORRUPT for what no reader
        reads or only an attacker writes.
    """
    file_format = find_format(body)
    if file_format is None:
        return Refusal(FailureKind.NOT_AN_IMAGE, "no format on the allow-list")
    try:
        header = FileHeader(file_format, _READERS[file_format](body))
    except _FaultError as fault:
        return fault.refusal
    except (struct.error, IndexError):  # something that should be there is behind the end
        return Refusal(FailureKind.TRUNCATED, "it ends early")
    return header if min(header.size_px) > 0 else Refusal(FailureKind.CORRUPT, "it has no pixels")


def find_format(body: bytes) -> str | None:
    """The format that a file begins like, by Pillow's name; None for any that is not on the allow-list."""
    return next((name for name, signature in _SIGNATURES.items() if signature.match(body)), None)


def _steps(body: bytes, what: str, bytes_per_step: int = 0) -> Iterator[None]:
    """Yield as often as a loop over a file may go on.

    Raises:
        _FaultError: It has gone on for longer than in any file that was not crafted.
    """
    yield from repeat(None, _MAX_STEPS + (len(body) // bytes_per_step if bytes_per_step else 0))
    raise _corrupt(f"it has too many {what}")


def _read_jpeg(body: bytes) -> Size:
    has_scan, size_px = False, (0, 0)
    for (marker, at), _ in zip(find_markers(body), _steps(body, "segments"), strict=False):
        if marker == END_OF_IMAGE:
            if not has_scan:
                raise _truncated("it has no picture")
            return size_px
        if marker in _FRAMES and not has_scan:
            bits, height_px, width_px, components = _FRAME.unpack_from(body, at + 2)
            if bits != _BITS or components not in _COMPONENTS:
                raise _corrupt(f"a JPEG of {bits} bits and {components} components")
            size_px = width_px, height_px
        has_scan |= marker == START_OF_SCAN
    raise _truncated("it has no end marker")


def _read_png(body: bytes) -> Size:
    at, has_pixels, size_px = len(_PNG_SIGNATURE), False, None
    for _ in _steps(body, "chunks"):
        length, name = _CHUNK.unpack_from(body, at)
        start, at = at + _CHUNK.size, at + _CHUNK.size + length + _CHECKSUM_BYTES
        if length > _MAX_CHUNK_BYTES:
            raise _corrupt("a chunk claims over 2 GiB")
        if at > len(body):
            raise _truncated("a chunk ends early")
        if size_px is None:
            if name != b"IHDR":
                raise _corrupt("it does not begin with IHDR")
            size_px = _IHDR.unpack_from(body, start)
        has_pixels |= name == b"IDAT"
        if name == b"IEND":
            break
    if not has_pixels or size_px is None:
        raise _truncated("it has no picture")
    return size_px


def _read_gif(body: bytes) -> Size:
    width_px, height_px, flags, _, _ = _SCREEN.unpack_from(body, 6)
    at, has_picture = 6 + _SCREEN.size + _palette_bytes(flags), False
    steps = _steps(body, "blocks", _BYTES_PER_STEP)
    for _ in steps:
        kind, at = body[at], at + 1
        if kind == _TRAILER:
            if not has_picture:
                raise _truncated("it has no picture")
            break
        if kind == _IMAGE:
            left, top, width, height, flags = _FRAME_OF_GIF.unpack_from(body, at)
            at += _FRAME_OF_GIF.size + _palette_bytes(flags)
            if not has_picture:  # the canvas holds at least the first frame
                width_px, height_px = max(width_px, left + width), max(height_px, top + height)
            has_picture = True
        if kind in (_IMAGE, _EXTENSION):
            at += 1  # how many bits codes have, or what the extension is
            while length := body[at]:
                at += length + 1
                next(steps)
            at += 1
    return width_px, height_px


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & _PALETTE_BITS) + 1 if flags & _HAS_PALETTE else 0


def _read_webp(body: bytes) -> Size:
    _, riff_bytes, _, first, _ = _RIFF.unpack_from(body)
    end = _RIFF_CHUNK.size + riff_bytes
    if end > len(body):
        raise _truncated("it ends before its length")
    size_px = _size_of_webp(body, first)
    at = _RIFF.size - _RIFF_CHUNK.size
    for _ in _steps(body, "chunks"):
        name, length = _RIFF_CHUNK.unpack_from(body, at)
        at += _RIFF_CHUNK.size + length + length % 2
        if at > end + 1:  # the byte that pads the last chunk may be missing
            raise _truncated("a chunk ends early")
        if name in _PICTURES_OF_WEBP:
            break
        if at >= end:
            raise _truncated("it has no picture")
    return size_px


def _size_of_webp(body: bytes, first: bytes) -> Size:
    """The size in the first chunk of a WebP (RFC 9649, sections 2.5 to 2.7; RFC 6386, section 9.1)."""
    start = _RIFF.size
    match first:
        case b"VP8 ":
            if body[start + 3 : start + 6] != _VP8_START:
                raise _corrupt("its first frame is no key frame")
            width, height = struct.unpack_from("<HH", body, start + 6)
            return width & _14_BITS, height & _14_BITS
        case b"VP8L":
            if body[start : start + 1] != _VP8L_START:
                raise _corrupt("it has no lossless picture")
            (bits,) = struct.unpack_from("<I", body, start + 1)
            return (bits & _14_BITS) + 1, (bits >> 14 & _14_BITS) + 1
        case b"VP8X":
            canvas = body[start + 4 : start + 10]
            return int.from_bytes(canvas[:3], "little") + 1, int.from_bytes(canvas[3:], "little") + 1
        case _:
            raise _corrupt("it has no picture")


def _read_bmp(body: bytes) -> Size:
    _, _, _, _, offset, header_bytes = _BMP.unpack_from(body)
    if header_bytes == _CORE_BYTES:
        width_px, height_px, _, bits = _CORE.unpack_from(body, _BMP.size)
        compression = image_bytes = 0
    else:
        width_px, height_px, _, bits, compression, image_bytes = _INFO.unpack_from(body, _BMP.size)
    if compression in _UNCOMPRESSED:
        image_bytes = (width_px * bits + 31) // 32 * 4 * abs(height_px)
    elif compression not in _RUN_LENGTHS:
        raise _corrupt("a BMP of a kind that is not read")
    if width_px > 0 and offset + image_bytes > len(body):
        raise _truncated("its pixels end early")
    return max(0, width_px), abs(height_px)


def _read_tiff(body: bytes) -> Size:
    wanted = {_WIDTH: 1, _LENGTH: 1, _ORIENTATION: 1, **dict.fromkeys((*_STRIPS, *_TILES), _MAX_STRIPS)}
    values = directory_values(memoryview(body), wanted)
    if values is None:
        raise _truncated("its directory ends early")
    if _WIDTH not in values or _LENGTH not in values:
        raise _truncated("it has no size")
    at, counts = _STRIPS if _STRIPS[0] in values else _TILES
    offsets, lengths = values.get(at, ()), values.get(counts, ())
    if not offsets:
        raise _truncated("it has no picture")
    ends = map(sum, zip(offsets, lengths, strict=False)) if lengths else offsets
    if max(ends, default=0) > len(body):
        raise _truncated("its pixels end early")
    width_px, height_px = values[_WIDTH][0], values[_LENGTH][0]
    is_transposed = values.get(_ORIENTATION, (1,))[0] in _TRANSPOSED  # Pillow turns a TIFF while it decodes it
    return (height_px, width_px) if is_transposed else (width_px, height_px)


def _read_avif(body: bytes) -> Size:
    at, names, size_px = 0, set[bytes](), (0, 0)
    for _ in _steps(body, "boxes"):
        if at == len(body):
            break
        length, name = _BOX.unpack_from(body, at)
        if length == 1:
            (length,) = struct.unpack_from(">Q", body, at + _BOX.size)
        elif length == 0:  # the rest of the file
            length = len(body) - at
        if length < _BOX.size:
            raise _corrupt("a box is shorter than its header")
        if at + length > len(body):
            raise _truncated("a box ends early")
        if name == b"meta":
            size_px = _size_of_avif(body, at, at + length)
        names.add(name)
        at += length
    if not {b"meta", b"mdat"} <= names:
        raise _truncated("it has no picture")
    return size_px


def _size_of_avif(body: bytes, start: int, end: int) -> Size:
    """The largest size among the properties of the file's pictures: besides the picture, its parts and thumbnails."""
    sizes: list[Size] = [(0, 0)]
    for _ in range(_MAX_PROPERTIES):
        start = body.find(b"ispe", start, end)
        if start < 0:
            break
        start += 4
        sizes.append(_ISPE.unpack_from(body, start + 4))
    return max(sizes, key=lambda size_px: size_px[0] * size_px[1])


_SIGNATURES: Mapping[str, re.Pattern[bytes]] = {
    name: re.compile(signature, re.DOTALL)
    for name, signature in (
        ("JPEG", rb"\xff\xd8\xff"),
        ("PNG", _PNG_SIGNATURE),
        ("WEBP", rb"RIFF.{4}WEBP"),
        ("GIF", rb"GIF8[79]a"),
        ("TIFF", rb"II[*+]\0|MM\0[*+]"),
        ("AVIF", rb".{4}ftyp(?:avi[fs]|.{8}(?:.{4}){0,32}avif)"),
        # Text may begin with BM, too, but not have such a number behind it.
        ("BMP", rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
    )
}
"""What files of a format begin with."""
_READERS: Mapping[str, Callable[[bytes], Size]] = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "WEBP": _read_webp,
    "GIF": _read_gif,
    "TIFF": _read_tiff,
    "AVIF": _read_avif,
    "BMP": _read_bmp,
}
