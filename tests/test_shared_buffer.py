"""The memory that a worker and its parent share, as seen from both sides."""

import gc
import mmap
import os
from collections.abc import Iterator
from itertools import accumulate

import psutil
import pytest

from datafetch.transcode.pool.shared_buffer import USUAL_BYTES, SharedBuffer, open_shared_buffer

BODIES = [b"first", b"", b"the third"]


@pytest.fixture
def fd() -> Iterator[int]:
    """Open the descriptor of a buffer."""
    fd = open_shared_buffer()
    yield fd
    os.close(fd)


@pytest.fixture
def parent_side(fd: int) -> SharedBuffer:
    """Map the buffer as the parent does."""
    return SharedBuffer(fd)


@pytest.fixture
def worker_side(fd: int) -> SharedBuffer:
    """Map the buffer as the worker does."""
    return SharedBuffer(fd)


def bodies_in(buffer: SharedBuffer) -> list[bytes]:
    """Read the bodies as the worker does."""
    starts = accumulate(map(len, BODIES), initial=0)
    return [buffer.get(start, len(body)) for start, body in zip(starts, BODIES, strict=False)]


def test_a_batch_arrives(parent_side: SharedBuffer, worker_side: SharedBuffer) -> None:
    """The worker reads the bodies that the parent has loaded."""
    parent_side.load(BODIES)
    assert bodies_in(worker_side) == BODIES


def test_jpegs_come_back_one_after_the_other(parent_side: SharedBuffer, worker_side: SharedBuffer) -> None:
    """JPEGs are written behind the bodies, which stay as they were."""
    parent_side.load(BODIES)
    worker_side.put(14, b"jpeg")
    worker_side.put(18, b"another")
    assert parent_side.get(14, 4) == b"jpeg"
    assert parent_side.get(18, 7) == b"another"
    assert bodies_in(worker_side) == BODIES


def test_either_side_may_enlarge_the_buffer(parent_side: SharedBuffer, worker_side: SharedBuffer) -> None:
    """A batch, and the JPEGs made of it, may be larger than a buffer usually is."""
    large, larger = os.urandom(USUAL_BYTES + 1), os.urandom(2 * USUAL_BYTES)
    parent_side.load([large])
    assert worker_side.get(0, len(large)) == large
    worker_side.put(len(large), larger)
    assert parent_side.get(len(large), len(larger)) == larger


def test_memory_beyond_the_usual_size_is_returned(fd: int, parent_side: SharedBuffer) -> None:
    """After a large batch the memory beyond the usual size goes back to the system, and the buffer still works."""
    parent_side.load([bytes(8 * USUAL_BYTES)])
    assert os.fstat(fd).st_blocks * 512 > 8 * USUAL_BYTES
    parent_side.trim()
    assert os.fstat(fd).st_blocks * 512 <= USUAL_BYTES + mmap.PAGESIZE
    parent_side.load(BODIES)
    assert bodies_in(SharedBuffer(fd)) == BODIES


def test_the_parent_sees_which_image_is_at_work(parent_side: SharedBuffer, worker_side: SharedBuffer) -> None:
    """The parent sees how many images are started, and can keep later ones from being started."""
    parent_side.load(BODIES)
    assert parent_side.started == 0
    assert worker_side.try_start(0)
    assert parent_side.started == 1
    parent_side.set_limit(1)
    assert not worker_side.try_start(1)
    assert parent_side.started == 1


@pytest.mark.parametrize(("start", "length"), [(0, 2**40), (2**40, 1), (0, -1), (-1, 1), (-(2**40), 2**40)])
def test_nothing_is_read_beyond_the_end(parent_side: SharedBuffer, start: int, length: int) -> None:
    """A length that the other side claims is trusted only as far as the buffer reaches."""
    with pytest.raises(ValueError, match=r"can't hold|does not reach"):
        parent_side.get(start, length)


def test_a_buffer_larger_than_any_memory_is_refused(fd: int, parent_side: SharedBuffer) -> None:
    """A buffer that the worker has enlarged beyond what can be mapped is an error of the worker."""
    os.ftruncate(fd, 2**62)
    with pytest.raises(ValueError, match="can't be mapped"):
        parent_side.get(USUAL_BYTES, 1)


def test_a_buffer_cannot_shrink(fd: int) -> None:
    """Neither side can remove memory that the other is about to read, which would kill the reader."""
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)


def test_a_closed_buffer_leaves_no_descriptor() -> None:
    """Closing releases the memory and its descriptors."""
    gc.collect()
    before = psutil.Process().num_fds()
    fd = open_shared_buffer()
    buffer = SharedBuffer(fd)
    os.close(fd)
    buffer.close()
    assert psutil.Process().num_fds() == before
