"""Whether the codec does what the recipe's snippet does, with an optional decoder and without."""

from __future__ import annotations

import subprocess
import sys

from bodies import recipe

from datafetch.model.outcome import Encoded, Failure, FailureKind
from datafetch.transcode.codec import transcode
from datafetch.transcode.spec import ImageSpec

_WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None  # importing it fails
from datafetch.transcode.codec import transcode
from datafetch.transcode.image import {decoder}
from datafetch.transcode.spec import ImageSpec
assert not {decoder}.gives_pillows_pixels()
sys.stdout.buffer.write(transcode(sys.stdin.buffer.read(), ImageSpec()).jpeg)
"""


def assert_as_the_snippet(body: bytes) -> None:
    """Check that an image fails if the snippet raises, and else has the snippet's bytes."""
    outcome = transcode(body, ImageSpec(repairs_png=False))
    try:
        expected = recipe(body, None)
    except Exception:  # noqa: BLE001 - the snippet raises anything
        assert isinstance(outcome, Failure)
        assert outcome.kind in {FailureKind.TRUNCATED, FailureKind.CORRUPT}
    else:
        assert isinstance(outcome, Encoded)
        assert outcome.jpeg == expected


def assert_same_without(package: str, decoder: str, body: bytes) -> None:
    """Check that an installation without a package gives the same JPEG, by Pillow alone.

    Args:
        package: What can't be imported.
        decoder: The module of ``datafetch.transcode.image`` that uses it.
        body: The image.
    """
    command = [sys.executable, "-c", _WITHOUT.format(decoder=decoder), package]
    without = subprocess.run(command, input=body, stdout=subprocess.PIPE, check=True).stdout
    outcome = transcode(body, ImageSpec())
    assert isinstance(outcome, Encoded)
    assert outcome.jpeg == without
