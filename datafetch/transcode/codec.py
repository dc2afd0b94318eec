"""transcode(): turn one body into an outcome, without I/O and without state.

Rules: with exact resizing, the recipe's pixels give the same bytes as the recipe's own snippet with the same Pillow
(docs/fidelity.md). An image that is kept as received has passed what the trainer does with it: all of its data has been
decoded, although not into all pixels if it is a JPEG. Only formats on the allow-list are tried, and the header is
checked before pixels are allocated.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from dataclasses import replace
from io import BytesIO

from PIL import Image, ImageFile, JpegImagePlugin, UnidentifiedImageError, features

from datafetch.model.outcome import Encoded, Failure, FailureKind, Outcome, Permissions
from datafetch.transcode.header import check_header
from datafetch.transcode.image.fitting import Refusal, fit, permissions_for, refuse_fitted_size, refuse_size
from datafetch.transcode.image.passthrough import can_pass_through, is_intact
from datafetch.transcode.image.png import remove_refused_chunks
from datafetch.transcode.image.resize import load_resizer, prepare_resizing
from datafetch.transcode.image.rust_png import decode_colour_png
from datafetch.transcode.image.size_claims import has_oversized_tags, tiff_tile_pixels, webp_canvas_pixels
from datafetch.transcode.image.turbo_jpeg import decode_colour_jpeg
from datafetch.transcode.image.viewer_pixels import correct_pixels
from datafetch.transcode.spec import DEFAULT_MAX_PIXELS, BodyCheck, Encoding, ImageFormat, ImageSpec, Pixels

ALLOWED_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_MAX_DETAIL_CHARS = 200
_MAX_BYTES_PER_PIXEL = 4  # of what Pillow's WebP plugin decodes, and then reads like a file
_MAGIC_BYTES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|II\*\0|MM\0\*|RIFF.{4}WEBP|.{4}ftypavi[fs]"
    # Text may begin with BM, too, but a file length that consists of text characters is above 150 MB.
    rb"|BM.{3}[\0-\x08](?:\0{4}|\0{0,3}\Z)|BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    re.DOTALL,
)
_JPEG_SIGNATURE = b"\xff\xd8\xff"
# Messages of Pillow's BMP plugin (about a complete header), JPEG plugin (about the frame header) and PNG plugin.
_PERMANENT_FAULTS = re.compile(r"^Unsupported BMP |^cannot handle \d+-(?:bit|layer) |\bMAX_TEXT_(?:CHUNK|MEMORY)\b")
_QUOTE = re.compile(r"""b?'(?:[^'\\]|\\.)*'|b?"(?:[^"\\]|\\.)*\"""", re.DOTALL)
# Not those of errors (-2), of which there are few.
_NUMBER = re.compile(r"(?<![\w.-])(?:0x[0-9a-fA-F]+|\d[\d,.]*)\b")
_MESSAGES = {"AssertionError": "the data is inconsistent", "MemoryError": "there was not enough memory"}


class _RefusedError(Exception):
    """An image refused for what its header claims, before it is decoded. The message goes into the ledger."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.kind = refusal.kind


def _too_many_pixels(text: str) -> _RefusedError:
    return _RefusedError(Refusal(FailureKind.TOO_MANY_PIXELS, text))


def transcode(body: bytes, spec: ImageSpec) -> Outcome:
    """Decode one image and encode it again, or keep it as received where the spec says so.

    Args:
        body: The response body as received.
        spec: What the image becomes, and how many pixels it may have.

    Returns:
        ``Encoded`` with width × height in pixels and whether the body was kept, or ``Failure`` of kind NOT_AN_IMAGE,
        TRUNCATED, CORRUPT, TOO_MANY_PIXELS, PLACEHOLDER, TOO_SMALL, AREA_TOO_LARGE, ASPECT_RATIO_TOO_LARGE, or
        WORKER_CRASHED if there was not enough memory. Both carry the body's sha256. Never raises for a bad body.

    Raises:
        ConfigurationError: What the spec needs is not installed.
    """
    if spec.check is BodyCheck.HEADER:
        return check_header(body, spec)
    load_resizer(spec)
    sha256 = hashlib.sha256(body).hexdigest()
    try:
        return _transcode(body, spec, sha256)
    except Exception as error:  # noqa: BLE001 - for hostile data Pillow may raise anything; classify() sorts it
        return _transcode_repaired(body, spec, sha256) or classify(error, body, sha256)


def _transcode_repaired(body: bytes, spec: ImageSpec, sha256: str) -> Outcome | None:
    """Transcode a PNG without the texts and the profile for which Pillow refused it; None if there are none.

    This does not apply to images that are kept as received, because the trainer's Pillow would refuse them as well.
    """
    repaired = remove_refused_chunks(body) if spec.repairs_png and spec.encode is not Encoding.RECEIVED else None
    if repaired is None:
        return None
    try:
        with _open_checked(repaired.body, spec) as source:
            if repaired.profile is not None:
                source.info["icc_profile"] = repaired.profile
            permitted = _permitted(source, repaired.body, spec)
            return replace(_encode(source, repaired.body, spec, sha256), permitted=permitted)
    except Exception as error:  # noqa: BLE001 - as above
        return classify(error, repaired.body, sha256)


def _transcode(body: bytes, spec: ImageSpec, sha256: str) -> Encoded:
    with _open_checked(body, spec) as source:
        permitted = _permitted(source, body, spec)
        if not can_pass_through(source, spec):
            return replace(_finish(source, body, spec, sha256), permitted=permitted)
        width_px, height_px = source.size
        if is_intact(source, body):
            return Encoded(body, width_px, height_px, str(source.format), sha256, is_original=True, permitted=permitted)
    with _open_checked(body, spec) as source:
        return replace(_finish(source, body, spec, sha256), permitted=permitted)


def _finish(source: ImageFile.ImageFile, body: bytes, spec: ImageSpec, sha256: str) -> Encoded:
    return _keep(source, body, sha256) if spec.encode is Encoding.RECEIVED else _encode(source, body, spec, sha256)


def _permitted(source: ImageFile.ImageFile, body: bytes, spec: ImageSpec) -> Permissions:
    """Return the permissions of the operator without which this opened image would be refused."""
    if spec.max_pixels <= DEFAULT_MAX_PIXELS:
        return ()
    width_px, height_px = source.size
    claimed = max(width_px * height_px, webp_canvas_pixels(body), tiff_tile_pixels(body))
    if spec.encode is not Encoding.RECEIVED:
        width_px, height_px = fit(source.size, spec).resized_px
        claimed = max(claimed, width_px * height_px)
    return permissions_for(claimed, spec)


def _keep(source: ImageFile.ImageFile, body: bytes, sha256: str) -> Encoded:
    """Keep the body, after decoding it the way the trainer will: all pixels, in mode RGB.

    Loading and converting may fail independently: there are files that Pillow can load, but not convert.
    """
    width_px, height_px = source.size
    source_format = str(source.format)
    source.load()
    if source.mode != "RGB":  # converting RGB only copies, and can't fail
        source.convert("RGB")
    return Encoded(body, width_px, height_px, source_format, sha256, is_original=True)


def _open_checked(body: bytes, spec: ImageSpec) -> ImageFile.ImageFile:
    """Open an image and check its header against the limits of the spec.

    Raises:
        _RefusedError: It exceeds a limit.
        Exception: Whatever else Pillow raises for the data.
    """
    if webp_canvas_pixels(body) > spec.max_pixels:
        raise _too_many_pixels(f"a canvas of over {spec.max_pixels:,} pixels")
    if has_oversized_tags(body):
        raise _RefusedError(Refusal(FailureKind.CORRUPT, "its metadata tags refer to more bytes than the file has"))
    source = Image.open(BytesIO(body), formats=supported_formats())
    _raise_if(refuse_size(source.size, spec))
    if tiff_tile_pixels(body) > spec.max_pixels:
        raise _too_many_pixels(f"tiles of over {spec.max_pixels:,} pixels")
    if spec.encode is not Encoding.RECEIVED:
        _raise_if(refuse_fitted_size(fit(source.size, spec), spec))
    return source


def _raise_if(refusal: Refusal | None) -> None:
    if refusal is not None:
        raise _RefusedError(refusal)


def _encode(source: ImageFile.ImageFile, body: bytes, spec: ImageSpec, sha256: str) -> Encoded:
    source_format, received_px = str(source.format), source.size  # before it is decoded at a reduced size
    image = pixels(source, body, spec)
    file = BytesIO()
    match spec.image_format:
        case ImageFormat.JPG:
            image.save(file, format="JPEG", quality=spec.quality)
        case ImageFormat.PNG:
            _without_metadata(image).save(file, format="PNG")
        case ImageFormat.WEBP:
            _without_metadata(image).save(file, format="WEBP", quality=spec.quality)
    encoded = Encoded(file.getvalue(), image.width, image.height, source_format, sha256)
    return encoded if image.size == received_px else replace(encoded, received_px=received_px)


def _without_metadata(image: Image.Image) -> Image.Image:
    """Drop what Pillow would write into a PNG or WebP, but not into a JPEG: the profile and the transparent colour."""
    image.info = {}
    return image


def pixels(source: ImageFile.ImageFile, body: bytes, spec: ImageSpec) -> Image.Image:
    """Return the pixels to be written for an opened image, before they are encoded.

    Args:
        source: The image, opened but not loaded.
        body: The file that it was opened from.
        spec: Which pixels are written.

    Returns:
        An image in mode RGB, or, for a JPEG, in RGBX, which has a fourth byte a pixel that is not written.

    Raises:
        Exception: Whatever Pillow raises for the data.
    """
    resizing = prepare_resizing(source, spec)
    if spec.pixels is Pixels.CORRECT:
        return correct_pixels(source, resizing)
    # What is resized stays with Pillow's RGB: of RGBX it would compute a fourth channel.
    may_be_rgbx = spec.image_format is ImageFormat.JPG and not resizing.changes(source.size)
    if may_be_rgbx and (decoded := decode_colour_jpeg(source, body)) is not None:
        return decoded
    if (decoded := decode_colour_png(source, body)) is not None:
        return resizing.frame(resizing.apply(decoded))
    # By default Pillow reads 64 KB at a time, and copies what it has read twice.
    source.decodermaxblock = max(len(body), math.prod(source.size) * _MAX_BYTES_PER_PIXEL)
    source.load()
    # The recipe's snippet also converts RGB, which only copies it and costs 5 to 15 % of the decoding time.
    return resizing.frame(resizing.apply(source if source.mode == "RGB" else source.convert("RGB")))


@functools.cache
def supported_formats() -> tuple[str, ...]:
    """Return the formats of the allow-list that this build of Pillow can read."""
    Image.init()
    # The AVIF plugin is there even if the library behind it is missing or too old.
    missing = () if features.check("avif") else ("AVIF",)
    return tuple(name for name in ALLOWED_FORMATS if name in Image.OPEN and name not in missing)


def _is_unknown(error: OSError, body: bytes) -> bool:
    """Return whether a body has no format on the allow-list. Pillow takes everything that begins with BM for a BMP."""
    is_doubtful = isinstance(error, UnidentifiedImageError) or body.startswith(b"BM")
    return is_doubtful and not _MAGIC_BYTES.match(body)


def classify(error: Exception, body: bytes, sha256: str) -> Failure:
    """Determine the failure that an exception of Pillow stands for.

    Args:
        error: What ``Image.open``, ``convert``, ``resize`` or ``save`` raised.
        body: The body for which it was raised.
        sha256: The body's hash in hex.
    """
    match error:
        case _RefusedError():
            return Failure(error.kind, str(error), sha256=sha256)
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            kind = FailureKind.TOO_MANY_PIXELS
        case MemoryError():
            kind = FailureKind.WORKER_CRASHED
        case OSError() if _is_unknown(error, body):
            # Pillow's own message contains a memory address, but equal bodies must give equal outcomes.
            return Failure(FailureKind.NOT_AN_IMAGE, "no format on the allow-list", sha256=sha256)
        case _ if reason := _permanent_fault(error, body):
            return Failure(FailureKind.CORRUPT, reason, sha256=sha256)
        case UnidentifiedImageError():
            return Failure(FailureKind.TRUNCATED, "the header is cut off or corrupt", sha256=sha256)
        case _:
            kind = FailureKind.TRUNCATED
    return Failure(kind, _describe(error), sha256=sha256)


def _permanent_fault(error: Exception, body: bytes) -> str:
    """Describe why a body can never be decoded: it is a variant that Pillow doesn't read, or exceeds a limit of Pillow.

    Returns:
        The description, or an empty string if the fault may come from data that was not received.
    """
    if isinstance(error, UnidentifiedImageError) and body.startswith(_JPEG_SIGNATURE):
        try:  # Image.open doesn't tell why it refused the body
            JpegImagePlugin.JpegImageFile(BytesIO(body))
        except Exception as reason:  # noqa: BLE001 - as in transcode()
            error = reason
    return _describe(error) if _PERMANENT_FAULTS.search(str(error)) else ""


def _describe(error: Exception) -> str:
    """Say what Pillow said, with ``n`` and ``…`` for numbers and quotes from the body: equal faults are equal texts."""
    message = str(error) or _MESSAGES.get(type(error).__name__, "no reason is given")
    message = _NUMBER.sub("n", _QUOTE.sub("…", message))
    text = f"{type(error).__name__}: {message}".encode("utf-8", "replace").decode()
    return " ".join(text.split())[:_MAX_DETAIL_CHARS]
