"""Errors that stop a run: datafetch's own, the operator's and the machine's. Faults of the web are ``Failure`` values.

Rules: the message of every error is one line that tells the operator what to do. The command line turns the class into
an exit code; nothing else depends on it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches

_EXHAUSTION_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS})
STARTS_OVER = "put back what was there, or start over with --fresh, which fetches everything again"
"""What to do about a file on which an output depends, and which is damaged or another one."""

_MAX_NEAREST_NAMES = 3
_LEAST_OF_NAME = 2  # characters, of which a name can be said to contain them
_EXHAUSTION_MESSAGES = (  # of Python, the dynamic loader and Arrow, whose exceptions have no errno
    "can't start new thread",
    "failed to map segment from shared object",
    "cannot allocate memory in static TLS block",
    "Failed to launch worker thread",
)


class DatafetchError(Exception):
    """Base class of everything that stops a run, such as a wrong command, a broken manifest or a full disk."""


class ConfigurationError(DatafetchError):
    """An option, a path or a job that can't be carried out as requested (exit 2)."""


class InvalidFieldError(ConfigurationError):
    """A field of a value, such as ``Job.limit``, is set to what it can't be (exit 2).

    Python names the fields in its message, and the command line the options that they are there.

    Args:
        cls: The dataclass.
        template: The message: ``{limit}`` stands for the name of the field ``limit``, and ``{pixels:recipe}`` for its
            being set to that value.
        shown: What else the template names.
    """

    def __init__(self, cls: type, template: str, shown: Mapping[str, str]) -> None:
        super().__init__(cls, template, shown)
        self.cls = cls
        self._template = template
        self._shown = shown

    def __str__(self) -> str:
        return self.describe({})

    def describe(self, flags: Mapping[str, str]) -> str:
        """The message.

        Args:
            flags: The options by which fields are set on the command line; all others are named as in Python.
        """
        names = {field.name: _FieldName(field.name, flags.get(field.name, "")) for field in fields(self.cls)}
        return self._template.format(**names, **self._shown)


@dataclass(frozen=True, slots=True)
class _FieldName:
    """How a template names a field; with a value as the format, how it says that the field is set to that."""

    field: str
    flag: str

    def __format__(self, value: str) -> str:
        if self.flag:
            return f"{self.flag} {value}" if value else self.flag
        literal = None if value == "none" else value
        return f"{self.field}={literal!r}" if value else self.field


def unknown_name(what: str, name: str, known: Iterable[str]) -> ConfigurationError:
    """The error for a name that there is not, with the nearest of those that there are, and all of them."""
    names = list(map(str, known))
    return ConfigurationError(f"there is no {what} {name!r}; {did_you_mean(name, names)}there are: {', '.join(names)}")


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A question about the nearest of some names, with a space behind it; empty if none is near."""
    matches = " or ".join(map(repr, _nearest(name.casefold(), known)))
    return f"did you mean {matches}? " if matches else ""


def _nearest(name: str, names: Sequence[str]) -> Sequence[str]:
    """The names that begin with what was given, or else contain it, or else are spelled like it; at most three."""
    if len(name) < _LEAST_OF_NAME:
        return []
    begin = [known for known in names if known.casefold().startswith(name)]
    contain = [known for known in names if name in known.casefold()]
    alike = get_close_matches(name, [known.casefold() for known in names], n=1)
    return (begin or contain or [known for known in names if known.casefold() in alike])[:_MAX_NEAREST_NAMES]


class ManifestError(DatafetchError):
    """A manifest or an ID list that is missing, unreadable, or lacks what its dataset needs (exit 2)."""


class ResourceError(DatafetchError):
    """This machine lacks something: disk space, descriptors, memory, processes, a network or a name server (exit 4)."""

    @classmethod
    def from_disk_error(cls, error: OSError, doing: str) -> ResourceError:
        """Create the error for a file that can't be written because the disk is full, read-only or over quota.

        Args:
            error: What the system raised.
            doing: What was attempted, such as "write the ledger".
        """
        where = f" ({error.filename})" if error.filename else ""
        why = os.strerror(error.errno) if error.errno else error  # Arrow's message contains the errno
        return cls(
            f"cannot {doing}{where}: {why}; fix this and run the same command again (nothing written so far is lost)"
        )

    @classmethod
    def from_exhaustion(cls, error: BaseException) -> ResourceError:
        """Create the error for an exception for which ``is_exhaustion`` is true."""
        why = "out of memory" if isinstance(error, MemoryError) else str(error)
        if isinstance(error, OSError) and error.errno in _EXHAUSTION_ERRNOS:
            why = os.strerror(error.errno) + (f" ({error.filename})" if error.filename else "")
        return cls(
            f"out of system resources: {why}; free some, raise a limit ('ulimit -n', 'ulimit -v') or reduce --memory "
            "or --processes, and run the same command again (nothing written so far is lost)"
        )


class ConservationError(DatafetchError):
    """The counts don't agree: an image or a sample was lost or counted twice. This is always a bug (exit 1)."""


def is_exhaustion(error: BaseException) -> bool:
    """Return whether an exception means that this machine has no descriptors, memory, threads or processes left.

    Such an exception says nothing about the file that was being read, so it must not be reported as missing or damaged.
    """
    if isinstance(error, OSError):
        return error.errno in _EXHAUSTION_ERRNOS
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in _EXHAUSTION_MESSAGES):
        return True
    # Arrow's thread pool has no exception class for it, but its message ends with that of the system.
    is_from_arrow = type(error).__module__.partition(".")[0] == "pyarrow"
    return is_from_arrow and any(str(error).endswith(os.strerror(number)) for number in _EXHAUSTION_ERRNOS)


def raise_if_exhausted(error: BaseException) -> None:
    """Rule out exhaustion, before an exception is reported as a fault of a file.

    Raises:
        ResourceError: The exception means that this machine has run out of something.
    """
    if is_exhaustion(error):
        raise ResourceError.from_exhaustion(error) from error


def unreadable(what: object, error: BaseException) -> ManifestError:
    """The error for a file or folder that can't be read.

    Args:
        what: The file, as the message names it.
        error: What the system or a library raised.

    Raises:
        ResourceError: This machine has run out of something, which is no fault of the file.
    """
    raise_if_exhausted(error)
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return ManifestError(f"cannot read {what}: {text.splitlines()[0]}; fix this, or give a copy that can be read")
