"""Memory that is let go of goes back to the system, while this process lives."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
_MMAP_THRESHOLD_BYTES = 1024 * 1024
_KEPT_BYTES = 16 * 1024 * 1024


def give_memory_back() -> None:
    """Tell the allocators of this process not to hoard. For a command's own process: a library has no say in that.

    Arrow's default allocator keeps what it once had, 40 MB of the 200 MB of a run
    (benchmarks/durability/manifest_memory.py); it is chosen when Arrow is loaded, so this comes before. glibc takes the
    size of the largest block that was ever freed for what is common, and from then on cuts blocks of that size out of
    its heap, where gaps are left: bodies of 30 MB within a budget of 256 MiB then take up to 450. It also trims its
    heap for 128 KiB, as much as an image brings and takes away again: up to a dozen page faults each.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
