"""The worker of the minimal pool (``pool_sockets``): a process that reads bodies and writes outcomes.

A message is the length of its head as a u32, the pickled head, and the parts whose lengths the head gives, unless these
are in shared memory. The head of the first message is the codec and its spec. The head of a request is the lengths of
the bodies; that of a reply is the outcomes without their JPEGs, and the lengths of the JPEGs.
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
"""Space for the bodies of a batch, and later for their JPEGs, which may be larger."""


class Slots:
    """Shared memory in two slots that batches use in turn. The JPEGs of a batch replace its bodies in the same slot.

    One side writes bodies and reads JPEGs, the other does the opposite. Both count the slots that they have used.
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
        """Copy the parts out of the next slot, which will be overwritten."""
        start = self._read % BATCHES_IN_HAND * SLOT_BYTES
        self._read += 1
        ends = accumulate(lengths, initial=start)
        return [self._memory[end : end + length] for end, length in zip(ends, lengths, strict=False)]


def main() -> None:
    """Serve the socket that the parent passed as standard input, until it closes."""
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
