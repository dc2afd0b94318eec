"""A spool loses nothing that was appended to it, whatever happens to the process or to other entries."""

import asyncio
import os
from collections.abc import Sequence
from io import FileIO
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import read_lines

from datafetch.errors import ConfigurationError, ConservationError, ResourceError
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import Body, Encoded, Failure, FailureKind, Outcome
from datafetch.model.sample import Record, Sample
from datafetch.store.spool import Recovered, Spool
from datafetch.store.spool_format import (
    _HEADER_BYTES,
    FILE_HEADER_BYTES,
    ImageResult,
    SpooledImage,
    encode,
    file_header,
    read_entries,
    read_marker,
    read_stored,
    scan_records,
)
from datafetch.store.spool_reader import SpooledSample, SpoolReader
from datafetch.store.spool_writer import write_spool

FAILURE = Failure(FailureKind.TIMEOUT, "too slow", None, 3, "", 30_000.0)


def make_sample(position: int, images: int = 1) -> Sample:
    """Return a sample with this number of images."""
    urls = tuple(f"http://example.org/{position}/{image}.jpg" for image in range(images))
    return Sample(position, str(position), urls, {"text": f"第{position}号", "numbers": [1, 2.5, None]})


def jpeg_of(image: SpooledImage) -> bytes:
    """Return the JPEG of an image, in memory or in a spool."""
    return image.load().jpeg


def make_result(sample: Sample, image: int, outcome: Outcome) -> ImageResult:
    """Return the result of an image with this outcome."""
    if isinstance(outcome, Encoded):
        return ImageResult(LedgerLine.of(sample, image, Body(b"body", sample.urls[image]), outcome), outcome.jpeg)
    return ImageResult(LedgerLine.of(sample, image, outcome, outcome), b"")


def make_outcome(seed: int) -> Outcome:
    """Return an outcome: every third one is a failure, and every seventh of the others an original."""
    if seed % 3 == 2:
        return FAILURE
    return Encoded(bytes([seed % 256]) * (seed * 37 % 5000), 4, 3, "PNG", "ab", is_original=seed % 7 == 6)


async def read(path: Path) -> list[SpooledSample]:
    """Read all samples of a spool."""
    return await asyncio.to_thread(
        lambda: [
            SpooledSample(spooled.sample, tuple(image.load() for image in spooled.images))
            for spooled in SpoolReader(path).samples()
        ]
    )


async def write(path: Path, samples: list[Sample]) -> None:
    """Spool samples concurrently, the last one first."""
    spool = await Spool.open(path)
    async with asyncio.TaskGroup() as group:
        for sample in reversed(samples):
            outcomes = [make_outcome(sample.position + image) for image in range(len(sample.urls))]
            results = [make_result(sample, image, outcome) for image, outcome in enumerate(outcomes)]
            group.create_task(spool.append(*results, sample))
    await spool.close()


async def test_samples_come_back_in_manifest_order(tmp_path: Path) -> None:
    """Samples, images and outcomes are in manifest order, whatever the order in which they were appended."""
    samples = [make_sample(position, images=position % 4) for position in range(200)]
    await write(tmp_path / "x.spool", samples)
    spooled = await read(tmp_path / "x.spool")
    assert [sample.record(jpeg_of) for sample in spooled] == [
        Record(sample, tuple(make_outcome(sample.position + image) for image in range(len(sample.urls))))
        for sample in samples
    ]
    assert all(line.key == complete.sample.key for complete in spooled for line in complete.lines)


async def test_a_run_resumes_where_the_last_one_stopped(tmp_path: Path) -> None:
    """A spool that is opened again lists its samples and images, and accepts the others."""
    path = tmp_path / "spools" / "x.spool"
    whole, half = make_sample(0), make_sample(1, images=3)
    spool = await Spool.open(path)
    await spool.append(make_result(whole, 0, FAILURE), whole)
    await spool.append(make_result(half, 2, make_outcome(0)))
    await spool.close()
    spool = await Spool.open(path)
    assert spool.recovered.samples == {0}
    assert spool.recovered.images == {1: {2: make_result(half, 2, make_outcome(0)).line}}
    assert spool.recovered.outcomes == {"timeout": 1, "ok": 1}
    await spool.append(make_result(half, 0, FAILURE), make_result(half, 1, FAILURE), half)
    await spool.close()
    assert [sample.record(jpeg_of).sample for sample in await read(path)] == [whole, half]


@pytest.mark.rotating
@settings(max_examples=150)
@given(data=st.data())
def test_damage_loses_only_what_it_touched(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """If the file is cut anywhere, or any bytes change, all other entries are recovered and no entry is invented."""
    path = tmp_path_factory.mktemp("spool") / "x.spool"
    written: list[ImageResult | Sample] = []
    for position in range(8):
        sample = make_sample(position, 2)
        written += [make_result(sample, image, make_outcome(position + image)) for image in range(2)]
        written.append(sample)
    ends = [write_same_spool(path, written[:number]) for number in range(len(written) + 1)]
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        offset = data.draw(st.integers(ends[0], len(content) - 1))
        del content[offset:]
        touched = {number for number, end in enumerate(ends[1:]) if end > offset}
    else:
        offsets = data.draw(st.sets(st.integers(ends[0], len(content) - 1), min_size=1, max_size=4))
        for offset in offsets:
            content[offset] ^= data.draw(st.integers(1, 255))
        touched = {
            number
            for number, (start, end) in enumerate(pairwise(ends))
            if any(start <= offset < end for offset in offsets)
        }
    path.write_bytes(content)

    async def recover() -> Recovered:
        spool = await Spool.open(path)
        await spool.append(make_sample(99, 0))
        await spool.close()
        return spool.recovered

    recovered = asyncio.run(recover())
    left = [one for number, one in enumerate(written) if number not in touched]
    images = {(one.line.sample, one.line.image) for one in left if isinstance(one, ImageResult)}
    ended = {
        one.position for one in left if isinstance(one, Sample) and {(one.position, 0), (one.position, 1)} <= images
    }
    assert recovered.samples == ended
    assert {(sample, image) for sample, those in recovered.images.items() for image in those} == {
        (sample, image) for sample, image in images if sample not in ended
    }
    with path.open("rb") as file:
        assert [entry.record for entry in read_entries(file, read_marker(file))] == [*left, make_sample(99, 0)]


def write_same_spool(path: Path, records: Sequence[ImageResult | Sample]) -> int:
    """Write a spool with the marker of the one that it replaces, and return its size."""
    start = path.read_bytes()[:FILE_HEADER_BYTES] if path.exists() else file_header()
    path.write_bytes(start + b"".join(piece for record in records for piece in encode(record, start[-8:])))
    return path.stat().st_size


async def test_a_sample_that_lost_an_image_is_completed_again(tmp_path: Path) -> None:
    """If an image was damaged, its sample is incomplete; completing it a second time is not an error."""
    path = tmp_path / "x.spool"
    sample = make_sample(0, 2)
    ends = [make_result(sample, image, make_outcome(image)) for image in range(2)]
    await asyncio.to_thread(write_spool, path, [ends[1], sample])
    spool = await Spool.open(path)
    assert (spool.recovered.samples, spool.recovered.images) == (set(), {0: {1: ends[1].line}})
    await spool.append(ends[0], sample)
    await spool.close()
    (spooled,) = await read(path)
    assert spooled.images == tuple(ends)
    spool = await Spool.open(path)
    await spool.close()
    assert spool.recovered.samples == {0}


def test_an_image_that_is_a_spool_adds_no_entries(tmp_path: Path) -> None:
    """An image whose bytes are a complete spool adds no entries, even if the entry around it is damaged."""
    write_same_spool(tmp_path / "inner.spool", [make_sample(7, 0)])
    sample = make_sample(0)
    encoded = Encoded((tmp_path / "inner.spool").read_bytes(), 4, 3, "JPEG", is_original=True)
    path = tmp_path / "outer.spool"
    size = write_same_spool(path, [make_result(sample, 0, encoded)])
    content = bytearray(path.read_bytes())
    content[FILE_HEADER_BYTES + 9] ^= 1
    path.write_bytes(content)
    with path.open("rb") as file:
        assert list(read_entries(file, read_marker(file))) == []
    assert len(content) == size


def test_an_entry_with_contradictory_lengths_is_damaged(tmp_path: Path) -> None:
    """A flipped bit in the metadata length, which the header's checksum does not cover, is treated as damage."""
    path = tmp_path / "x.spool"
    write_same_spool(path, [make_result(make_sample(0), 0, Encoded(b"jpeg", 4, 3, "JPEG"))])
    content = bytearray(path.read_bytes())
    content[FILE_HEADER_BYTES + _HEADER_BYTES + 4] ^= 1  # the highest byte of the metadata length, after the kind
    path.write_bytes(content)
    with path.open("rb") as file:
        assert read_stored(file, read_marker(file), FILE_HEADER_BYTES) is None


async def test_a_spool_can_be_scanned_while_it_is_written(tmp_path: Path) -> None:
    """The lines of its images are read without their JPEGs, up to an entry that is incomplete."""
    path = tmp_path / "x.spool"
    await write(path, [make_sample(position, 2) for position in range(5)])
    lines = await asyncio.to_thread(read_lines, path)
    assert sorted((line.sample, line.image) for line in lines) == [
        (sample, image) for sample in range(5) for image in range(2)
    ]
    await asyncio.to_thread(lambda: path.write_bytes(path.read_bytes()[:-1]))
    assert await asyncio.to_thread(read_lines, path) == lines


class _WatchedFile(FileIO):
    """A file that records the size of its largest read."""

    largest_read_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.largest_read_bytes = max(self.largest_read_bytes, size or 0)
        return super().read(size)


def test_a_scan_reads_no_more_than_an_entry_has(tmp_path: Path) -> None:
    """A scan stops at metadata that claims to be longer than its entry, even if the file is long enough."""
    path = tmp_path / "x.spool"
    write_spool(path, [make_sample(0)])
    whole_bytes = path.stat().st_size
    write_spool(path, [make_sample(0), make_sample(1), make_sample(2)])
    content = bytearray(path.read_bytes())
    content[whole_bytes + _HEADER_BYTES + 1 + 3] ^= 2  # the highest byte of the metadata length: 32 MiB more
    path.write_bytes(content)
    os.truncate(path, 64 << 20)
    with _WatchedFile(path) as file:
        assert list(scan_records(file, read_marker(file))) == [make_sample(0)]
        assert file.largest_read_bytes < 1000


async def test_sync_may_be_called_at_any_time(tmp_path: Path) -> None:
    """Calls may be concurrent, and come before and after closing."""
    spool = await Spool.open(tmp_path / "x.spool")
    await spool.append(make_sample(0, 0))
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(spool.sync())
        group.create_task(spool.append(make_sample(1, 0)))
    await spool.close()
    await spool.sync()
    assert len(await read(tmp_path / "x.spool")) == 2


@pytest.mark.parametrize("size", range(26))
async def test_a_spool_with_a_torn_file_header_is_started_again(tmp_path: Path, size: int) -> None:
    """A machine may die during the very first write."""
    path = tmp_path / "x.spool"
    await asyncio.to_thread(path.write_bytes, file_header()[:size])
    await write(path, [make_sample(0)])
    assert len(await read(path)) == 1


def _descriptors_of(path: Path) -> list[Path]:
    descriptors = Path("/proc/self/fd").iterdir()
    return [one for one in descriptors if one.is_symlink() and one.readlink() == path]


async def test_a_cancelled_opening_leaves_no_file_open(tmp_path: Path) -> None:
    """Not even one that a thread opens after the cancellation."""
    path = tmp_path / "x.spool"
    for steps in range(40):
        opening = asyncio.create_task(Spool.open(path))
        for _ in range(steps):
            await asyncio.sleep(0)
        opening.cancel()
        (opened,) = await asyncio.gather(opening, return_exceptions=True)
        if isinstance(opened, Spool):
            await opened.close()
        assert not await asyncio.to_thread(_descriptors_of, path)


async def test_another_file_is_not_touched(tmp_path: Path) -> None:
    """A file that is not a spool is refused and left unchanged."""
    path = tmp_path / "x.spool"
    await asyncio.to_thread(path.write_bytes, b"years of work")
    with pytest.raises(ConfigurationError, match="move it away"):
        await Spool.open(path)
    assert await asyncio.to_thread(path.read_bytes) == b"years of work"


async def test_a_second_result_of_an_image_is_a_bug(tmp_path: Path) -> None:
    """Every image has exactly one outcome, so a second one is not ignored."""
    sample = make_sample(0)
    spool = await Spool.open(tmp_path / "x.spool")
    await spool.append(make_result(sample, 0, FAILURE), make_result(sample, 0, make_outcome(0)), sample)
    await spool.close()
    (spooled,) = await read(tmp_path / "x.spool")
    with pytest.raises(ConservationError, match="for sample 0"):
        spooled.record(jpeg_of)


async def test_a_sample_without_all_results_is_a_bug(tmp_path: Path) -> None:
    """A sample is not complete while one of its images has no result."""
    sample = make_sample(0, images=2)
    spool = await Spool.open(tmp_path / "x.spool")
    await spool.append(make_result(sample, 0, FAILURE), sample)
    await spool.close()
    (spooled,) = await read(tmp_path / "x.spool")
    with pytest.raises(ConservationError, match="for sample 0"):
        spooled.record(jpeg_of)


def make_large_result(sample: Sample, image: int, size_bytes: int) -> ImageResult:
    """Return the result of an image whose JPEG has this size, and begins with its number."""
    jpeg = image.to_bytes(4, "big") + bytes(size_bytes - 4)
    return make_result(sample, image, Encoded(jpeg, 4, 3, "PNG", "ab"))


async def test_entries_of_many_callers_are_where_they_were_said_to_be(tmp_path: Path) -> None:
    """Entries that take several writes, and more pieces than one write may have, are in the order of their callers."""
    sizes = [*[1 << 20] * 20, *[10] * 600, 9 << 20, *[10] * 600]
    sample = make_sample(0, images=len(sizes))
    spool = await Spool.open(tmp_path / "x.spool")
    results = [make_large_result(sample, image, size) for image, size in enumerate(sizes)]
    offsets = await asyncio.gather(*map(spool.append, results))
    assert sorted(offsets) == offsets
    for image, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        found = await spool.entries.image(offset)
        assert found is not None
        assert (found.line.image, len(found.jpeg)) == (image, size)
    await spool.append(sample)
    await spool.close()
    (spooled,) = await read(tmp_path / "x.spool")
    assert len(spooled.images) == len(sizes)


async def test_a_cancelled_append_is_written_to_its_end(tmp_path: Path) -> None:
    """What is appended afterwards follows it, so that nothing is torn."""
    sample = make_sample(0, images=20)
    spool = await Spool.open(tmp_path / "x.spool")
    for image in range(0, 20, 2):
        cancelled = asyncio.create_task(spool.append(make_large_result(sample, image, 30 << 20)))
        while spool.path.stat().st_size < image * (15 << 20) + (1 << 20):  # noqa: ASYNC110 - until its write has begun
            await asyncio.sleep(0)
        cancelled.cancel()
        await spool.append(make_large_result(sample, image + 1, 10))
        await asyncio.wait([cancelled])  # it may have been too late to cancel it
    await spool.append(sample)
    await spool.close()
    (spooled,) = await read(tmp_path / "x.spool")
    assert len(spooled.images) == 20


async def test_a_full_disk_stops_the_run(tmp_path: Path) -> None:
    """The error says what to do, and whose fault it is: not the image's."""
    sample = make_sample(0)
    full = Path("/dev/full").open("wb", buffering=0)  # noqa: ASYNC230, SIM115 - never waits; closed below
    (tmp_path / "x.spool").touch()
    spool = await asyncio.to_thread(Spool, tmp_path / "x.spool", full, Recovered(), bytes(8), 0)
    with pytest.raises(ResourceError, match=r"No space left on device.*run the same command again"):
        await spool.append(make_result(sample, 0, FAILURE), sample)
    spool.entries.release()
    full.close()
    with pytest.raises(ResourceError, match="run the same command again"):
        await Spool.open(Path("/proc/nowhere/x.spool"))
