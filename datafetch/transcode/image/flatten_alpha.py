"""Decode an image to 8 bits per channel, with its transparency composited over white.

Rules: the result has mode L, RGB or CMYK, in the colour space of the file; icc.py applies profiles. Palette entries and
a single transparent colour count as transparency. Invalid information about transparency never fails an image.
"""

from __future__ import annotations

from PIL import Image, ImageFile

from datafetch.transcode.image.bit_depth import DEEP_MODES, mask_all_but, to_8_bit_grey

_COLOUR_MODES = frozenset({"L", "RGB", "CMYK"})
_WHITE: dict[str, int | tuple[int, ...]] = {"L": 255, "RGB": (255, 255, 255)}
_ALPHA_MODES = frozenset({"PA", "RGBA", "RGBa"})
_PALETTE_COLOURS = 256
# Factors that scale PNG's greys of 2 or 4 bits to 8 bits. Pillow scales the pixels, but not the transparent grey.
_GREY_STEPS = {"L;2": 85, "L;4": 17}


def flatten_alpha(source: ImageFile.ImageFile) -> Image.Image:
    """Decode an opened image to mode L, RGB or CMYK of 8 bits, composited over white."""
    tile = source.tile[0] if source.tile else None
    source.load()
    rawmode = str(tile[3]) if tile else ""
    if source.mode in DEEP_MODES:
        return _flatten_deep(source)
    image = _flatten(source, _transparency(source, rawmode))
    frame = tile[1] if tile else None
    if source.format == "GIF" and frame is not None and frame != (0, 0, *source.size):
        return _clear_outside_frame(image, frame)
    return image


def _flatten_deep(source: Image.Image) -> Image.Image:
    colours = to_8_bit_grey(source)
    transparent = source.info.get("transparency")
    return _over_white(colours, mask_all_but(source, transparent)) if isinstance(transparent, int) else colours


def _flatten(source: Image.Image, transparency: object) -> Image.Image:
    if transparency is None:
        source.info.pop("transparency", None)
    else:
        source.info["transparency"] = transparency
    match source.mode:
        case "1" | "L":
            colours = source.convert("L")
            if not isinstance(transparency, int):
                return colours
            return _over_white(colours, _mask_all_but(colours, transparency))
        case "LA" | "La":
            image = _converted(source, "LA")
            return _over_white(image.convert("L"), image.getchannel("A"))
        case mode if mode in _ALPHA_MODES or transparency is not None or _has_palette_of_alphas(source):
            image = _converted(source, "RGBA")
            return _over_white(image.convert("RGB"), image.getchannel("A"))
        case mode:
            return _converted(source, mode if mode in _COLOUR_MODES else "RGB")


def _has_palette_of_alphas(source: Image.Image) -> bool:
    # A PNG may lack its palette; Pillow then shows greys.
    return source.mode == "P" and source.palette is not None and source.palette.mode.endswith("A")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # convert() copies even where nothing changes


def _transparency(source: Image.Image, rawmode: str) -> object:
    """Return which pixel values are transparent, as Pillow has decoded them; None for none."""
    match source.mode, source.info.get("transparency"):
        case "1" | "L", int(value):
            return value * _GREY_STEPS.get(rawmode, 1)
        case "RGB", (int(red), int(green), int(blue)):
            # Pillow keeps the upper 8 of 16 bits per channel.
            return (red >> 8, green >> 8, blue >> 8) if ";16" in rawmode else (red, green, blue)
        case "P", int(index) if index < _PALETTE_COLOURS:
            return index
        case "P", bytes(alphas):
            return alphas[:_PALETTE_COLOURS]
        case _:
            return None


def _mask_all_but(image: Image.Image, transparent: int) -> Image.Image:
    return image.point([0 if value == transparent else 255 for value in range(256)])


def _over_white(colours: Image.Image, alpha: Image.Image) -> Image.Image:
    """Return (colours × alpha + 255 × (255 - alpha)) / 255, rounded."""
    white = Image.new(colours.mode, colours.size, _WHITE[colours.mode])
    white.paste(colours, mask=alpha)
    return white


def _clear_outside_frame(image: Image.Image, frame: tuple[int, int, int, int]) -> Image.Image:
    """Paint white what the first frame of a GIF leaves of the canvas; it is transparent, but Pillow shows a colour."""
    white = Image.new(image.mode, image.size, _WHITE[image.mode])
    white.paste(image.crop(frame), frame)
    return white
