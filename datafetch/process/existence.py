"""Whether a process of this machine exists, by its number alone."""

from __future__ import annotations

import os


def process_exists(pid: int) -> bool:
    """Whether there is a process with this number, which may be another one than the one that is meant."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, and belongs to another user
        return True
    return True
