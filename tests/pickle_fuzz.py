"""Mutated shards with NumPy numbers, read as ``verify`` and ``reshard`` read shards.

This runs in a process of its own (``test_plain_pickle.py``), since native code that trusts its input may crash instead
of raising an exception. Prints how many mutants were read and how many were refused.
"""

from __future__ import annotations

import pickle
import random
import resource
import shutil
import sys
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np

from datafetch.errors import DatafetchError
from datafetch.output.formats.pickle_form import LIST_END, PREAMBLE
from datafetch.output.reshard.folder import ReshardRequest, reshard
from datafetch.verify.shards import ShardFolder

_ROWS = [
    {
        "id": np.int64(number),
        "text": np.str_("同じ"),
        "clip_sim": np.float32(0.5),
        "big": np.dtype(">f8").type(2.0),
        "flag": np.bool_(True),
        "image": "abcd",
    }
    for number in range(4)
]
_BUILT = b"(K\x03X\x01\0\0\0|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
# Parts that are inserted into mutants: types that hold pointers, structures and sizes, states, calls, memo opcodes.
_PARTS = [
    *(b"X\x02\0\0\0" + name for name in (b"O8", b"V8", b"S9", b"U9", b"M8", b"i8", b"f8", b"u1")),
    *(b"\x8c\x02" + name for name in (b"O8", b"V8", b"S9", b"f8")),
    *(
        _BUILT,
        _BUILT.replace(b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x0f"),
        b"b",
        b"R",
        b"0",
        b"2",
        b"t",
        b"\x85",
        b"\x86",
    ),
    *(
        b"N}b",
        b"(K\x01K\x02u",
        b"cnumpy\ndtype\n",
        b"cnumpy.core.multiarray\nscalar\n",
        b"q\0",
        b"h\0",
        b"h\x01",
        b"\x94",
    ),
    *(b"C\x08AAAAAAAA", b"C\x01A", b"J\xff\xff\xff\x7f", b"K\0", b"}", b"]", b")", b"(", b"s", b"a", b"e", b"u", b"."),
]


def _seeds() -> list[bytes]:
    """Return the same rows as scripts pickle them, and as a shard written by datafetch holds them."""
    frames = b""
    for row in _ROWS:
        buffer = BytesIO()
        pickler = pickle.Pickler(buffer, 3)
        pickler.fast = True
        pickler.dump(row)
        body = buffer.getvalue()[2:-1]
        frames += pickle.FRAME + len(body).to_bytes(8, "little") + body
    whole = [pickle.dumps(_ROWS, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    return [*whole, *[PREAMBLE + pickle.MARK + frames + LIST_END] * 3]


def _mutated(content: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 2)):
        offset = chance.randrange(len(content))
        match chance.randrange(5):
            case 0:
                content = content[:offset] + bytes([chance.randrange(256)]) + content[offset + 1 :]
            case 1:
                content = content[:offset] + chance.choice(_PARTS) + content[offset:]
            case 2:
                part = chance.choice(_PARTS)
                content = content[:offset] + part + content[offset + len(part) :]
            case 3:
                start = chance.randrange(len(content))
                content = content[:offset] + content[start : start + chance.randint(1, 60)] + content[offset:]
            case _:
                name = chance.choice([b"f4", b"f8", b"i8", b"b1", b"U2"])
                content = content.replace(name, chance.choice([b"O8", b"V8", b"S8", b"U9", b"u2", b"f8"]))
    return _measured(content) if content.startswith(PREAMBLE + pickle.MARK) else content


def _measured(content: bytes) -> bytes:
    """Extend the first frame up to the second one, so that more than its length is checked."""
    start = len(PREAMBLE) + 1
    second = content.find(pickle.FRAME, start + 9)
    body = content[start + 9 : second]
    return content[:start] + pickle.FRAME + len(body).to_bytes(8, "little") + body + content[second:]


def main(folder: Path, seed: int, mutants: int) -> None:
    """Create this many mutants, and read each with the readers of both commands."""
    # Limits for mutants that would use up the machine's memory or time, which is a fault as well.
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    chance = random.Random(seed)
    seeds = _seeds()
    read = 0
    for _ in range(mutants):
        source, out = folder / "source", folder / "out"
        for path in (source, out, folder / "out.datafetch"):
            shutil.rmtree(path, ignore_errors=True)
        source.mkdir()
        (source / "a.pkl").write_bytes(_mutated(chance.choice(seeds), chance))
        (source / "a.count").write_text(str(len(_ROWS)))
        for _ in ShardFolder(source).examine():
            pass
        with suppress(DatafetchError):
            reshard(ReshardRequest(source, out, world_size=1, batch=1, group=1))
            for path in out.glob("*.pkl"):
                for row in pickle.loads(path.read_bytes()):  # as the trainer does, with NumPy
                    repr(row)
            read += 1
    sys.stdout.write(f"{read} read, {mutants - read} refused\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
