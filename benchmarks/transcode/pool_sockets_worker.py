"""The other side of the minimal pool: a process that reads bodies and writes outcomes.

A message is u32 + a pickled head + what the head gives the lengths of, here or in shared memory. The first is the
orders: codec and spec. A request's head is the lengths of the bodies; a reply's, the outcomes without their JPEGs and
the lengths of those.
"""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate

from benchmarks.transcode.pool_coalescer import BATCHES_IN_HAND
from datafetch.model.outcome import Encoded

U32 = struct.Struct("<I")
SLOT_BYTES = 16 * 1024 * 1024
"""Room for the bodies of a batch, then for the JPEGs made of them, which may be larger."""


class Slots:
    """Shared memory in two slots, that batches use in turn; the JPEGs of a batch lie where its bodies lay.

    One side writes bodies and reads JPEGs, the other reads bodies and writes JPEGs; each counts for itself.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._written = 0
        self._read = 0

    def write(self, parts: Sequence[bytes]) -> None:
        """Fill the next slot."""
        offset = self._written % BATCHES_IN_HAND * SLOT_BYTES
        self._written += 1
        end = offset + SLOT_BYTES
        for part in parts:
            assert offset + len(part) <= end, "a batch has outgrown its slot"
            self._memory[offset : offset + len(part)] = part
            offset += len(part)

    def read(self, lengths: Sequence[int]) -> list[bytes]:
        """Copy out of the next slot, for it will be filled again."""
        start = self._read % BATCHES_IN_HAND * SLOT_BYTES
        self._read += 1
        ends = accumulate(lengths, initial=start)
        return [self._memory[end : end + length] for end, length in zip(ends, lengths, strict=False)]


def main() -> None:
    """Serve the socket that the parent left as standard input, until it closes."""
    memory = int(sys.argv[1])
    slots = Slots(mmap.mmap(memory, 0)) if memory >= 0 else None
    with suppress(ConnectionError), socket.socket(fileno=os.dup(0)) as channel, channel.makefile("rwb") as stream:
        codec, spec = pickle.loads(stream.read(*U32.unpack(stream.read(U32.size))))
        while prefix := stream.read(U32.size):
            lengths = pickle.loads(stream.read(*U32.unpack(prefix)))
            bodies = slots.read(lengths) if slots else [stream.read(length) for length in lengths]
            outcomes = [codec(body, spec) for body in bodies]
            jpegs = [outcome.jpeg for outcome in outcomes if isinstance(outcome, Encoded)]
            bare = [replace(outcome, jpeg=b"") if isinstance(outcome, Encoded) else outcome for outcome in outcomes]
            head = pickle.dumps((bare, [len(jpeg) for jpeg in jpegs]))
            if slots:
                slots.write(jpegs)
                jpegs = []
            stream.writelines([U32.pack(len(head)), head, *jpegs])
            stream.flush()
