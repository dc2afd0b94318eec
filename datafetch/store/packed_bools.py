"""Truth values as compressed text, one bit each: which samples of a shard have a row, for example."""

from __future__ import annotations

import base64
import zlib
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Bools: TypeAlias = npt.NDArray[np.bool_]


def pack_bools(values: Bools) -> bytes:
    """Pack truth values into compressed text, one bit each."""
    return base64.b85encode(zlib.compress(np.packbits(values).tobytes()))


def unpack_bools(packed: bytes | str, count: int) -> Bools:
    """Unpack the values of ``pack_bools``.

    Args:
        packed: The compressed text.
        count: The number of values.

    Raises:
        ValueError: The text does not hold this number of values.
    """
    size_bytes = -(-count // 8)
    try:
        bits = zlib.decompressobj().decompress(base64.b85decode(packed), size_bytes + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(bits) != size_bytes:
        raise ValueError(f"{len(bits):,} bytes for {count:,} values")
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=count).astype(np.bool_)
