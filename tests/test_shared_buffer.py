"""Memory that two processes share, as seen from both sides."""

import gc
import mmap
import os
from collections.abc import Iterator
from itertools import accumulate

import psutil
import pytest

from datafetch.transcode.pool.shared_buffer import ORDINARY_BYTES, SharedBuffer, open_shared_buffer

BODIES = [b"first", b"", b"the third"]


@pytest.fixture
def fd() -> Iterator[int]:
    """A descriptor of a tray."""
    fd = open_shared_buffer()
    yield fd
    os.close(fd)


@pytest.fixture
def here(fd: int) -> SharedBuffer:
    """The parent's side."""
    return SharedBuffer(fd)


@pytest.fixture
def there(fd: int) -> SharedBuffer:
    """The codec process's side."""
    return SharedBuffer(fd)


def bodies_in(buffer: SharedBuffer) -> list[bytes]:
    """The bodies, as the codec process reads them."""
    starts = accumulate(map(len, BODIES), initial=0)
    return [buffer.get(start, len(body)) for start, body in zip(starts, BODIES, strict=False)]


def test_a_batch_arrives(here: SharedBuffer, there: SharedBuffer) -> None:
    """What one side puts in, the other takes out."""
    here.load(BODIES)
    assert bodies_in(there) == BODIES


def test_jpegs_come_back_one_after_the_other(here: SharedBuffer, there: SharedBuffer) -> None:
    """JPEGs lie behind the bodies, which stay as they were."""
    here.load(BODIES)
    there.put(14, b"jpeg")
    there.put(18, b"another")
    assert here.get(14, 4) == b"jpeg"
    assert here.get(18, 7) == b"another"
    assert bodies_in(there) == BODIES


def test_either_side_may_need_more_room(here: SharedBuffer, there: SharedBuffer) -> None:
    """A batch, and what is made of it, may be larger than a tray ordinarily is."""
    large, larger = os.urandom(ORDINARY_BYTES + 1), os.urandom(2 * ORDINARY_BYTES)
    here.load([large])
    assert there.get(0, len(large)) == large
    there.put(len(large), larger)
    assert here.get(len(large), len(larger)) == larger


def test_extraordinary_room_is_given_back(fd: int, here: SharedBuffer) -> None:
    """After a large batch the memory behind the ordinary size is the system's again, and the tray works on."""
    here.load([bytes(8 * ORDINARY_BYTES)])
    assert os.fstat(fd).st_blocks * 512 > 8 * ORDINARY_BYTES
    here.trim()
    assert os.fstat(fd).st_blocks * 512 <= ORDINARY_BYTES + mmap.PAGESIZE
    here.load(BODIES)
    assert bodies_in(SharedBuffer(fd)) == BODIES


def test_who_is_at_work_can_be_seen(here: SharedBuffer, there: SharedBuffer) -> None:
    """The parent sees which image is begun, and may keep later ones from being begun."""
    here.load(BODIES)
    assert here.begun == 0
    assert there.begin(0)
    assert here.begun == 1
    here.allow(1)
    assert not there.begin(1)
    assert here.begun == 1


@pytest.mark.parametrize(("start", "length"), [(0, 2**40), (2**40, 1), (0, -1), (-1, 1), (-(2**40), 2**40)])
def test_nothing_is_read_from_beyond_the_tray(here: SharedBuffer, start: int, length: int) -> None:
    """A length that the other side claims is believed as far as the tray reaches."""
    with pytest.raises(ValueError, match="not to be had"):
        here.get(start, length)


def test_a_tray_blown_up_beyond_all_memory_is_refused(fd: int, here: SharedBuffer) -> None:
    """A process that says it has made more of the tray than any machine has is not believed."""
    os.ftruncate(fd, 2**62)
    with pytest.raises(ValueError, match="a tray of"):
        here.get(ORDINARY_BYTES, 1)


def test_a_tray_cannot_shrink(fd: int) -> None:
    """Nobody can take memory away that the other side is about to read, which would kill it."""
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)


def test_a_closed_tray_leaves_no_descriptor() -> None:
    """Neither the memory nor its descriptors stay behind."""
    gc.collect()
    before = psutil.Process().num_fds()
    fd = open_shared_buffer()
    buffer = SharedBuffer(fd)
    os.close(fd)
    buffer.close()
    assert psutil.Process().num_fds() == before
