"""transcode(): one image, no I/O, nothing remembered.

Rules: the recipe's pixels, shrunk exactly, are the bytes that the recipe's snippet gives with the same Pillow
(docs/fidelity.md). What is kept as received has gone through all that the trainer does with it. Only formats on the
list are tried, and the header is judged before pixels are allocated.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import replace
from io import BytesIO

from PIL import Image, ImageFile, JpegImagePlugin, UnidentifiedImageError, features

from datafetch.model.outcome import Encoded, Failure, FailureKind, Outcome, Permission, Permissions
from datafetch.transcode.image.passthrough import is_sound, may_stay
from datafetch.transcode.image.png import lightened
from datafetch.transcode.image.resize import decode_smaller, shrink, shrunk_size_px
from datafetch.transcode.image.size_claims import has_crowded_tags, tiff_tile_pixels, webp_canvas_pixels
from datafetch.transcode.image.viewer_pixels import correct_pixels
from datafetch.transcode.spec import DEFAULT_MAX_PIXELS, Encoding, ImageSpec, Pixels

ALLOWED_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_MAX_JPEG_SIDE_PX = 65_500  # libjpeg's JPEG_MAX_DIMENSION
_MAX_DETAIL_CHARS = 200
_MAGIC_BYTES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|II\*\0|MM\0\*|RIFF.{4}WEBP|.{4}ftypavi[fs]"
    # Text may begin with BM, too; but no length of the file that reads as text is below 150 MB.
    rb"|BM.{3}[\0-\x08](?:\0{4}|\0{0,3}\Z)|BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    re.DOTALL,
)
_START_OF_JPEG = b"\xff\xd8\xff"
# Of the plugins of BMP (from its header, once that is there), JPEG (from the start of its frame) and PNG.
_FINAL_WORDS = re.compile(r"^Unsupported BMP |^cannot handle \d+-(?:bit|layer) |\bMAX_TEXT_(?:CHUNK|MEMORY)\b")
_UNSAID = {"AssertionError": "the data is inconsistent", "MemoryError": "there was no memory for the image"}


class _RefusedError(Exception):
    """Refused for what the header promises, before anything is decoded. The text is what the ledger says."""

    def __init__(self, kind: FailureKind, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def _too_many(text: str) -> _RefusedError:
    return _RefusedError(FailureKind.TOO_MANY_PIXELS, text)


def transcode(body: bytes, spec: ImageSpec) -> Outcome:
    """Decode one image and encode it again as JPEG, or keep it as it is where the spec says so.

    Args:
        body: The response body as received.
        spec: What the image becomes, and the most pixels allowed.

    Returns:
        ``Encoded`` with width × height in pixels and whether the body was kept as it is, or ``Failure`` of kind
        NOT_AN_IMAGE, TRUNCATED, CORRUPT, TOO_MANY_PIXELS, PLACEHOLDER, or, where there was no memory for the image,
        WORKER_CRASHED. Both carry the body's sha256. Never raises for a bad body.
    """
    sha256 = hashlib.sha256(body).hexdigest()
    try:
        return _transcode(body, spec, sha256)
    except Exception as error:  # noqa: BLE001 - on hostile data Pillow raises anything; classify() names it
        return _without_ballast(body, spec, sha256) or classify(error, body, sha256)


def _without_ballast(body: bytes, spec: ImageSpec, sha256: str) -> Outcome | None:
    """What comes of a PNG without the texts and the profile for which Pillow refused it; None for anything else.

    What is kept as received is for the trainer to open, and its Pillow refuses it as well.
    """
    light = lightened(body) if spec.mends and spec.encode is not Encoding.RECEIVED else None
    if light is None:
        return None
    try:
        with _open(light.body, spec) as source:
            if light.profile is not None:
                source.info["icc_profile"] = light.profile
            permitted = _permitted(source, light.body, spec)
            return replace(_encoded(source, spec, sha256), permitted=permitted)
    except Exception as error:  # noqa: BLE001 - as above
        return classify(error, light.body, sha256)


def _transcode(body: bytes, spec: ImageSpec, sha256: str) -> Encoded:
    with _open(body, spec) as source:
        permitted = _permitted(source, body, spec)
        if spec.encode is Encoding.RECEIVED:
            return replace(_received(source, body, sha256), permitted=permitted)
        if not may_stay(source, spec):
            return replace(_encoded(source, spec, sha256), permitted=permitted)
        width_px, height_px = source.size
        if is_sound(source, body):
            return Encoded(body, width_px, height_px, str(source.format), sha256, is_original=True, permitted=permitted)
    with _open(body, spec) as source:
        return replace(_encoded(source, spec, sha256), permitted=permitted)


def _permitted(source: ImageFile.ImageFile, body: bytes, spec: ImageSpec) -> Permissions:
    """Which permissions an opened image is taken by, and would not be without."""
    if spec.max_pixels <= DEFAULT_MAX_PIXELS:
        return ()
    width_px, height_px = source.size
    claimed = max(width_px * height_px, webp_canvas_pixels(body), tiff_tile_pixels(body))
    return (Permission.MAX_PIXELS,) if claimed > DEFAULT_MAX_PIXELS else ()


def _received(source: ImageFile.ImageFile, body: bytes, sha256: str) -> Encoded:
    """The body itself, once it has been decoded as the trainer will decode it: all pixels, in mode RGB.

    Each half may fail alone: there are files that load, and that Pillow can't convert.
    """
    width_px, height_px = source.size
    source_format = str(source.format)
    source.load()
    if source.mode != "RGB":  # or it would be copied, which finds nothing out
        source.convert("RGB")
    return Encoded(body, width_px, height_px, source_format, sha256, is_original=True)


def _open(body: bytes, spec: ImageSpec) -> ImageFile.ImageFile:
    """Open an image, if its header promises no more than the spec allows."""
    if (canvas := webp_canvas_pixels(body)) > spec.max_pixels:
        raise _too_many(f"a canvas of {canvas} pixels")
    if has_crowded_tags(body):
        raise _RefusedError(FailureKind.CORRUPT, "the tags have more bytes of values than there are in the file")
    source = Image.open(BytesIO(body), formats=supported_formats())
    width_px, height_px = source.size
    if width_px * height_px > spec.max_pixels:
        raise _too_many(f"{width_px}x{height_px} pixels")
    if width_px * height_px < spec.least_pixels:
        raise _RefusedError(
            FailureKind.PLACEHOLDER, f"{width_px}x{height_px} pixels, a stand-in for an image that is gone"
        )
    if (tile := tiff_tile_pixels(body)) > spec.max_pixels:
        raise _too_many(f"tiles of {tile} pixels")
    if spec.encode is Encoding.RECEIVED:
        return source
    written_px = shrunk_size_px(source.size, spec.short_side_px)
    if max(written_px) > _MAX_JPEG_SIDE_PX:
        raise _too_many(f"{written_px[0]}x{written_px[1]}, a JPEG has at most {_MAX_JPEG_SIDE_PX} a side")
    return source


def _encoded(source: ImageFile.ImageFile, spec: ImageSpec, sha256: str) -> Encoded:
    source_format = str(source.format)
    image = pixels(source, spec)
    jpeg = BytesIO()
    image.save(jpeg, format="JPEG", quality=spec.quality)
    return Encoded(jpeg.getvalue(), image.width, image.height, source_format, sha256)


def pixels(source: ImageFile.ImageFile, spec: ImageSpec) -> Image.Image:
    """The pixels that are written for an opened image, in mode RGB, before they become a JPEG.

    Raises:
        Exception: Whatever Pillow raises for the data.
    """
    size_px = shrunk_size_px(source.size, spec.short_side_px)
    box = decode_smaller(source, size_px) if spec.shrinks_fast else None
    if spec.pixels is Pixels.CORRECT:
        return correct_pixels(source, size_px, box)
    source.load()
    # The snippet copies what is RGB already; the copy is the same image, at 5 to 15 % of the time that decoding takes.
    return shrink(source if source.mode == "RGB" else source.convert("RGB"), size_px, box)


@functools.cache
def supported_formats() -> tuple[str, ...]:
    """The formats of the allow-list that this build of Pillow reads."""
    Image.init()
    # The plugin of AVIF is there even where the library behind it is missing or too old.
    missing = () if features.check("avif") else ("AVIF",)
    return tuple(name for name in ALLOWED_FORMATS if name in Image.OPEN and name not in missing)


def _is_unknown(error: OSError, body: bytes) -> bool:
    """Whether a body is of no format on the list. Pillow takes all that begins with BM for one."""
    doubtful = isinstance(error, UnidentifiedImageError) or body.startswith(b"BM")
    return doubtful and not _MAGIC_BYTES.match(body)


def classify(error: Exception, body: bytes, sha256: str) -> Failure:
    """Name the kind of failure behind an exception of Pillow.

    Args:
        error: What ``Image.open``, ``convert``, ``resize`` or ``save`` raised.
        body: The body it was raised for.
        sha256: Of the body, hex.
    """
    match error:
        case _RefusedError():
            return Failure(error.kind, str(error), sha256=sha256)
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            kind = FailureKind.TOO_MANY_PIXELS
        case MemoryError():
            kind = FailureKind.WORKER_CRASHED
        case OSError() if _is_unknown(error, body):
            # Pillow's own message quotes the buffer's memory address; the same outcome must read the same.
            return Failure(FailureKind.NOT_AN_IMAGE, "no format on the allow-list", sha256=sha256)
        case _ if says := _final_words(error, body):
            return Failure(FailureKind.CORRUPT, says, sha256=sha256)
        case UnidentifiedImageError():
            return Failure(FailureKind.TRUNCATED, "the header is cut off or corrupt", sha256=sha256)
        case _:
            kind = FailureKind.TRUNCATED
    return Failure(kind, _describe(error), sha256=sha256)


def _final_words(error: Exception, body: bytes) -> str:
    """Why a body will never do: what it has whole is a variant that Pillow does not read, or over a limit of Pillow's.

    Everything else may be for want of what was not received. Empty where that can't be ruled out.
    """
    if isinstance(error, UnidentifiedImageError) and body.startswith(_START_OF_JPEG):
        try:  # Image.open keeps to itself why it refused
            JpegImagePlugin.JpegImageFile(BytesIO(body))
        except Exception as reason:  # noqa: BLE001 - as in transcode()
            error = reason
    return _describe(error) if _FINAL_WORDS.search(str(error)) else ""


def _describe(error: Exception) -> str:
    said = str(error) or _UNSAID.get(type(error).__name__, "no reason is given")
    text = f"{type(error).__name__}: {said}".encode("utf-8", "replace").decode()
    return " ".join(text.split())[:_MAX_DETAIL_CHARS]
