"""SharedBuffer: memory that a worker and its parent share, which carries one batch of images there and back.

Theory of operation. A buffer is a header of two counters, the bodies of a batch one after the other, and behind them
the JPEGs that the worker makes of them (or copies of the bodies that are kept as received)::

    u32 started   written by the worker   how many images it has started; the last of them is the one at work
    u32 limit     written by the parent   how many images it may start

A buffer is *free* until the parent calls ``load`` and sends a request over the socket. From then on it is *in use*,
until the worker's last reply for the batch has been read. While it is in use the worker calls ``try_start`` before each
image, and the parent may call ``set_limit`` at any moment to take back the images that have not been started.

There is no lock, and none is needed. Each counter has a single writer while the buffer is in use, and a batch is so
small that only its lowest byte ever changes, so no half-written value can be read. The one race is that the worker
starts an image in the very instant in which the parent lowers the limit. Then two workers decode that image, and the
first answer counts. The messages on the socket order everything else: bodies are written before the request is sent,
and JPEGs before the reply.

Rules: the content of a buffer is hostile, or derived from hostile data, so each side checks every length and offset
against the size of the buffer. A buffer can't be shrunk: reading beyond the end of shared memory kills the reader.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Sequence

USUAL_BYTES = 8 * 1024 * 1024
"""What a buffer keeps from batch to batch; memory beyond it is released after the batch that needed it."""

_MAX_IMAGE_BYTES = 2**32 - 1  # a request stores lengths as u32
_HEADER = struct.Struct("<II")
_COUNTER = struct.Struct("<I")
_STARTED_OFFSET, _LIMIT_OFFSET = 0, 4


def open_shared_buffer() -> int:
    """Create the memory of a buffer of the usual size, and return its descriptor.

    Raises:
        OSError: No descriptor or no memory is left.
    """
    fd = os.memfd_create("datafetch-buffer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, _HEADER.size + USUAL_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)  # no seal can be added later
    except BaseException:
        os.close(fd)
        raise
    return fd


class SharedBuffer:
    """One side's view of a buffer; the worker and its parent each map the same descriptor.

    Args:
        fd: From ``open_shared_buffer``; it may be closed afterwards.
    """

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, os.fstat(fd).st_size)

    @property
    def started(self) -> int:
        """How many images of the batch the worker has started; the last of them is the one at work."""
        return int(_COUNTER.unpack_from(self._memory, _STARTED_OFFSET)[0])

    def load(self, bodies: Sequence[bytes]) -> None:
        """Write a batch into a free buffer; the worker may start all of it. Called by the parent."""
        self._ensure_size(sum(map(len, bodies)))
        _HEADER.pack_into(self._memory, 0, 0, len(bodies))
        start = _HEADER.size
        for body in bodies:
            self._memory[start : start + len(body)] = body
            start += len(body)

    def set_limit(self, images: int) -> None:
        """Let the worker start only the first N images; it may be starting one more in this very instant."""
        _COUNTER.pack_into(self._memory, _LIMIT_OFFSET, images)

    def try_start(self, image: int) -> bool:
        """Record that the image with this 0-based number is started; False if the parent has taken it back."""
        if image >= _COUNTER.unpack_from(self._memory, _LIMIT_OFFSET)[0]:
            return False
        _COUNTER.pack_into(self._memory, _STARTED_OFFSET, image + 1)
        return True

    def put(self, start: int, jpeg: bytes) -> None:
        """Write a JPEG at this offset from the first body. Called by the worker."""
        self._ensure_size(start + len(jpeg))
        start += _HEADER.size
        self._memory[start : start + len(jpeg)] = jpeg

    def get(self, start: int, length: int) -> bytes:
        """Read N bytes at this offset from the first body.

        Raises:
            ValueError: The buffer does not reach that far.
        """
        end = _HEADER.size + start + length
        if start < 0 or length < 0 or length > _MAX_IMAGE_BYTES:
            raise ValueError(f"a shared buffer can't hold {length} bytes at offset {start}")
        if end > len(self._memory):
            self._remap(end)
        return self._memory[_HEADER.size + start : end]

    def trim(self) -> None:
        """Return the memory beyond the usual size to the system."""
        usual_bytes = -(-(_HEADER.size + USUAL_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE
        if len(self._memory) > usual_bytes:
            self._memory.madvise(mmap.MADV_REMOVE, usual_bytes, len(self._memory) - usual_bytes)

    def close(self) -> None:
        """Unmap the memory."""
        self._memory.close()

    def _remap(self, end: int) -> None:
        """Map what the other side has added, if the buffer now reaches this end.

        Raises:
            ValueError: It does not, or it is too large to be mapped.
        """
        size = self._memory.size()
        if end > size:
            raise ValueError(f"a shared buffer of {size} bytes does not reach to byte {end}")
        try:
            self._memory.resize(size)
        except OSError as error:
            raise ValueError(f"a shared buffer of {size} bytes can't be mapped") from error

    def _ensure_size(self, length: int) -> None:
        """Enlarge the buffer until it holds N bytes behind its header."""
        needed_bytes = _HEADER.size + length
        if needed_bytes > len(self._memory):
            self._memory.resize(max(needed_bytes, self._memory.size()))
