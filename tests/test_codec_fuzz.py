"""Whatever strangers send, there is an outcome."""

import random
from dataclasses import replace

import pytest
from kinds import KINDS

from datafetch.demo.pictures import paint
from datafetch.model import Encoded, Failure
from datafetch.transcode.codec import transcode
from datafetch.transcode.spec import Encoding, ImageSpec, Pixels, Resize

MUTATIONS = 30
RECIPE = ImageSpec(short_side_px=12, max_pixels=1_000_000)
SPECS = (
    RECIPE,
    replace(RECIPE, pixels=Pixels.CORRECT),
    replace(RECIPE, encode=Encoding.ORIGINAL, short_side_px=None),
    replace(RECIPE, pixels=Pixels.CORRECT, resize=Resize.EXACT, encode=Encoding.ORIGINAL, short_side_px=None),
)


def mutated(body: bytes, chance: random.Random) -> bytes:
    """The body with a few bytes changed, doubled, dropped, or cut off; in its first half, mostly, where headers are."""
    mutant = bytearray(body)
    for _ in range(chance.randint(1, 8)):
        at = int(len(mutant) * chance.random() ** 2)
        match chance.randrange(6):
            case 0:
                mutant[at:at] = mutant[at : at + chance.randint(1, 64)]
            case 1:
                del mutant[at : at + chance.randint(1, 64)]
            case 2:
                mutant[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\1"])
            case _:
                mutant[at : at + 1] = chance.randbytes(1)
        if not mutant:
            break
    return bytes(mutant)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_bytes_never_raise(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Seeded, for every kind of file and in every way; nor do decoders, but for two, write to anybody's terminal."""
    chance = random.Random(kind)
    body = KINDS[kind](paint((27, 21), 9))
    for _ in range(MUTATIONS):
        mutant = mutated(body, chance)
        outcomes = [transcode(mutant, spec) for spec in SPECS]
        assert all(isinstance(outcome, Encoded | Failure) for outcome in outcomes)
        normal = transcode(mutant, replace(RECIPE, short_side_px=None))
        assert isinstance(normal, Encoded) == isinstance(outcomes[0], Encoded) == isinstance(outcomes[2], Encoded)
    # Two libraries write their complaints to standard error, past Python and Pillow.
    assert capfd.readouterr() == ("", "") or kind.startswith(("TIFF", "AVIF"))
