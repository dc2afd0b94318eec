"""CRC-32, as all files that datafetch writes are checked by.

Every image passes through it six times between its arrival and the trainer's file, which with the ``zlib`` of the
standard library takes a quarter of a commit's CPU time (docs/performance.md). This one has the same values in a quarter
of the time.
"""

from zlib_ng.zlib_ng import crc32

__all__ = ["crc32"]
