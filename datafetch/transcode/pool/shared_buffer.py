"""Tray: memory that a codec process and its parent share, for one batch of images on its way there and back.

Rules: a batch's bodies lie one after the other, and behind them the JPEGs that are made of them, or the
bodies once more that are kept as they are. What lies in a tray is
hostile data or made of it: each side believes lengths only as far as the tray reaches. A tray can't shrink, for whoever
reads beyond the end of shared memory is killed.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Sequence

ORDINARY_BYTES = 8 * 1024 * 1024
"""What a tray keeps from batch to batch; more is given back after the batch that needed it."""

_MAX_IMAGE_BYTES = 2**32 - 1  # what a request can tell of
_HEADER = struct.Struct("<II")  # images begun, written by the codec process; images that may be begun, by the parent
_COUNT = struct.Struct("<I")
_BEGUN_AT, _ALLOWED_AT = 0, 4


def open_shared_buffer() -> int:
    """A descriptor of memory for a tray of ordinary size.

    Raises:
        OSError: No descriptor or no memory for it.
    """
    fd = os.memfd_create("datafetch-tray", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, _HEADER.size + ORDINARY_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)  # and no others, by nobody
    except BaseException:
        os.close(fd)
        raise
    return fd


class SharedBuffer:
    """One batch in shared memory; each of the two processes makes its own from the same descriptor.

    Args:
        fd: From ``open_shared_buffer``; it may be closed afterwards.
    """

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, os.fstat(fd).st_size)

    @property
    def begun(self) -> int:
        """How many images of the batch the codec process has begun; the last of them is the one in its hands."""
        return int(_COUNT.unpack_from(self._memory, _BEGUN_AT)[0])

    def load(self, bodies: Sequence[bytes]) -> None:
        """Put a batch in, on the parent's side; all of it may be begun."""
        self._ensure_size(sum(map(len, bodies)))
        _HEADER.pack_into(self._memory, 0, 0, len(bodies))
        start = _HEADER.size
        for body in bodies:
            self._memory[start : start + len(body)] = body
            start += len(body)

    def allow(self, images: int) -> None:
        """Let the codec process begin only the first so many images; it may have begun another this very instant."""
        _COUNT.pack_into(self._memory, _ALLOWED_AT, images)

    def begin(self, image: int) -> bool:
        """Say that the image of this number is begun now; False when it is not to be begun any more."""
        if image >= _COUNT.unpack_from(self._memory, _ALLOWED_AT)[0]:
            return False
        _COUNT.pack_into(self._memory, _BEGUN_AT, image + 1)
        return True

    def put(self, start: int, jpeg: bytes) -> None:
        """Put a JPEG in, so many bytes from the beginning, on the side of the codec process."""
        self._ensure_size(start + len(jpeg))
        start += _HEADER.size
        self._memory[start : start + len(jpeg)] = jpeg

    def get(self, start: int, length: int) -> bytes:
        """So many bytes, so far from the beginning.

        Raises:
            ValueError: The tray does not reach so far.
        """
        end = _HEADER.size + start + length
        if start < 0 or length < 0 or length > _MAX_IMAGE_BYTES:
            raise ValueError(f"{length} bytes from {start} on are not to be had from a tray")
        if end > len(self._memory):
            self._remap(end)
        return self._memory[_HEADER.size + start : end]

    def trim(self) -> None:
        """Give the memory of an extraordinary batch back to the system."""
        ordinary_bytes = -(-(_HEADER.size + ORDINARY_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE
        if len(self._memory) > ordinary_bytes:
            self._memory.madvise(mmap.MADV_REMOVE, ordinary_bytes, len(self._memory) - ordinary_bytes)

    def close(self) -> None:
        """Let go of it."""
        self._memory.close()

    def _remap(self, end: int) -> None:
        """See as much of it as the other side has made of it, if that reaches so far.

        Raises:
            ValueError: It does not.
        """
        size = self._memory.size()
        if end > size:
            raise ValueError(f"up to {end} bytes are not to be had from a tray of {size}")
        try:
            self._memory.resize(size)
        except OSError as error:
            raise ValueError(f"a tray of {size} bytes") from error

    def _ensure_size(self, length: int) -> None:
        """Make it as large as that, if it is not."""
        needed_bytes = _HEADER.size + length
        if needed_bytes > len(self._memory):
            self._memory.resize(max(needed_bytes, self._memory.size()))
