"""Rows to final files: pure writers that know nothing of shards in progress, crashes or renames."""

from datafetch.sinks.pickle import PickleSink

__all__ = ["PickleSink"]
