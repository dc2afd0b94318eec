"""What goes wrong on our side or the operator's; the web's faults are ``Failure`` values.

Rules: every error's message is one line that tells the operator what to do. The command line turns the class into an
exit code; nothing else looks at it.
"""

from __future__ import annotations

import os

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
            f"cannot {doing}{where}: {why}; mend that and run the same command again, nothing that was written is lost"
        )

    @classmethod
    def of_memory(cls, error: BaseException) -> ResourceError | None:
        """The error for a process that gets no more memory, threads or processes; None where it is something else.

        A limit on them shows wherever something is asked for: as a MemoryError, which Arrow's is as well, as a thread
        that can't start, or as a library that can't be loaded.
        """
        said = str(error)
        if not (isinstance(error, MemoryError) or any(sign in said for sign in _SIGNS_OF_WANT)):
            return None
        why = f" ({said})" if said else ""
        return cls(
            f"this process gets no more memory or threads{why}; raise its limits ('ulimit -v', 'ulimit -u', those of "
            "the batch system), or ask for less (--memory, --processes), and run the same command again; "
            "nothing that was written is lost"
        )


class ConservationError(DatafetchError):
    """The books do not balance: an image or a sample was lost or counted twice. Always a bug (exit 1)."""
