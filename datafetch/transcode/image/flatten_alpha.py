"""An image decoded to 8 bits, its transparency composed over white.

Rules: what comes out is L, RGB or CMYK, in the colours of the file: profiles are colour.py's. Palettes and single
transparent colours count as transparency. What a file says wrongly about its transparency loses no image.
"""

from __future__ import annotations

from PIL import Image, ImageFile

from datafetch.transcode.image.bit_depth import DEEP_MODES, all_but, grey

_COLOUR_MODES = frozenset({"L", "RGB", "CMYK"})
_WHITE: dict[str, int | tuple[int, ...]] = {"L": 255, "RGB": (255, 255, 255)}
_ALPHA_MODES = frozenset({"PA", "RGBA", "RGBa"})
_PALETTE_COLOURS = 256
# What a grey of PNG's 2 or 4 bits is multiplied with to become one of 8; Pillow does so with the pixels, and leaves the
# transparent grey as the file has it.
_STEPS = {"L;2": 85, "L;4": 17}


def opaque(source: ImageFile.ImageFile) -> Image.Image:
    """Decode an opened image to L, RGB or CMYK of 8 bits, over white."""
    tile = source.tile[0] if source.tile else None
    source.load()
    rawmode = str(tile[3]) if tile else ""
    if source.mode in DEEP_MODES:
        return _opaque_deep(source)
    image = _opaque(source, _transparency(source, rawmode))
    frame = tile[1] if tile else None
    if source.format == "GIF" and frame is not None and frame != (0, 0, *source.size):
        return _framed(image, frame)
    return image


def _opaque_deep(source: Image.Image) -> Image.Image:
    colour = grey(source)
    transparent = source.info.get("transparency")
    return _over_white(colour, all_but(source, transparent)) if isinstance(transparent, int) else colour


def _opaque(source: Image.Image, transparency: object) -> Image.Image:
    if transparency is None:
        source.info.pop("transparency", None)
    else:
        source.info["transparency"] = transparency
    match source.mode:
        case "1" | "L":
            colour = source.convert("L")
            return _over_white(colour, _all_but(colour, transparency)) if isinstance(transparency, int) else colour
        case "LA" | "La":
            image = _converted(source, "LA")
            return _over_white(image.convert("L"), image.getchannel("A"))
        case mode if mode in _ALPHA_MODES or transparency is not None or _has_palette_of_alphas(source):
            image = _converted(source, "RGBA")
            return _over_white(image.convert("RGB"), image.getchannel("A"))
        case mode:
            return _converted(source, mode if mode in _COLOUR_MODES else "RGB")


def _has_palette_of_alphas(source: Image.Image) -> bool:
    # A PNG may lack its palette; then Pillow shows greys.
    return source.mode == "P" and source.palette is not None and source.palette.mode.endswith("A")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # Pillow would copy it


def _transparency(source: Image.Image, rawmode: str) -> object:
    """Which of the image's values are transparent, in the values that Pillow has decoded; None for none."""
    match source.mode, source.info.get("transparency"):
        case "1" | "L", int(value):
            return value * _STEPS.get(rawmode, 1)
        case "RGB", (int(red), int(green), int(blue)):
            # Of 16 bits a channel Pillow keeps the upper 8.
            return (red >> 8, green >> 8, blue >> 8) if ";16" in rawmode else (red, green, blue)
        case "P", int(index) if index < _PALETTE_COLOURS:
            return index
        case "P", bytes(alphas):
            return alphas[:_PALETTE_COLOURS]
        case _:
            return None


def _all_but(image: Image.Image, transparent: int) -> Image.Image:
    return image.point([0 if value == transparent else 255 for value in range(256)])


def _over_white(colour: Image.Image, alpha: Image.Image) -> Image.Image:
    """(colour × alpha + 255 × (255 - alpha)) / 255, rounded."""
    white = Image.new(colour.mode, colour.size, _WHITE[colour.mode])
    white.paste(colour, mask=alpha)
    return white


def _framed(image: Image.Image, frame: tuple[int, int, int, int]) -> Image.Image:
    """A GIF whose first frame leaves some of the canvas bare: that is transparent, and Pillow shows a colour there."""
    white = Image.new(image.mode, image.size, _WHITE[image.mode])
    white.paste(image.crop(frame), frame)
    return white
