"""The correct pixels are those that a viewer shows, compared with arithmetic that is independent of Pillow."""

import struct
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pytest
from bodies import (
    P3_COLOURANTS,
    SRGB_COLOURANTS,
    Array,
    Tags,
    cmyk_profile,
    exif,
    framed_gif,
    grey_profile,
    linear_to_srgb,
    png,
    rgb_profile,
    saved,
    srgb_to_linear,
    tiff,
    with_segment,
    ycck,
)
from kinds import KINDS, TURNS, in_mode
from PIL import Image, TiffImagePlugin, features

from datafetch.demo.pictures import paint
from datafetch.model.outcome import Encoded
from datafetch.transcode.codec import pixels, supported_formats, transcode
from datafetch.transcode.image.icc import _transform, differs_from_srgb
from datafetch.transcode.spec import ImageSpec, Pixels

CORRECT = ImageSpec(pixels=Pixels.CORRECT)
SMALL = ImageSpec(pixels=Pixels.CORRECT, short_side_px=24)
SIZE_PX = (21, 13)

pytestmark = [
    pytest.mark.simd,
    pytest.mark.usefixtures("_pillow_as_in_workers"),
    pytest.mark.filterwarnings("ignore"),  # Pillow's warnings about odd files, which forkserver.py silences as well
]
needs_profiles = pytest.mark.skipif(not features.check("littlecms2"), reason="this Pillow has no Little CMS")


def written(body: bytes, spec: ImageSpec = CORRECT) -> npt.NDArray[np.int64]:
    """Return the pixels before they are encoded as JPEG, and check that the JPEG is made of them."""
    with Image.open(BytesIO(body)) as source:
        picture = pixels(source, body, spec)
    assert picture.mode == "RGB"
    outcome = transcode(body, spec)
    assert isinstance(outcome, Encoded), outcome
    assert outcome.jpeg == saved(Image.fromarray(np.asarray(picture)), "JPEG")
    assert (outcome.width_px, outcome.height_px) == picture.size
    return np.asarray(picture, np.int64)


def grey_as_rgb(values: Array) -> npt.NDArray[np.int64]:
    """Repeat the values in each channel."""
    return np.repeat(values.astype(np.int64)[..., None], 3, axis=-1)


def over_white(colour: Array, alpha: Array) -> npt.NDArray[np.int64]:
    """Composite 8-bit values over white, rounded."""
    exact = colour * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)
    return (exact + 0.5).astype(np.int64)


def oriented(stored: npt.NDArray[np.int64], orientation: int) -> npt.NDArray[np.int64]:
    """Apply an EXIF orientation: it says on which sides the stored first row and first column are shown."""
    mirrored = stored[:, ::-1]
    shown = {
        1: stored,
        2: mirrored,  # top, right
        3: np.rot90(stored, 2),  # bottom, right
        4: np.rot90(mirrored, 2),  # bottom, left
        5: np.rot90(mirrored, 1),  # left, top
        6: np.rot90(stored, -1),  # right, top
        7: np.rot90(mirrored, -1),  # right, bottom
        8: np.rot90(stored, 1),  # left, bottom
    }
    return shown[orientation]


def noise(channels: int, max_value: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Create random samples of SIZE_PX, which include 0 and ``max_value``."""
    samples = np.random.default_rng(seed).integers(0, max_value + 1, (SIZE_PX[1], SIZE_PX[0], channels))
    samples[0, 0], samples[0, 1] = 0, max_value
    return samples


@pytest.mark.parametrize("spec", [CORRECT, ImageSpec(pixels=Pixels.CORRECT, short_side_px=5)])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(
    "name", [name for name in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") if name in supported_formats()]
)
def test_an_image_is_shown_upright(name: str, orientation: int, order: str, spec: ImageSpec) -> None:
    """This holds for all eight EXIF orientations, in every format that has EXIF, also if the image is shrunk."""
    picture = paint(SIZE_PX, orientation)
    options = {"lossless": True} if name == "WEBP" else {}
    plain = saved(picture, name, **options)
    if name == "TIFF":
        body = saved(picture, name, tiffinfo={274: orientation}, big_tiff=order == ">")
    elif name == "JPEG":
        body = with_segment(plain, 0xE1, exif(orientation, order))
    else:
        body = saved(picture, name, **options, exif=exif(orientation, order))
    shown = written(body, spec)
    # Pillow rotates a TIFF before it is shrunk. Rows and columns are shrunk in turn, with rounding in between.
    assert np.abs(shown - oriented(written(plain, spec), orientation)).max() <= 2 * (
        name == "TIFF" and spec is not CORRECT
    )


@pytest.mark.parametrize(
    "content",
    [
        exif(0),
        exif(9),
        exif(6, kind=7),
        exif(6)[:30],
        b"Exif\0\0",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0??*\0\x08\0\0\0",
    ],
)
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_corrupt_exif_does_not_fail_an_image(name: str, content: bytes) -> None:
    """If EXIF is cut off, points nowhere or has an impossible value, the image counts as upright."""
    picture = paint(SIZE_PX, 2)
    body = with_segment(saved(picture, name), 0xE1, content) if name == "JPEG" else saved(picture, name, exif=content)
    assert np.array_equal(written(body), written(saved(picture, name)))


def test_exif_after_the_pixels_counts() -> None:
    """A PNG may have its EXIF after its pixels, and without a prefix."""
    samples = noise(3, 255)
    plain = png(samples, 8, 2)
    body = plain[:-12] + png(samples, 8, 2, [(b"eXIf", exif(6)[6:])])[33:-12].split(b"IDAT")[0][:-4] + plain[-12:]
    assert np.array_equal(written(body), oriented(samples, 6))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("colour", [4, 6])
@pytest.mark.parametrize("depth", [8, 16])
def test_alpha_is_composited_over_white(depth: int, colour: int, interlaced: bool) -> None:
    """Exact for 8 bits; of 16 bits Pillow keeps the upper 8, which is at most one less than rounding."""
    samples = noise({4: 2, 6: 4}[colour], 2**depth - 1)
    kept = samples >> (depth - 8)
    shown = kept[..., [0, 0, 0]] if colour == 4 else kept[..., :3]
    expected = over_white(shown, kept[..., -1])
    assert np.array_equal(written(png(samples, depth, colour, interlaced=interlaced)), expected)


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
def test_alpha_in_other_formats(name: str) -> None:
    """RGBA in formats that Pillow writes without loss is composited over white."""
    picture = in_mode(paint(SIZE_PX, 4), "RGBA")
    options = {"lossless": True, "exact": True} if name == "WEBP" else {}
    samples = np.asarray(picture, np.int64)
    assert np.array_equal(written(saved(picture, name, **options)), over_white(samples[..., :3], samples[..., 3]))


@pytest.mark.skipif(("La", "La") not in TiffImagePlugin.OPEN_INFO.values(), reason="this Pillow does not read it")
def test_premultiplied_grey_is_composited_over_white() -> None:
    """A TIFF whose grey is premultiplied is divided by its alpha first."""
    samples = noise(2, 255)
    samples[..., 0] = samples[..., 0] * samples[..., 1] // 255
    tags: Tags = {
        256: SIZE_PX[0],
        257: SIZE_PX[1],
        258: [8, 8],
        259: 1,
        262: 1,
        277: 2,
        338: 1,
    }
    expected = grey_as_rgb(samples[..., 0] + 255 - samples[..., 1])
    assert np.abs(written(tiff(samples.astype(np.uint8).tobytes(), tags)) - expected).max() <= 1


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_palette_with_alphas_is_composited(depth: int, interlaced: bool) -> None:
    """Each palette entry may have an alpha; entries past the end of the list are opaque."""
    indices = noise(1, 2**depth - 1)
    palette = np.random.default_rng(depth).integers(0, 256, (2**depth, 3))
    alphas = np.full(2**depth, 255)
    alphas[: 2**depth - 1] = np.random.default_rng(depth + 1).integers(0, 255, 2**depth - 1)
    chunks = [(b"PLTE", palette.astype(np.uint8).tobytes()), (b"tRNS", alphas[:-1].astype(np.uint8).tobytes())]
    expected = over_white(palette, alphas)[indices[..., 0]]
    assert np.array_equal(written(png(indices, depth, 3, chunks, interlaced=interlaced)), expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_missing_palette_does_not_fail_an_image(depth: int) -> None:
    """The recipe keeps a PNG without its palette, and so do the correct pixels."""
    body = png(noise(1, 2**depth - 1), depth, 3)
    assert isinstance(transcode(body, ImageSpec()), Encoded)
    assert written(body).shape == (SIZE_PX[1], SIZE_PX[0], 3)


def test_a_transparent_index_beyond_the_palette_is_ignored() -> None:
    """A list of alphas may be longer than the palette, with its only transparent entry past the end."""
    indices, palette = noise(1, 255), np.arange(768).astype(np.uint8)
    body = png(indices, 8, 3, [(b"PLTE", palette.tobytes()), (b"tRNS", b"\xff" * 280 + b"\0")])
    assert np.array_equal(written(body), palette.reshape(256, 3)[indices[..., 0]])


def test_only_the_lower_8_bits_of_a_transparent_colour_count() -> None:
    """It is stored in 16 bits, of which a writer may have set the upper ones."""
    samples = noise(3, 255)
    expected = samples.copy()
    expected[3, 3] = 255
    body = png(samples, 8, 2, [(b"tRNS", (samples[3, 3] + 256).astype(">u2").tobytes())])
    assert np.array_equal(written(body), expected)


def test_excess_alphas_of_a_palette_are_ignored() -> None:
    """Alphas after that of the last palette entry have no effect."""
    indices, palette = noise(1, 255), np.arange(768).astype(np.uint8)
    body = png(indices, 8, 3, [(b"PLTE", palette.tobytes()), (b"tRNS", bytes(range(256)) + b"\1\2\3")])
    assert np.array_equal(written(body), over_white(palette.reshape(-1, 3), np.arange(256))[indices[..., 0]])


@pytest.mark.parametrize("clear", [0, 5, 255])
def test_the_transparent_colour_of_a_gif_becomes_white(clear: int) -> None:
    """A GIF has at most one transparent colour."""
    picture = paint(SIZE_PX, 3).convert("P", palette=Image.Palette.ADAPTIVE)
    picture.putpixel((3, 4), clear)
    body = saved(picture, "GIF", transparency=clear, optimize=False)
    expected = np.asarray(picture.convert("RGB"), np.int64).copy()
    expected[np.asarray(picture) == clear] = 255
    assert np.array_equal(written(body), expected)


def test_the_uncovered_canvas_of_a_gif_becomes_white() -> None:
    """The part that no frame covers is transparent."""
    picture = paint(SIZE_PX, 3).convert("P")
    expected = np.full((SIZE_PX[1] + 9, SIZE_PX[0] + 9, 3), 255)
    expected[4:-5, 2:-7] = np.asarray(picture.convert("RGB"))
    assert np.array_equal(written(framed_gif(picture, 2, 4, (SIZE_PX[0] + 9, SIZE_PX[1] + 9))), expected)


@pytest.mark.parametrize("clear", [0, 1])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_becomes_white(depth: int, clear: int) -> None:
    """It is compared at the depth of the file: 1 of 15 is another grey than 1 of 255."""
    samples = noise(1, 2**depth - 1)
    samples[3, 3:6] = clear
    expected = (samples[..., 0] * 255 + (2**depth - 1) // 2) // (2**depth - 1)
    expected[samples[..., 0] == clear] = 255
    body = png(samples, depth, 0, [(b"tRNS", struct.pack(">H", clear))])
    assert np.array_equal(written(body), grey_as_rgb(expected))


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_becomes_white(depth: int) -> None:
    """Pillow keeps the upper 8 of 16 bits per channel, and so does the comparison."""
    samples = noise(3, 2**depth - 1)
    clear = samples[3, 3]
    samples[4, 4:8] = clear
    expected = samples >> (depth - 8)
    expected[(expected == clear >> (depth - 8)).all(axis=-1)] = 255
    body = png(samples, depth, 2, [(b"tRNS", clear.astype(">u2").tobytes())])
    assert np.array_equal(written(body), expected)


@pytest.mark.parametrize("interlaced", [False, True])
def test_grey_of_16_bits_is_scaled(interlaced: bool) -> None:
    """Each of the 65,536 greys is rounded to the nearest of 256."""
    samples = np.arange(65_536).reshape(256, 256)
    expected = grey_as_rgb((samples * 255 / 65_535).round())
    assert np.array_equal(written(png(samples, 16, 0, interlaced=interlaced)), expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("shape", ["plain", "tiff_lzw", "tiff_adobe_deflate"])
def test_grey_of_16_bits_in_a_tiff(order: str, shape: str) -> None:
    """Greys of both byte orders, compressed and not, are scaled in the same way."""
    samples = np.arange(65_536).reshape(256, 256)
    picture = Image.fromarray(samples.astype(f"{order}u2"))
    body = saved(picture, "TIFF") if shape == "plain" else saved(picture, "TIFF", compression=shape)
    assert np.array_equal(written(body), grey_as_rgb((samples * 255 / 65_535).round()))


def test_a_16_bit_tiff_in_which_0_is_white_is_inverted() -> None:
    """A TIFF may declare that 0 is white."""
    samples = np.arange(65_536).reshape(256, 256)
    tags: Tags = {256: 256, 257: 256, 258: 16, 259: 1, 262: 0, 277: 1}
    body = tiff(samples.astype("<u2").tobytes(), tags)
    assert np.array_equal(written(body), grey_as_rgb(255 - (samples * 255 / 65_535).round()))


@pytest.mark.parametrize(
    ("dtype", "least", "max_value"),
    [
        ("<i4", 0, 65_535),
        ("<f4", 0.0, 1.0),
        ("<i4", -70_000, 3_000_000),
        ("<f4", -3.5, 12_000.0),
        ("<f4", 0.0, 65_535.0),
    ],
)
def test_numbers_are_stretched_to_greys(dtype: str, least: float, max_value: float) -> None:
    """16-bit integers and fractions use their own range; other numbers are stretched from minimum to maximum."""
    samples = np.linspace(least, max_value, 256).astype(dtype).reshape(16, 16)
    exact = (samples.astype(float) - least) / (max_value - least) * 255
    shown = written(saved(Image.fromarray(samples), "TIFF"))
    assert np.abs(shown - grey_as_rgb(exact.round())).max() <= 1
    assert np.abs(shown[..., 0] - exact).max() <= 0.501


@pytest.mark.parametrize("value", [0.25, np.nan, np.inf])
def test_numbers_without_a_range_do_not_fail_an_image(value: float) -> None:
    """If all values are equal, NaN or infinite, the result is still an image."""
    samples = np.full((4, 4), value, "<f4")
    samples[0, 0] = 0.5
    assert written(saved(Image.fromarray(samples), "TIFF")).shape == (4, 4, 3)


def test_cmyk_without_a_profile_is_converted_like_pillow() -> None:
    """(255 - ink) × (255 - black) / 255, for a JPEG, in which Adobe stores inks inverted, and for a TIFF."""
    samples = noise(4, 255).astype(np.uint8)
    light = 255 - samples.astype(np.int64)
    expected = (light[..., :3] * light[..., 3:] / 255 + 0.5).astype(np.int64)
    assert np.array_equal(written(saved(Image.fromarray(samples, "CMYK"), "TIFF")), expected)
    flat = Image.new("CMYK", (16, 16), (40, 90, 160, 30))
    assert np.abs(written(saved(flat, "JPEG", quality=95)) - [189, 145, 84]).max() <= 2


def test_ycck_is_converted_like_cmyk() -> None:
    """The CMYK that libjpeg makes of it is inverted by Pillow."""
    brightness, blue, red, black = 180, 110, 150, 200  # as stored; Pillow inverts them
    body = ycck(Image.new("CMYK", (16, 16), (255 - brightness, 255 - blue, 255 - red, 255 - black)), quality=95)
    seen = np.array([1.402 * (red - 128), -0.344136 * (blue - 128) - 0.714136 * (red - 128), 1.772 * (blue - 128)])
    stored_ink = 255 - (brightness + seen)
    assert np.abs(written(body) - (stored_ink * black / 255)).max() <= 2


@needs_profiles
class TestProfiles:
    """ICC profiles are applied to images in other colour spaces."""

    def test_swapped_colourants_swap_the_channels(self) -> None:
        """A profile that exchanges sRGB's red and green exchanges the channels."""
        samples = noise(3, 255)
        profile = rgb_profile(SRGB_COLOURANTS[[1, 0, 2]])
        body = saved(Image.fromarray(samples.astype(np.uint8)), "PNG", icc_profile=profile)
        assert np.abs(written(body) - samples[..., [1, 0, 2]]).max() <= 1

    @pytest.mark.parametrize("name", ["PNG", "TIFF", "WEBP"])
    def test_display_p3(self, name: str) -> None:
        """The result is the colorimetric one: linear light, XYZ, sRGB's primaries, clipped, and back."""
        samples = noise(3, 255)
        options = {"lossless": True} if name == "WEBP" else {}
        profile = rgb_profile(P3_COLOURANTS)
        body = saved(Image.fromarray(samples.astype(np.uint8)), name, icc_profile=profile, **options)
        light = srgb_to_linear(samples / 255) @ P3_COLOURANTS @ np.linalg.inv(SRGB_COLOURANTS)
        assert np.abs(written(body) - linear_to_srgb(light) * 255).max() <= 2

    @pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
    def test_grey_with_a_curve(self, mode: str) -> None:
        """Linear grey is converted to sRGB's curve, after transparency has been composited."""
        picture = in_mode(paint(SIZE_PX, 3), mode)
        body = saved(picture, "PNG", icc_profile=grey_profile(lambda value: value))
        plain = written(saved(picture, "PNG"))
        assert np.abs(written(body) - linear_to_srgb(plain / 255) * 255).max() <= 1

    @pytest.mark.parametrize("name", ["JPEG", "TIFF"])
    def test_cmyk_with_a_profile(self, name: str) -> None:
        """The test's profile maps black alone to lightness, from L* 100 to 0."""
        inks = [(0, 0, 0, 0), (255, 255, 255, 0), (0, 0, 0, 255), (90, 10, 200, 128), (0, 50, 0, 51)]
        for ink in inks:
            body = saved(Image.new("CMYK", (16, 16), ink), name, icc_profile=cmyk_profile())
            lightness = 100 * (1 - ink[3] / 255)
            luminance = ((lightness + 16) / 116) ** 3 if lightness > 8 else lightness / 903.3
            assert np.abs(written(body) - linear_to_srgb(np.array(luminance)) * 255).max() <= 3, ink

    def test_shrinking_before_colour_conversion_is_close_to_after(self) -> None:
        """Shrinking first gives about the same pixels as shrinking last."""
        profile = rgb_profile(P3_COLOURANTS)
        picture = paint((90, 60), 3).point(lambda value: 64 + value // 2)  # clipping depends on the order
        small = written(saved(picture, "PNG", icc_profile=profile, exif=exif(6)), SMALL)
        large = Image.fromarray(written(saved(picture, "PNG", icc_profile=profile, exif=exif(6))).astype(np.uint8))
        assert small.shape == (36, 24, 3)
        assert np.abs(small - np.asarray(large.resize((24, 36)))).max() <= 4

    @pytest.mark.parametrize(
        "kind", ["JPEG sRGB", "JPEG with a broken profile", "JPEG with a profile of another space"]
    )
    def test_an_ineffective_or_unusable_profile_is_ignored(self, kind: str) -> None:
        """The pixels equal those without a profile exactly."""
        picture = paint(SIZE_PX, 3)
        assert np.array_equal(written(KINDS[kind](picture)), written(saved(picture, "JPEG")))

    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_a_profile_close_to_srgb_counts_as_srgb(self, mode: str) -> None:
        """A profile that changes no colour by more than 1 of 255 is ignored."""
        samples = noise(3 if mode == "RGB" else 1, 255).squeeze()
        rough = rgb_profile(SRGB_COLOURANTS + 0.0001) if mode == "RGB" else grey_profile(srgb_to_linear)
        body = saved(Image.fromarray(samples.astype(np.uint8)), "PNG", icc_profile=rough)
        assert np.array_equal(written(body), samples if mode == "RGB" else grey_as_rgb(samples))

    @pytest.mark.parametrize("name", [b"\xffGB ", b"\x80\x81\x82\x83"])
    def test_a_profile_with_an_invalid_colour_space_is_ignored(self, name: bytes) -> None:
        """A colour space that is not ASCII does not fail the image."""
        picture = paint(SIZE_PX, 3)
        profile = rgb_profile(P3_COLOURANTS)
        nameless = profile[:16] + name + profile[20:]
        assert np.array_equal(written(saved(picture, "PNG", icc_profile=nameless)), np.asarray(picture))

    def test_the_perceptual_table_of_a_profile_is_used(self) -> None:
        """This holds even if the profile also has a colorimetric table."""
        picture = Image.new("CMYK", (16, 16), (0, 0, 0, 60))
        expected = written(saved(picture, "TIFF", icc_profile=cmyk_profile()))
        assert np.array_equal(written(saved(picture, "TIFF", icc_profile=cmyk_profile(colorimetric=True))), expected)

    def test_a_profile_that_moves_greys_by_two_is_applied(self) -> None:
        """A difference from sRGB that exceeds rounding is corrected, however small."""
        samples = np.arange(256).reshape(16, 16)
        profile = grey_profile(lambda value: srgb_to_linear((value + 2 / 255).clip(0, 1)))
        shown = written(saved(Image.fromarray(samples.astype(np.uint8)), "PNG", icc_profile=profile))
        assert np.abs(shown - grey_as_rgb(samples)).max() == 2

    def test_the_number_of_cached_profiles_is_bounded(self) -> None:
        """A crawl contains any number of different profiles."""
        for step in range(40):
            assert differs_from_srgb("RGB", rgb_profile(P3_COLOURANTS + step / 10_000))
        assert _transform.cache_info().currsize <= 16

    def test_a_huge_profile_is_ignored(self) -> None:
        """Profiles above 4 MiB are not applied."""
        picture = paint(SIZE_PX, 3)
        profile = rgb_profile(P3_COLOURANTS) + bytes(4 * 1024 * 1024)
        assert np.array_equal(written(saved(picture, "TIFF", icc_profile=profile)), np.asarray(picture))


@pytest.mark.matrix
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_correct_pixels(kind: str) -> None:
    """Every kind of file succeeds, in its own size or rotated, and its JPEG contains no metadata."""
    body = KINDS[kind](paint((61, 47), 3))
    outcome = transcode(body, SMALL)
    assert isinstance(outcome, Encoded), outcome
    assert min(outcome.width_px, outcome.height_px) == 24
    with Image.open(BytesIO(outcome.jpeg)) as jpeg:
        assert jpeg.mode == "RGB"
        assert set(jpeg.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


@pytest.mark.parametrize(
    "kind",
    [
        *("JPEG RGB", "JPEG L", "JPEG CMYK", "JPEG YCCK", "JPEG progressive RGB", "JPEG not in YCbCr", "JPEG turned 1"),
        *("JPEG sRGB", "JPEG with XMP", "JPEG with corrupt EXIF", "JPEG with more after its end", "MPO"),
        *("PNG 1", "PNG L", "PNG P", "PNG RGB", "PNG 0 of 4 bits interlaced", "PNG 3 of 2 bits", "PNG 2 of 16 bits"),
        *("WEBP RGB", "WEBP lossless RGB", "GIF 1", "GIF L", "GIF P", "GIF RGB", "GIF animated"),
        *(
            "BMP 1",
            "BMP L",
            "BMP P",
            "BMP RGB",
            "BMP of 16 bits",
            "TIFF 1",
            "TIFF L",
            "TIFF P",
            "TIFF RGB",
            "TIFF CMYK",
        ),
        *("TIFF LAB", "TIFF turned 5", "TIFF in tiles <", "TIFF jpeg CMYK"),
    ],
)
def test_pixels_that_need_no_correction_equal_the_recipes(kind: str) -> None:
    """For an opaque, upright 8-bit image in sRGB, both settings give the same bytes."""
    body = KINDS[kind](paint((61, 47), 3))
    correct = transcode(body, ImageSpec(pixels=Pixels.CORRECT, short_side_px=24))
    assert isinstance(correct, Encoded)
    assert correct == transcode(body, ImageSpec(short_side_px=24))
