"""Settings of the memory allocators, so that a process returns freed memory to the system while it runs."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
_MMAP_THRESHOLD_BYTES = 1024 * 1024
_KEPT_BYTES = 16 * 1024 * 1024


def return_freed_memory() -> None:
    """Make the allocators of this process return freed memory. Only for commands: a library must not decide this.

    Arrow's default allocator keeps freed memory, 40 MB of the 200 MB that a run takes
    (benchmarks/durability/manifest_memory.py). It is chosen when Arrow is loaded, so call this before. glibc raises its
    mmap threshold to the size of the largest block that was ever freed, and from then on cuts blocks of that size out
    of its heap, which fragments: bodies of 30 MB within a budget of 256 MiB then take up to 450 MiB. It also trims its
    heap as soon as 128 KiB are free, which each image allocates and frees again: up to a dozen page faults an image.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
