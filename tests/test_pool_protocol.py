"""What a codec process and its parent say to each other."""

import pytest

from datafetch.model.outcome import Encoded, Failure, FailureKind, Permission
from datafetch.transcode.pool.protocol import (
    Arrival,
    Request,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)

ENCODED = Encoded(b"jpeg", 4, 3, "PNG", "ab12", is_original=True, permitted=(Permission.MAX_PIXELS,))
FAILURE = Failure(FailureKind.TRUNCATED, "it ends early", sha256="cd34")


@pytest.mark.parametrize("lengths", [[], [0], [1, 2**32 - 1, 3]])
def test_a_request_arrives(lengths: list[int]) -> None:
    """The lengths of a batch arrive as they were."""
    request = decode_request(encode_request(Request(1, lengths)))
    assert (request.buffer, list(request.lengths)) == (1, lengths)


@pytest.mark.parametrize("is_last", [True, False])
def test_a_reply_arrives(is_last: bool) -> None:
    """Outcomes arrive as they were, without their JPEGs, which lie in the tray."""
    reply = decode_reply(encode_reply(1, [ENCODED, FAILURE], is_last=is_last))
    arrival, failure = reply.answers
    assert isinstance(arrival, Arrival)
    assert arrival.jpeg_length == len(ENCODED.jpeg)
    assert arrival.with_jpeg(ENCODED.jpeg) == ENCODED
    assert failure == FAILURE
    assert (reply.buffer, reply.is_last) == (1, is_last)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"{}",
        b"[]",
        b"[0, [], 1]",
        b'["0", [], true]',
        b"[0, [7], true]",
        b'[0, [["no_such_kind", "", ""]], true]',
        b'[0, [[4, 3, "PNG", "ab12", false, "4", []]], true]',
        b'[0, [[4, 3, "PNG", "ab12", false, 4, ["everything"]]], true]',
        b'[0, [[4, 3, "PNG", "ab12", false, 4, [[]]]], true]',
        b"[" * 10_000,
    ],
)
def test_nonsense_is_refused(payload: bytes) -> None:
    """A process that a decoder's bug has overwhelmed may say anything; nothing else is raised than ValueError."""
    with pytest.raises(ValueError):  # noqa: PT011 - what it says is not ours alone to say
        decode_reply(payload)
