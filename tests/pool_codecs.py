"""Codecs for the pool's tests that misbehave on demand; codec processes import them from here."""

import os
import signal
import time

from datafetch.model import Encoded, Outcome
from datafetch.transcode.spec import ImageSpec


def echo(body: bytes, _: ImageSpec) -> Outcome:
    """The body itself, unless it tells the process to end, to hang, or to say who it is."""
    match body:
        case b"exit":
            os._exit(7)
        case b"segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case b"hang":
            while True:
                pass
        case b"pid":
            return Encoded(str(os.getpid()).encode(), 1, 1, "ECHO")
        case b"nap":
            time.sleep(0.05)
    return Encoded(body, 1, 1, "ECHO")


def unloadable(body: bytes, spec: ImageSpec) -> Outcome:
    """A codec that pickles here and can't be loaded there, once its name is gone from the module."""
    raise AssertionError(body, spec)


if os.environ.get("DATAFETCH_TEST_UNLOADABLE"):
    del unloadable
