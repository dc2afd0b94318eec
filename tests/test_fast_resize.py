"""``--resize fast`` gives known pixels, close to Pillow's and the same on every machine, or is refused."""

import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import cykooz_resizer
import numpy as np
import numpy.typing as npt
import PIL
import pytest
from bodies import saved
from kinds import KINDS
from PIL import Image

from datafetch import Transcoder
from datafetch.cli.app import main
from datafetch.demo.pictures import paint
from datafetch.errors import ConfigurationError
from datafetch.model.outcome import Encoded
from datafetch.transcode.codec import pixels, transcode
from datafetch.transcode.image.fast_resize import FastResizer, fast_resizer
from datafetch.transcode.image.fitting import shrunk_size_px
from datafetch.transcode.image.reduced_decoding import Box
from datafetch.transcode.spec import ImageSpec, Pixels, Resize

PHOTOGRAPHS = sorted((Path(__file__).parent / "photographs").glob("*.jpg"))
MODES = ("L", "RGB", "CMYK")
MISSING = "--resize fast needs the library cykooz-resizer; install it with: pip install 'vlm-datafetch[fast]'"
IS_PILLOW_SIMD = "post" in PIL.__version__
ODD_SIZES = [
    ((2, 1), (1, 1)),
    ((1, 2), (1, 1)),
    ((1, 9), (1, 8)),
    ((7, 500), (3, 214)),
    ((501, 7), (214, 3)),
    ((97, 61), (1, 1)),
    ((65_501, 3), (43_667, 2)),
    ((3, 65_501), (2, 43_667)),
    ((640, 427), (503, 336)),
    ((333, 334), (332, 333)),
]
"""Sizes and target sizes."""

pytestmark = pytest.mark.usefixtures("_pillow_as_in_workers")


def noise(mode: str, size_px: tuple[int, int]) -> Image.Image:
    """Make an image of which every sample is random."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    samples = np.random.default_rng(7).integers(0, 256, size_px[0] * size_px[1] * channels, np.uint8)
    return Image.frombytes(mode, size_px, samples.tobytes())


def samples_of(image: Image.Image) -> npt.NDArray[np.float64]:
    """Return the values of all channels."""
    return np.asarray(image, np.float64)


def psnr_db(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Return the peak signal-to-noise ratio."""
    squares = float(((one - other) ** 2).mean())
    return float("inf") if squares == 0 else 10 * float(np.log10(255**2 / squares))


@pytest.mark.simd
@pytest.mark.parametrize("ratio", [1.1, 1.3, 1.7, 2.2, 3.0, 4.2, 6.0])
@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.stem)
def test_photographs_are_shrunk_as_by_pillow(path: Path, ratio: float) -> None:
    """The figures of docs/fidelity.md hold: rounding apart, the pixels are Pillow's, and Pillow-SIMD's to the byte."""
    with Image.open(path) as source:
        photograph = source.convert("RGB")
    size_px = shrunk_size_px(photograph.size, int(min(photograph.size) / ratio))
    exact, fast = photograph.resize(size_px), fast_resizer().shrink(photograph, size_px)
    assert psnr_db(samples_of(exact), samples_of(fast)) >= 70
    assert np.abs(samples_of(exact) - samples_of(fast)).max() <= 2
    assert (exact.tobytes() == fast.tobytes()) == IS_PILLOW_SIMD


@pytest.mark.simd
@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.stem)
def test_tall_photographs_are_close_to_pillows(path: Path) -> None:
    """From version 13 on, Pillow shrinks the height of such images first, which fast never does."""
    with Image.open(path) as source:
        tall = source.convert("RGB").crop((0, 0, source.height // 3, source.height))
    size_px = shrunk_size_px(tall.size, int(tall.width / 1.7))
    exact, fast = samples_of(tall.resize(size_px)), samples_of(fast_resizer().shrink(tall, size_px))
    assert psnr_db(exact, fast) >= 54


@pytest.mark.simd
@pytest.mark.skipif(not IS_PILLOW_SIMD, reason="this is not Pillow-SIMD")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("box", [None, (0.0, 0.0, 62.5, 40.25)])
def test_the_pixels_are_those_of_pillow_simd(mode: str, box: Box | None) -> None:
    """They are the same to the byte, for any content, mode and box."""
    for size_px in [(63, 41), (64, 200), (211, 43)]:
        for target_px in [(40, 26), (17, 33), (3, 2)]:
            image = noise(mode, size_px)
            assert fast_resizer().shrink(image, target_px, box).tobytes() == image.resize(target_px, box=box).tobytes()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size_px", "target_px"), ODD_SIZES)
def test_every_instruction_set_gives_the_same_bytes(
    mode: str, size_px: tuple[int, int], target_px: tuple[int, int]
) -> None:
    """Those of the machine decide nothing. At least the plain code and the one for this machine are compared."""
    resizer = FastResizer()
    image = noise(mode, size_px)
    expected = resizer.shrink(image, target_px).tobytes()
    compared = {cykooz_resizer.CpuExtensions.none, *_own_extensions()}
    assert len(compared) > 1
    for extensions in compared:
        resizer._resizer.cpu_extensions = extensions
        assert resizer.shrink(image, target_px).tobytes() == expected


def _own_extensions() -> list[object]:
    """Return the instruction sets of this machine that the library has code for."""
    own = cykooz_resizer.Resizer().cpu_extensions
    extensions = cykooz_resizer.CpuExtensions
    return [extensions.sse4_1, own] if own == extensions.avx2 else [own]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size_px", "target_px"), ODD_SIZES)
def test_odd_sizes_are_shrunk(mode: str, size_px: tuple[int, int], target_px: tuple[int, int]) -> None:
    """A plain image stays plain, up to its edges, whatever its sides and their ratio."""
    colour = (3, 250, 99, 180)[: len(Image.new(mode, (1, 1)).getbands())]
    small = fast_resizer().shrink(Image.new(mode, size_px, colour[0] if mode == "L" else colour), target_px)
    assert small.size == target_px
    assert small.getcolors() == [(target_px[0] * target_px[1], colour[0] if mode == "L" else colour)]


@pytest.mark.rotating
@pytest.mark.parametrize("rule", Pixels)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_shrunk_fast(kind: str, rule: Pixels) -> None:
    """All formats and modes are, with the size, the metadata and nearly the pixels of exact."""
    body = KINDS[kind](paint((97, 61), 3))
    exact, fast = (ImageSpec(short_side_px=37, pixels=rule, resize=resize) for resize in Resize)
    expected = transcode(body, exact)
    if not isinstance(expected, Encoded):
        assert transcode(body, fast) == expected
        return
    with Image.open(BytesIO(body)) as one, Image.open(BytesIO(body)) as other:
        small, nearly = pixels(one, body, exact), pixels(other, body, fast)
    assert nearly.info == small.info
    assert nearly.size == small.size
    assert np.abs(samples_of(nearly) - samples_of(small)).max() <= 4


@pytest.mark.rotating
@pytest.mark.slow  # each takes a second or more; those of odd sizes are tested above
@pytest.mark.parametrize("size_px", [(9459, 9459), (37, 2_418_337), (2_418_337, 37)])
async def test_the_largest_images_are_shrunk_within_the_limits(size_px: tuple[int, int]) -> None:
    """A codec process, in its sandbox and with its bounded memory, shrinks images of up to ``--max-pixels``."""
    body = saved(Image.new("RGB", size_px, (200, 100, 50)), "PNG")
    short_side_px = 336 if min(size_px) > 336 else 1
    async with Transcoder(ImageSpec(short_side_px=short_side_px, resize=Resize.FAST), processes=1) as transcoder:
        outcome = await transcoder(body)
    assert isinstance(outcome, Encoded)
    assert (outcome.width_px, outcome.height_px) == shrunk_size_px(size_px, short_side_px)


@pytest.mark.rotating
def test_without_the_extra_one_line_says_what_to_install(tmp_path: Path) -> None:
    """The command refuses the option before anything is read; only images that are shrunk need the library."""
    arguments = ["prepare", "coyo", "--source", str(tmp_path), "--root", str(tmp_path / "root"), "--resize", "fast"]
    command = [sys.executable, "-c", _WITHOUT_LIBRARY, *arguments]
    finished = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 2
    assert finished.stderr == f"datafetch: {MISSING}\n"
    assert not (tmp_path / "root").exists()
    assert main([*arguments, "--short-side", "none", "--dry-run"]) == 2


_WITHOUT_LIBRARY = (
    "import sys; sys.modules['cykooz_resizer'] = None; from datafetch.cli.app import main; sys.exit(main())"
)


async def test_the_library_is_missed_before_the_first_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the pool nor the codec blames an image for it."""
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)  # as the import system marks what there is not
    fast_resizer.cache_clear()
    spec = ImageSpec(short_side_px=24, resize=Resize.FAST)
    with pytest.raises(ConfigurationError, match="fast needs the library cykooz-resizer; "):
        await Transcoder(spec, processes=1).__aenter__()
    with pytest.raises(ConfigurationError, match="fast needs the library cykooz-resizer; "):
        transcode(b"no image", spec)


def test_other_pixels_than_the_known_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the version of the library says: with another filter, its pixels are not those that are known."""
    other = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.mitchell)
    monkeypatch.setattr(cykooz_resizer.ResizeAlg, "convolution", lambda _: other)
    with pytest.raises(ConfigurationError, match=r"^cykooz-resizer [\d.]+ with Pillow .* gives other pixels than "):
        FastResizer()


def test_a_pillow_whose_images_the_library_does_not_know_is_refused(tmp_path: Path) -> None:
    """It reads them in memory, where anything could be in their place."""
    (tmp_path / "pillow-14.0.0.dist-info").mkdir()
    (tmp_path / "pillow-14.0.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: pillow\nVersion: 14.0.0\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    code = "from datafetch.transcode.image.fast_resize import FastResizer; FastResizer()"
    finished = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment, timeout=60
    )
    assert finished.stderr.splitlines()[-1] == (
        "datafetch.errors.ConfigurationError: --resize fast works with Pillow up to version 13, and not with 14.0.0; "
        "install one with: pip install 'vlm-datafetch[fast]', or use --resize exact"
    )
