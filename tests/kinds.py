"""Every kind of image file that the codec is tested with, by name: a function from a picture to a body."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
from bodies import (
    P3_COLOURANTS,
    SRGB_COLOURANTS,
    Array,
    Chunk,
    Tags,
    cmyk_profile,
    exif,
    framed_gif,
    grey_profile,
    png,
    rgb_profile,
    saved,
    tiff,
    with_segment,
    ycck,
)
from PIL import Image

from datafetch.transcode.codec import supported_formats

Kind: TypeAlias = Callable[[Image.Image], bytes]
"""Encodes an RGB picture as a body."""

TURNS = range(1, 9)
_XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation='1'/>"


def in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """Convert a picture to any mode; if the mode has transparency, it varies from left to right."""
    if mode in {"RGBA", "LA"}:
        picture = picture.convert(mode.removesuffix("A"))
        picture.putalpha(Image.linear_gradient("L").rotate(90).resize(picture.size))
        return picture
    if mode in {"I;16", "I;16B", "I", "F"}:
        deep = np.asarray(picture.convert("L"), np.uint32) * 257
        return Image.fromarray(deep.astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4", "F": "<f4"}[mode]))
    if mode == "LAB":
        return Image.frombytes("LAB", picture.size, picture.tobytes())
    return picture.convert(mode)


def _saved(name: str, mode: str, picture: Image.Image, **options: object) -> bytes:
    return saved(in_mode(picture, mode), name, **options)


def _animated(name: str, mode: str, picture: Image.Image) -> bytes:
    second = in_mode(picture.transpose(Image.Transpose.ROTATE_180), mode)
    return saved(in_mode(picture, mode), name, save_all=True, append_images=[second])


def _segmented(marker: int, content: bytes, picture: Image.Image) -> bytes:
    return with_segment(saved(picture, "JPEG"), marker, content)


def _samples(picture: Image.Image, depth: int, channels: int) -> Array:
    rgba = np.asarray(in_mode(picture, "RGBA"), np.uint32) * 257 >> (16 - depth)
    # Grey has the first channel, with alpha the last.
    return rgba[..., {1: [0], 2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]]


def _png(depth: int, colour: int, picture: Image.Image, *, interlaced: bool = False, clear: bool = False) -> bytes:
    samples = _samples(picture, depth, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour])
    chunks: list[Chunk] = []
    if colour == 3:
        entries = np.random.default_rng(depth).integers(0, 256, 3 << depth, np.uint8)
        chunks.append((b"PLTE", entries.tobytes()))
    if clear:
        first = samples[0, 0].astype(">u2").tobytes()
        chunks.append((b"tRNS", bytes(range(0, 250, 50))[: 1 << depth] if colour == 3 else first))
    return png(samples, depth, colour, chunks, interlaced=interlaced)


def _tiff(order: str, picture: Image.Image, *, tiled: bool = False) -> bytes:
    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    tags: Tags = {256: width, 257: height, 258: [8, 8, 8], 259: 1, 262: 2, 277: 3}
    if not tiled:
        return tiff(pixels.tobytes(), tags | {278: height}, order)
    padded = np.pad(pixels, ((0, -height % 16), (0, -width % 16), (0, 0)), "edge")
    rows, columns = padded.shape[0] // 16, padded.shape[1] // 16
    tiles = padded.reshape(rows, 16, columns, 16, 3).swapaxes(1, 2)
    return tiff(tiles.tobytes(), tags | {322: 16, 323: 16}, order)


def _bmp_of_16_bits(picture: Image.Image) -> bytes:
    red, green, blue = np.asarray(picture, np.uint16).transpose(2, 0, 1)
    rows = np.pad((red >> 3 << 11 | green >> 2 << 5 | blue >> 3)[::-1], ((0, 0), (0, picture.width % 2)))
    masks = struct.pack("<3I", 0xF800, 0x7E0, 0x1F)
    header = struct.pack("<IiiHHIIiiII", 40, *picture.size, 1, 16, 3, rows.nbytes, 0, 0, 0, 0) + masks
    return b"BM" + struct.pack("<IHHI", 66 + rows.nbytes, 0, 0, 66) + header + rows.astype("<u2").tobytes()


def _jpeg_kinds() -> dict[str, Kind]:
    kinds: dict[str, Kind] = {f"JPEG {mode}": partial(_saved, "JPEG", mode) for mode in ("RGB", "L", "CMYK")}
    for mode in ("RGB", "L", "CMYK"):
        kinds[f"JPEG progressive {mode}"] = partial(_saved, "JPEG", mode, progressive=True)
    kinds |= {f"JPEG 4:{name}": partial(_saved, "JPEG", "RGB", subsampling=n) for n, name in enumerate(("44", "22"))}
    kinds |= {f"JPEG turned {turn}": partial(_segmented, 0xE1, exif(turn)) for turn in TURNS}
    kinds["JPEG turned 6, big-endian"] = partial(_segmented, 0xE1, exif(6, ">"))
    kinds["JPEG of the best quality"] = partial(_saved, "JPEG", "RGB", quality=95, optimize=True)
    kinds["JPEG with restarts"] = partial(_saved, "JPEG", "RGB", restart_marker_blocks=1)
    kinds["JPEG not in YCbCr"] = partial(_saved, "JPEG", "RGB", keep_rgb=True)
    kinds["JPEG YCCK"] = lambda picture: ycck(in_mode(picture, "CMYK"))
    kinds["JPEG with a comment"] = partial(_saved, "JPEG", "RGB", comment=b"a comment")
    kinds["JPEG with XMP"] = partial(_segmented, 0xE1, _XMP)
    kinds["JPEG with corrupt EXIF"] = partial(_segmented, 0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff")
    kinds["JPEG with more after its end"] = lambda picture: saved(picture, "JPEG") + bytes(100)
    kinds["JPEG P3"] = partial(_saved, "JPEG", "RGB", icc_profile=rgb_profile(P3_COLOURANTS))
    kinds["JPEG sRGB"] = partial(_saved, "JPEG", "RGB", icc_profile=rgb_profile(SRGB_COLOURANTS))
    kinds["JPEG grey of gamma 1"] = partial(_saved, "JPEG", "L", icc_profile=grey_profile(lambda value: value))
    kinds["JPEG CMYK with a profile"] = partial(_saved, "JPEG", "CMYK", icc_profile=cmyk_profile())
    kinds["JPEG with a profile of another space"] = partial(_saved, "JPEG", "RGB", icc_profile=cmyk_profile())
    kinds["JPEG with a broken profile"] = partial(_saved, "JPEG", "RGB", icc_profile=b"no profile")
    kinds["MPO"] = partial(_animated, "MPO", "RGB")
    return kinds


def _png_kinds() -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    for colour, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items():
        for depth in depths:
            for interlaced in (False, True):
                name = f"PNG {colour} of {depth} bits{' interlaced' * interlaced}"
                kinds[name] = partial(_png, depth, colour, interlaced=interlaced)
                if colour < 4:
                    kinds[f"{name} with a clear colour"] = partial(
                        _png, depth, colour, interlaced=interlaced, clear=True
                    )
    kinds |= {f"PNG {mode}": partial(_saved, "PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")}
    kinds |= {f"PNG turned {turn}": partial(_saved, "PNG", "RGB", exif=exif(turn)) for turn in TURNS}
    kinds["PNG P with one clear colour"] = partial(_saved, "PNG", "P", transparency=3)
    kinds["PNG P3"] = partial(_saved, "PNG", "RGBA", icc_profile=rgb_profile(P3_COLOURANTS))
    kinds["PNG animated"] = partial(_animated, "PNG", "RGBA")
    return kinds


def _kinds_of_others() -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    for mode in ("RGB", "RGBA"):
        kinds[f"WEBP {mode}"] = partial(_saved, "WEBP", mode)
        kinds[f"WEBP lossless {mode}"] = partial(_saved, "WEBP", mode, lossless=True)
        kinds[f"WEBP animated {mode}"] = partial(_animated, "WEBP", mode)
    kinds |= {f"WEBP turned {turn}": partial(_saved, "WEBP", "RGB", exif=exif(turn)) for turn in TURNS}
    kinds["WEBP P3"] = partial(_saved, "WEBP", "RGB", icc_profile=rgb_profile(P3_COLOURANTS))
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        kinds[f"GIF {mode}"] = partial(_saved, "GIF", mode)
    kinds["GIF not interlaced"] = partial(_saved, "GIF", "P", interlace=0)
    kinds["GIF with a clear colour"] = partial(_saved, "GIF", "P", transparency=5)
    kinds["GIF with a comment"] = partial(_saved, "GIF", "P", comment=b"a comment")
    kinds["GIF animated"] = partial(_animated, "GIF", "P")
    kinds["GIF in a corner"] = lambda picture: framed_gif(picture, 2, 3, (picture.width + 5, picture.height + 4))
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        kinds[f"BMP {mode}"] = partial(_saved, "BMP", mode)
    kinds["BMP of 16 bits"] = _bmp_of_16_bits
    if "AVIF" in supported_formats():
        for mode in ("RGB", "RGBA", "L"):
            kinds[f"AVIF {mode}"] = partial(_saved, "AVIF", mode, speed=10)
        kinds["AVIF turned 6"] = partial(_saved, "AVIF", "RGB", speed=10, exif=exif(6))
        kinds["AVIF animated"] = partial(_animated, "AVIF", "RGB")
    return kinds


def _tiff_kinds() -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I;16B", "I", "F")
    kinds |= {f"TIFF {mode}": partial(_saved, "TIFF", mode) for mode in modes}
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        for mode in ("L", "RGB", "RGBA", "I;16", "F"):
            kinds[f"TIFF {compression} {mode}"] = partial(_saved, "TIFF", mode, compression=compression)
    kinds |= {f"TIFF jpeg {mode}": partial(_saved, "TIFF", mode, compression="jpeg") for mode in ("L", "RGB", "CMYK")}
    for compression in ("group3", "group4"):
        kinds[f"TIFF {compression}"] = partial(_saved, "TIFF", "1", compression=compression)
    kinds |= {f"TIFF turned {turn}": partial(_saved, "TIFF", "RGB", tiffinfo={274: turn}) for turn in TURNS}
    kinds["TIFF turned 5, packed"] = partial(_saved, "TIFF", "RGB", tiffinfo={274: 5}, compression="tiff_lzw")
    kinds["TIFF P3"] = partial(_saved, "TIFF", "RGB", icc_profile=rgb_profile(P3_COLOURANTS))
    kinds["TIFF of pages"] = partial(_animated, "TIFF", "RGB")
    for order in "<>":
        kinds[f"TIFF by hand {order}"] = partial(_tiff, order)
        kinds[f"TIFF in tiles {order}"] = partial(_tiff, order, tiled=True)
    return kinds


KINDS: dict[str, Kind] = _jpeg_kinds() | _png_kinds() | _kinds_of_others() | _tiff_kinds()
