"""Channel: messages between two processes of a run, over a stream socket of this machine.

Messages that are sent in one iteration of the event loop travel together: a list of them, in MessagePack, behind its
length. So a system call and a step of the receiver's loop serve many messages when there are many.

Rules: both ends are processes of one user (``refuse_other_user``). A message that is too long or can't be decoded is a
bug in datafetch and ends the run.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import Generic, TypeVar

import msgspec

_LENGTH = struct.Struct("<I")
_ARRAY = struct.Struct(">BI")  # MessagePack's array 32: a byte that says so, and the number of values
_ARRAY_32 = 0xDD
_FULL_FRAME_BYTES = 4 * 1024 * 1024
_MAX_FRAME_BYTES = 1 << 30  # a single message may be larger than a full frame: a document may have 64 MB
_CREDENTIALS = struct.Struct("iII")  # struct ucred of <sys/socket.h>: process, user, group

_Sent = TypeVar("_Sent")
_Received = TypeVar("_Received")


class Channel(Generic[_Sent, _Received]):
    """One end of a connection.

    Args:
        reader: Its incoming stream.
        writer: Its outgoing stream.
        received: The type of the messages that come in: a tagged ``msgspec.Struct``, or a union of such.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, received: object) -> None:
        self._reader = reader
        self._writer = writer
        self._encoder = msgspec.msgpack.Encoder()
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._decoder: msgspec.msgpack.Decoder[list[_Received]] = msgspec.msgpack.Decoder(list[received])  # type: ignore[valid-type]
        self._loop = asyncio.get_running_loop()

    def send(self, message: _Sent) -> None:
        """Send a message. Does nothing once the other end is gone; ``receive`` tells that."""
        encoded = self._encoder.encode(message)
        if self._unsent_bytes + len(encoded) > _FULL_FRAME_BYTES:
            self._flush()
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(encoded)
        self._unsent_bytes += len(encoded)

    async def receive(self) -> list[_Received]:
        """Wait for messages, in the order in which they were sent; none means that the other end is gone.

        Raises:
            msgspec.DecodeError: What came is no message.
        """
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > _MAX_FRAME_BYTES:
                raise msgspec.DecodeError(f"a frame of {length:,} bytes")
            return self._decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return []

    async def drain(self) -> None:
        """Wait until the other end has taken most of what was sent."""
        self._flush()
        try:
            await self._writer.drain()
        except ConnectionError:
            return

    def close(self) -> None:
        """Send what is left, and close the connection."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if not self._unsent:
            return
        array = _ARRAY.pack(_ARRAY_32, len(self._unsent))
        frame = b"".join((_LENGTH.pack(len(array) + self._unsent_bytes), array, *self._unsent))
        self._unsent.clear()
        self._unsent_bytes = 0
        if not self._writer.transport.is_closing():  # uvloop raises where asyncio's own loop ignores the write
            self._writer.write(frame)


def refuse_other_user(connection: socket.socket) -> None:
    """Check that the process at the other end of a socket of this machine is of this user.

    Raises:
        PermissionError: It is not.
    """
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    if user != os.geteuid():
        raise PermissionError(f"user {user} has connected to a socket of datafetch")
