"""Settings of the memory allocators: when a process frees memory, and whether it returns it to the system."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import MutableMapping
from contextlib import suppress

_MIB = 1024 * 1024
# Python's own thresholds are 700, 10 and 10. A thousand tasks hold more objects than that while nothing is garbage.
_GARBAGE_THRESHOLDS = 10_000, 20, 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def return_freed_memory() -> None:
    """Make the allocators of this process return freed memory. Only for commands: a library must not decide this.

    Arrow's default allocator keeps freed memory, 40 MB of the 200 MB that a run takes
    (benchmarks/durability/manifest_memory.py). It is chosen when Arrow is loaded, so call this before. glibc raises its
    mmap threshold to the size of the largest block that was ever freed, and from then on cuts blocks of that size out
    of its heap, which fragments: bodies of 30 MB within a budget of 256 MiB then take up to 450 MiB. It also trims its
    heap as soon as 128 KiB are free, which each image allocates and frees again: up to a dozen page faults an image.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    _set_thresholds(mmap_bytes=_MIB, trim_bytes=16 * _MIB)


def collect_garbage_rarely() -> None:
    """Let this process look for unreachable cycles less often. Only for commands: a library must not decide this.

    Python looks for them whenever it has 700 objects more than before, as it always has while it imports modules and
    starts tasks, and goes through all objects each time that a quarter more have survived. That is 7 to 15 % of the CPU
    time of a fetching process, which leaves few cycles, and of the time that imports take.
    """
    gc.set_threshold(*_GARBAGE_THRESHOLDS)


def keep_freed_memory() -> None:
    """Let a codec process keep what an image frees for the next one, which saves a tenth of the time.

    glibc returns large blocks to the system at once. An image of a web crawl then costs 150 to 450 page faults. Pillow
    allocates pixels in blocks of at most 16 MiB.
    """
    _set_thresholds(mmap_bytes=32 * _MIB, trim_bytes=64 * _MIB)


def _set_thresholds(*, mmap_bytes: int, trim_bytes: int) -> None:
    """Set from which size on glibc maps a block on its own, and how much free memory its heap may keep at its end."""
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, mmap_bytes)
        libc.mallopt(_M_TRIM_THRESHOLD, trim_bytes)


def without_blas_threads(environment: MutableMapping[str, str]) -> None:
    """Prevent numpy from starting a thread for each CPU in a process with this environment.

    That takes a tenth of a second of CPU time and, on a large machine, gigabytes of address space, and nothing here
    multiplies matrices. The operator's own setting stays.
    """
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
