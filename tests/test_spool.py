"""The log of a shard in progress loses nothing that it once had."""

import asyncio
from pathlib import Path

import aiofiles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datafetch.errors import ConfigurationError, ConservationError, ResourceError
from datafetch.model import Body, Encoded, Failure, FailureKind, LedgerLine, Outcome, Record, Sample
from datafetch.spool import ImageEnd, Recovered, Spool, SpooledRecord, SpoolReader

FAILURE = Failure(FailureKind.TIMEOUT, "too slow", None, 3, "", 30_000.0)


def make_sample(position: int, images: int = 1) -> Sample:
    """A sample with so many images."""
    urls = tuple(f"http://example.org/{position}/{image}.jpg" for image in range(images))
    return Sample(position, str(position), urls, {"text": f"第{position}号", "numbers": [1, 2.5, None]})


def make_end(sample: Sample, image: int, outcome: Outcome) -> ImageEnd:
    """An image that ended like this."""
    if isinstance(outcome, Encoded):
        return ImageEnd(LedgerLine.of(sample, image, Body(b"body", sample.urls[image]), outcome), outcome.jpeg)
    return ImageEnd(LedgerLine.of(sample, image, outcome, outcome), b"")


def make_outcome(seed: int) -> Outcome:
    """Every third one a failure, every seventh of the others kept as received."""
    if seed % 3 == 2:
        return FAILURE
    return Encoded(bytes([seed % 256]) * (seed * 37 % 5000), 4, 3, "PNG", "ab", is_original=seed % 7 == 6)


async def read(path: Path) -> list[SpooledRecord]:
    """All records of a spool."""
    return await asyncio.to_thread(lambda: list(SpoolReader(path).records()))


async def write(path: Path, samples: list[Sample]) -> None:
    """Spool these samples, last first, all at once."""
    spool = await Spool.open(path)
    async with asyncio.TaskGroup() as group:
        for sample in reversed(samples):
            ends = [make_end(sample, image, make_outcome(sample.position + image)) for image in range(len(sample.urls))]
            group.create_task(spool.append(*ends, sample))
    await spool.close()


async def test_records_come_back_in_manifest_order(tmp_path: Path) -> None:
    """Whatever the order in which images end, samples, images and outcomes come as the manifest has them."""
    samples = [make_sample(position, images=position % 4) for position in range(200)]
    await write(tmp_path / "x.spool", samples)
    spooled = await read(tmp_path / "x.spool")
    assert [one.record for one in spooled] == [
        Record(sample, tuple(make_outcome(sample.position + image) for image in range(len(sample.urls))))
        for sample in samples
    ]
    assert all(line.key == one.record.sample.key for one in spooled for line in one.lines)


async def test_a_run_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    """Opened again, a spool says which samples and images it has, and takes the others."""
    path = tmp_path / "spools" / "x.spool"
    whole, half = make_sample(0), make_sample(1, images=3)
    spool = await Spool.open(path)
    await spool.append(make_end(whole, 0, FAILURE), whole)
    await spool.append(make_end(half, 2, make_outcome(0)))
    await spool.close()
    spool = await Spool.open(path)
    assert spool.recovered.samples == {0}
    assert spool.recovered.images == {1: {2}}
    assert spool.recovered.outcomes == {"timeout": 1, "ok": 1}
    await spool.append(make_end(half, 0, FAILURE), make_end(half, 1, FAILURE), half)
    await spool.close()
    assert [one.record.sample for one in await read(path)] == [whole, half]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_torn_or_flipped_tail_loses_only_what_it_touched(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Cut the file anywhere, or change any byte: every entry before it is there, and none is invented."""
    path = tmp_path_factory.mktemp("spool") / "x.spool"
    samples = [make_sample(position) for position in range(12)]
    ends: list[int] = []

    async def spool_them() -> None:
        spool = await Spool.open(path)
        for sample in samples:
            await spool.append(make_end(sample, 0, make_outcome(sample.position)), sample)
            ends.append(path.stat().st_size)
        await spool.close()

    asyncio.run(spool_them())
    content = path.read_bytes()
    place = data.draw(st.integers(len(b"datafetch spool 1\n"), len(content) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(content[:place])
    else:
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])

    async def recover() -> set[int]:
        spool = await Spool.open(path)
        await spool.append(make_end(samples[0], 0, FAILURE))
        await spool.close()
        return spool.recovered.samples

    recovered = asyncio.run(recover())
    untouched = {number for number, end in enumerate(ends) if end <= place}
    assert recovered == untouched
    assert path.read_bytes().startswith(content[: ends[len(untouched) - 1] if untouched else 0])


@pytest.mark.parametrize("size", range(18))
async def test_a_spool_torn_in_its_first_line_begins_anew(tmp_path: Path, size: int) -> None:
    """A machine may die in the very first write."""
    path = tmp_path / "x.spool"
    await asyncio.to_thread(path.write_bytes, b"datafetch spool 1\n"[:size])
    await write(path, [make_sample(0)])
    assert len(await read(path)) == 1


async def test_another_file_is_not_touched(tmp_path: Path) -> None:
    """What is not a spool is refused, and left as it is."""
    path = tmp_path / "x.spool"
    await asyncio.to_thread(path.write_bytes, b"somebody's thesis")
    with pytest.raises(ConfigurationError, match="--fresh"):
        await Spool.open(path)
    assert await asyncio.to_thread(path.read_bytes) == b"somebody's thesis"


async def test_an_image_that_is_there_twice_is_a_bug(tmp_path: Path) -> None:
    """Every image ends in exactly one outcome; two are not averaged away."""
    sample = make_sample(0)
    spool = await Spool.open(tmp_path / "x.spool")
    await spool.append(make_end(sample, 0, FAILURE), make_end(sample, 0, make_outcome(0)), sample)
    await spool.close()
    with pytest.raises(ConservationError):
        await read(tmp_path / "x.spool")


async def test_an_image_that_is_missing_is_a_bug(tmp_path: Path) -> None:
    """A sample has not ended while an image of it has not."""
    sample = make_sample(0, images=2)
    spool = await Spool.open(tmp_path / "x.spool")
    await spool.append(make_end(sample, 0, FAILURE), sample)
    await spool.close()
    with pytest.raises(ConservationError):
        await read(tmp_path / "x.spool")


async def test_a_disk_that_takes_nothing_is_our_fault(tmp_path: Path) -> None:
    """A full device stops the run with a word on what to do."""
    sample = make_sample(0)
    full = await aiofiles.open("/dev/full", "wb", buffering=0)
    spool = Spool(tmp_path / "x.spool", full, Recovered())
    with pytest.raises(ResourceError, match=r"No space left on device.*run the same command again"):
        await spool.append(make_end(sample, 0, FAILURE), sample)
    await full.close()
    with pytest.raises(ResourceError, match="run the same command again"):
        await Spool.open(Path("/proc/nowhere/x.spool"))
