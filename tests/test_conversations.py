"""What the trainer's loader of step 0 can't use of a record."""

import pytest

from datafetch.datasets.conversations import why_no_pair

HUMAN, MODEL = {"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": "a cat"}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"conversations": [HUMAN, MODEL]}, ""),
        (5, "the record is not an object"),
        ({}, "the record has not 2 turns"),
        ({"conversations": [HUMAN]}, "the record has not 2 turns"),
        ({"conversations": [HUMAN, 5]}, "its turns are not one of human and one of gpt, with texts"),
        ({"conversations": [MODEL, HUMAN]}, "its turns are not one of human and one of gpt, with texts"),
        ({"conversations": [{"from": "human", "value": "?"}, MODEL]}, "there is no <image> in its first turn"),
    ],
)
def test_a_record_that_is_no_pair_is_refused_with_the_reason(record: object, reason: str) -> None:
    """Exactly one turn of a human, with an image, and one of the model."""
    assert why_no_pair(record) == reason
