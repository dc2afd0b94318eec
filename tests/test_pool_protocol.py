"""The messages between a worker and its parent."""

import pytest

from datafetch.model.outcome import Encoded, Failure, FailureKind, Permission
from datafetch.transcode.pool.protocol import (
    BatchRequest,
    EncodedInBuffer,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)

ENCODED = Encoded(b"jpeg", 4, 3, "PNG", "ab12", is_original=True, permitted=(Permission.MAX_PIXELS,))
FAILURE = Failure(FailureKind.TRUNCATED, "it ends early", sha256="cd34")


@pytest.mark.parametrize("lengths", [[], [0], [1, 2**32 - 1, 3]])
def test_a_request_arrives(lengths: list[int]) -> None:
    """The number of the buffer and the lengths survive encoding and decoding."""
    request = decode_request(encode_request(BatchRequest(1, lengths)))
    assert (request.buffer, list(request.lengths)) == (1, lengths)


@pytest.mark.parametrize("is_last", [True, False])
def test_a_reply_arrives(is_last: bool) -> None:
    """Outcomes survive encoding and decoding, except for their JPEGs, which are in the shared buffer."""
    reply = decode_reply(encode_reply(1, [ENCODED, FAILURE], is_last=is_last))
    encoded, failure = reply.answers
    assert isinstance(encoded, EncodedInBuffer)
    assert encoded.jpeg_length == len(ENCODED.jpeg)
    assert encoded.with_jpeg(ENCODED.jpeg) == ENCODED
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
def test_an_invalid_reply_is_refused(payload: bytes) -> None:
    """A compromised worker may send anything, and nothing but ValueError is raised."""
    with pytest.raises(ValueError):  # noqa: PT011 - orjson and the enums word some of the messages
        decode_reply(payload)
