"""Every body, however damaged, gives an outcome."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from bodies import trainers_size
from kinds import KINDS

from datafetch.demo.pictures import paint
from datafetch.model.outcome import Encoded, Failure
from datafetch.transcode.codec import transcode
from datafetch.transcode.spec import Encoding, ImageSpec, Pixels, Resize

pytestmark = pytest.mark.simd

MUTATIONS = 30
RECIPE = ImageSpec(short_side_px=12, max_pixels=1_000_000)
TINY_PX = 3  # so that JPEGs are decoded at a half and a quarter
SPECS = (
    RECIPE,
    replace(RECIPE, short_side_px=None),
    replace(RECIPE, pixels=Pixels.CORRECT),
    replace(RECIPE, encode=Encoding.ORIGINAL, short_side_px=None),
    replace(RECIPE, pixels=Pixels.CORRECT, encode=Encoding.ORIGINAL, short_side_px=None),
    replace(RECIPE, resize=Resize.FAST, short_side_px=TINY_PX),
    replace(RECIPE, pixels=Pixels.CORRECT, resize=Resize.FAST, short_side_px=TINY_PX),
    replace(RECIPE, resize=Resize.FAST, encode=Encoding.ORIGINAL, short_side_px=TINY_PX),
    replace(RECIPE, encode=Encoding.RECEIVED, short_side_px=None),
)


def mutated(body: bytes, rng: random.Random) -> bytes:
    """Change, repeat, drop or cut off a few bytes, mostly in the first half, where the headers are."""
    mutant = bytearray(body)
    for _ in range(rng.randint(1, 8)):
        at = int(len(mutant) * rng.random() ** 2)
        match rng.randrange(6):
            case 0:
                mutant[at:at] = mutant[at : at + rng.randint(1, 64)]
            case 1:
                del mutant[at : at + rng.randint(1, 64)]
            case 2:
                mutant[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\1"])
            case _:
                mutant[at : at + 1] = rng.randbytes(1)
        if not mutant:
            break
    return bytes(mutant)


@pytest.mark.matrix
@pytest.mark.usefixtures("_pillow_as_in_workers")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_bytes_give_the_same_kind_of_outcome_with_every_spec(
    kind: str, seed: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """For every kind of file, either all specs succeed or all fail, and nothing is written to the terminal.

    The trainer can open every image that is kept as received.
    """
    rng = random.Random(f"{kind} {seed}" if seed else kind)
    body = KINDS[kind](paint((27, 21), 9))
    for _ in range(MUTATIONS):
        mutant = mutated(body, rng)
        outcomes = [transcode(mutant, spec) for spec in SPECS]
        assert all(isinstance(outcome, Encoded | Failure) for outcome in outcomes)
        assert len({isinstance(outcome, Encoded) for outcome in outcomes}) == 1, (mutant, outcomes)
        match outcomes[-1]:
            case Encoded() as kept:
                assert (kept.jpeg, kept.is_original) == (mutant, True)
                assert trainers_size(mutant, tmp_path / "image") == (kept.width_px, kept.height_px)
            case _:
                pass
    # libtiff and libavif write warnings to standard error, past Python and Pillow.
    assert capfd.readouterr() == ("", "") or kind.startswith(("TIFF", "AVIF"))


@pytest.mark.rotating
@pytest.mark.usefixtures("_pillow_as_in_workers")
@pytest.mark.filterwarnings("ignore")
def test_the_details_of_damage_are_few() -> None:
    """People count the reasons in a ledger, so a reason has no offset, size or byte that differs from body to body."""
    rng = random.Random(7)
    jpeg = KINDS["JPEG RGB"](paint((270, 210), 9))
    cut = [transcode(jpeg[: rng.randrange(2, len(jpeg))], RECIPE) for _ in range(100)]
    assert len({outcome.detail for outcome in cut if isinstance(outcome, Failure)}) < 5
    details: dict[str, set[str]] = {}
    for kind, make in KINDS.items():
        body = make(paint((27, 21), 9))
        mutants = [mutated(body, rng) if number % 2 else body[: rng.randrange(len(body))] for number in range(20)]
        outcomes = [transcode(mutant, RECIPE) for mutant in mutants]
        details[kind] = {outcome.detail for outcome in outcomes if isinstance(outcome, Failure)}
    assert max(map(len, details.values())) < 10
    assert len(set().union(*details.values())) < 45
