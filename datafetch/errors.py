"""What goes wrong on our side or the operator's; the web's faults are ``Failure`` values.

Rules: every error's message is one line that tells the operator what to do. The command line turns the class into an
exit code; nothing else looks at it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from difflib import get_close_matches

_MOST_SHOWN = 10**24
_WANTS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS})
_SIGNS_OF_WANT = (  # in the words of Python, of the dynamic loader, and of Arrow
    "can't start new thread",
    "failed to map segment from shared object",
    "cannot allocate memory in static TLS block",
    "Failed to launch worker thread",
)


class DatafetchError(Exception):
    """Anything that stops a run: a wrong command, a broken manifest, a full disk."""


class ConfigurationError(DatafetchError):
    """An option, a path or a job that cannot be carried out as asked (exit 2)."""


def refuse_outside(option: str, value: int, least: int, most: int) -> None:
    """Check a number that the operator gave.

    Raises:
        ConfigurationError: It is below ``least`` or above ``most``, both of which are named.
    """
    if not least <= value <= most:
        shown = f"{value:,}" if abs(value) < _MOST_SHOWN else "one of more than 24 digits"
        raise ConfigurationError(f"{option} must be from {least:,} to {most:,}, not {shown}")


def unknown_name(what: str, name: str, known: Iterable[str]) -> ConfigurationError:
    """The error for a name that there is not, with the nearest of those that there are, and all of them."""
    names = list(known)
    nearest = "".join(f"did you mean {str(match)!r}? " for match in get_close_matches(name, names, n=1))
    return ConfigurationError(f"there is no {what} {name!r}; {nearest}there are: {', '.join(names)}")


class ManifestError(DatafetchError):
    """A manifest or an id list that is missing, unreadable or lacks what its dataset needs (exit 2)."""


class ResourceError(DatafetchError):
    """This machine ran out of something: disk, descriptors, processes (exit 4)."""

    @classmethod
    def of_disk(cls, error: OSError, doing: str) -> ResourceError:
        """The error for a file that could not be written: the disk is full, read-only or over quota."""
        where = f" ({error.filename})" if error.filename else ""
        why = os.strerror(error.errno) if error.errno else error  # Arrow has words of its own, and the number in them
        return cls(
            f"cannot {doing}{where}: {why}; fix this and run the same command again (nothing written so far is lost)"
        )

    @classmethod
    def of_want(cls, error: BaseException) -> ResourceError:
        """The error for what ``is_want`` is true of."""
        why = "out of memory" if isinstance(error, MemoryError) else str(error)
        if isinstance(error, OSError) and error.errno in _WANTS:
            why = os.strerror(error.errno) + (f" ({error.filename})" if error.filename else "")
        return cls(
            f"out of system resources: {why}; free some, raise a limit ('ulimit -n', 'ulimit -v') or reduce --memory "
            "or --processes, and run the same command again (nothing written so far is lost)"
        )


class ConservationError(DatafetchError):
    """The books do not balance: an image or a sample was lost or counted twice. Always a bug (exit 1)."""


def is_want(error: BaseException) -> bool:
    """Whether an error says that this machine has no more descriptors, memory, threads or processes to give.

    Such an error says nothing of what was being looked at, so nothing may be called missing or damaged for it.
    """
    if isinstance(error, OSError):
        return error.errno in _WANTS
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in _SIGNS_OF_WANT):
        return True
    # Arrow's thread pool has no class of error of its own for it, and ends in the system's words.
    is_arrows = type(error).__module__.partition(".")[0] == "pyarrow"
    return is_arrows and any(str(error).endswith(os.strerror(number)) for number in _WANTS)


def raise_want(error: BaseException) -> None:
    """To be called before an error is taken for a fault of a file.

    Raises:
        ResourceError: It says that this machine ran out of something.
    """
    if is_want(error):
        raise ResourceError.of_want(error) from error
