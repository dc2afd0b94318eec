"""MemberReader: fetches members of archives, several neighbours by one range.

Theory of operation. Each call asks for one member, and there are many calls at the same time, for members that lie next
to each other. They wait in the order of their offsets. Whenever fewer ranges are being read than may be, the first
waiting members become a *span*: as many neighbours as have room in one range. Members are neighbours if no other
selected member lies between them, and no more than a small gap, which is read and thrown away. So how members are
joined follows from what is asked for, and a resumed run reads none again that it has.

When a span has arrived, its members are inflated and checked in a thread, a few megabytes at a time, and each call gets
its own. The bytes of spans are bounded by how many there may be; a member's content is counted against the reservation
of its call. A span itself holds no reservation, for spans that wait for each other's memory would never end.

Rules: nothing that an archive says of a member is believed. The content has the size and the checksum of the
directory, or it is a ``Failure``; no more than that size is inflated.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
import zlib
from bisect import insort
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from datafetch.fetch.memory import Reservation
from datafetch.fetch.policy import DEFAULT_MAX_BODY_BYTES
from datafetch.fetch.ranges import Range, RangeReader
from datafetch.model.archive import DEFLATED, DEFLATED64, LOCAL_HEADER_BYTES, STORED, Member
from datafetch.model.checksum import crc32
from datafetch.model.outcome import Body, Failure, FailureKind, Fetched, Permission, Source

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_LOCAL_SIGNATURE = b"PK\3\4"
_MAX_GAP_BYTES = 64 * 1024
_MIN_SPAN_BYTES = 256 * 1024  # a smaller one takes as long as a request does
_GATHER_S = 0.01  # how long the first of several calls waits for the others
_INFLATED_BYTES = 16 * 1024 * 1024  # of contents that are in memory before their calls have them
_DEFLATE64_PIECE_BYTES = 64  # the library has no limit for its output, and each byte may become a quarter megabyte
_THREADS = 2


@dataclass(order=True, slots=True)
class _Call:
    """A call for one member."""

    key: tuple[int, int]
    member: Member = field(compare=False)
    memory: Reservation = field(compare=False)
    fetched: asyncio.Future[Fetched] = field(compare=False)


class MemberReader:
    """Fetches members, from any number of tasks; to be closed.

    Args:
        archives: The archives, in the order of the numbers that members give.
        max_member_bytes: Larger members are refused.
        spans: How many ranges are read at the same time.
    """

    def __init__(self, archives: Sequence[RangeReader], *, max_member_bytes: int, spans: int) -> None:
        self._archives = archives
        self._max_member_bytes = max_member_bytes
        self._max_spans = spans
        self._waiting: list[_Call] = []
        self._waiting_bytes = 0
        self._spans: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._error: BaseException | None = None
        self._inflater = ThreadPoolExecutor(_THREADS, thread_name_prefix="inflate")

    async def close(self) -> None:
        """Cancel what is being read, and release the threads."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for span in self._spans:
            span.cancel()
        await asyncio.gather(*self._spans, return_exceptions=True)
        self._inflater.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, member: Member, memory: Reservation) -> Fetched:
        """Fetch one member.

        Args:
            member: The member.
            memory: The reservation that its content is counted against.

        Returns:
            Its content, of the size and with the checksum that the directory gives, or why there is none.

        Raises:
            ManifestError: The archive can't be read, or has changed.
        """
        if member.size_bytes > self._max_member_bytes:
            detail = f"the member has over {self._max_member_bytes:,} bytes"
            return Failure(FailureKind.TOO_LARGE, detail, source=Source.ARCHIVE)
        if self._error is not None:
            raise self._error
        future: asyncio.Future[Fetched] = asyncio.get_running_loop().create_future()
        insort(self._waiting, _Call((member.archive, member.start), member, memory, future))
        self._waiting_bytes += member.compressed_bytes
        self._start_soon()
        return await future

    def _start_soon(self) -> None:
        """Start spans when the next calls have had time to come, or at once if there are enough for a whole span."""
        if self._timer is None and self._waiting and len(self._spans) < self._max_spans:
            is_enough = self._waiting_bytes >= self._archives[self._waiting[0].member.archive].span_bytes
            self._timer = asyncio.get_running_loop().call_later(0 if is_enough else _GATHER_S, self._start_spans)

    def _start_spans(self) -> None:
        self._timer = None
        while self._waiting and len(self._spans) < self._max_spans:
            calls = self._take_span()
            if calls:
                span = asyncio.get_running_loop().create_task(self._read_span(calls))
                self._spans.add(span)
                span.add_done_callback(self._end_span)

    def _end_span(self, span: asyncio.Task[None]) -> None:
        self._spans.discard(span)
        if not self._is_closed:
            self._start_soon()

    def _take_span(self) -> list[_Call]:
        """Take the first waiting calls whose members can be read by one range; drop those that were cancelled.

        If what waits does not fill all ranges, each takes a share of it, so that none is idle while the last are read.
        """
        calls: list[_Call] = []
        max_bytes = count = 0
        for call in self._waiting:
            member = call.member
            if call.fetched.done():
                pass
            elif not calls:
                share_bytes = self._waiting_bytes // self._max_spans
                max_bytes = min(self._archives[member.archive].span_bytes, max(_MIN_SPAN_BYTES, share_bytes))
                calls.append(call)
            else:
                before = calls[-1].member
                is_neighbour = member.archive == before.archive and member.start - member.gap_bytes == before.stop
                is_near = is_neighbour and member.gap_bytes <= _MAX_GAP_BYTES
                if not is_near or member.stop - calls[0].member.start > max_bytes:
                    break
                calls.append(call)
            count += 1
            self._waiting_bytes -= member.compressed_bytes
        del self._waiting[:count]
        return calls

    async def _read_span(self, calls: list[_Call]) -> None:
        try:
            archive = self._archives[calls[0].member.archive]
            start, stop = calls[0].member.start, calls[-1].member.stop
            read = await archive.read(start, stop)
            if isinstance(read, Failure):
                for call in calls:
                    _resolve(call, replace(read, source=Source.ARCHIVE))
                return
            for group in _groups(calls):
                await self._deliver(group, read, start, archive)
        except asyncio.CancelledError:
            for call in calls:
                call.fetched.cancel()
            raise
        except BaseException as error:  # noqa: BLE001 - each caller gets it
            self._error = self._error or error
            for call in (*calls, *self._waiting):
                if not call.fetched.done():
                    call.fetched.set_exception(error)
            self._waiting.clear()
            self._waiting_bytes = 0

    async def _deliver(self, calls: list[_Call], read: Range, start: int, archive: RangeReader) -> None:
        """Inflate members of a span, and hand them to their callers."""
        loop = asyncio.get_running_loop()
        members = [call.member for call in calls]
        contents = await loop.run_in_executor(self._inflater, _inflate_all, members, read.content, start)
        for call, content in zip(calls, contents, strict=True):
            _resolve(call, await self._fetched(call, content, read, archive))

    async def _fetched(
        self, call: _Call, content: bytes | Failure | _Beyond, read: Range, archive: RangeReader
    ) -> Fetched:
        if isinstance(content, _Beyond):  # of extra fields that the directory does not have
            content = await self._read_beyond(call.member, content.stop, archive)
        if isinstance(content, Failure):
            return replace(content, attempts=read.attempts, permitted=read.permitted)
        if not call.fetched.done():  # its caller is still there
            await call.memory.grow(len(content))
            if call.fetched.done():  # it has gone in the meantime, and its reservation with it
                call.memory.shrink(0)
        permitted = set(read.permitted)
        if len(content) > DEFAULT_MAX_BODY_BYTES:
            permitted.add(Permission.MAX_BODY)
        return Body(
            content,
            attempts=read.attempts,
            fetch_ms=read.fetch_ms,
            permitted=tuple(sorted(permitted)),
            source=Source.ARCHIVE,
        )

    async def _read_beyond(self, member: Member, stop: int, archive: RangeReader) -> bytes | Failure:
        if archive.total_bytes is not None and stop > archive.total_bytes:
            return _BadMemberError("its data ends behind the end of the archive").failure
        read = await archive.read(member.start, stop)
        if isinstance(read, Failure):
            return replace(read, source=Source.ARCHIVE)
        loop = asyncio.get_running_loop()
        (content,) = await loop.run_in_executor(
            self._inflater, _inflate_all, [replace(member, stop=stop)], read.content, member.start
        )
        if isinstance(content, _Beyond):
            return _BadMemberError("its header has changed while it was read").failure
        return content


@dataclass(frozen=True, slots=True)
class _Beyond:
    """The data of a member ends further behind its header than the directory lets expect."""

    stop: int


def _resolve(call: _Call, fetched: Fetched) -> None:
    if not call.fetched.done():
        call.fetched.set_result(fetched)


def _groups(calls: list[_Call]) -> list[list[_Call]]:
    """Divide calls so that the contents of each group are bounded; one member may be larger by itself."""
    groups: list[list[_Call]] = [[]]
    size_bytes = 0
    for call in calls:
        if groups[-1] and size_bytes + call.member.size_bytes > _INFLATED_BYTES:
            groups.append([])
            size_bytes = 0
        groups[-1].append(call)
        size_bytes += call.member.size_bytes
    return groups


class _BadMemberError(Exception):
    """A member is not what the directory says of it.

    Attributes:
        failure: Its outcome.
    """

    def __init__(self, reason: str, sha256: str = "") -> None:
        super().__init__(reason)
        self.failure = Failure(FailureKind.BAD_MEMBER, reason, sha256=sha256, source=Source.ARCHIVE)


def _inflate_all(members: list[Member], span: bytes, start: int) -> list[bytes | Failure | _Beyond]:
    view = memoryview(span)
    return [_inflate(member, view[member.start - start : member.stop - start]) for member in members]


def _inflate(member: Member, raw: memoryview) -> bytes | Failure | _Beyond:
    """Read one member from the bytes between its start and its stop."""
    try:
        data_stop = _find_data(member, raw)
        if data_stop > len(raw):
            return _Beyond(member.start + data_stop)
        content = _decompress(member, raw[data_stop - member.compressed_bytes : data_stop])
        _check(member, content)
    except _BadMemberError as error:
        return error.failure
    except (zlib.error, ValueError, OSError) as error:
        # It may have been damaged on its way.
        return _BadMemberError(f"its data can't be decompressed: {error}", hashlib.sha256(raw).hexdigest()).failure
    return content


def _find_data(member: Member, raw: memoryview) -> int:
    """Read a member's local header, and return where its data ends.

    Raises:
        _BadMemberError: There is no header, or it contradicts the directory.
    """
    if len(raw) < LOCAL_HEADER_BYTES or raw[:4] != _LOCAL_SIGNATURE:
        raise _BadMemberError("there is no member where the central directory says")
    fields = _LOCAL_HEADER.unpack_from(raw)
    method, name_bytes, extra_bytes = fields[3], fields[9], fields[10]
    if method != member.method:
        raise _BadMemberError("its header names another compression method than the central directory")
    return int(LOCAL_HEADER_BYTES + name_bytes + extra_bytes + member.compressed_bytes)


def _check(member: Member, content: bytes) -> None:
    """Check what was inflated.

    Raises:
        _BadMemberError: It is not what the directory says.
    """
    if len(content) != member.size_bytes:
        raise _BadMemberError("it has another size than the central directory gives")
    if crc32(content) != member.crc32:
        raise _BadMemberError("its checksum is wrong", hashlib.sha256(content).hexdigest())


def _decompress(member: Member, data: memoryview) -> bytes:
    """Inflate data, up to one byte more than the member should have.

    Raises:
        ValueError: The data ends too early.
        zlib.error: It is damaged.
    """
    if member.method == STORED:
        return bytes(data[: member.size_bytes + 1])
    if member.method == DEFLATED:
        inflating = zlib.decompressobj(-zlib.MAX_WBITS)
        content = inflating.decompress(data, member.size_bytes + 1)
        if len(content) <= member.size_bytes and not inflating.eof:
            raise ValueError("it is cut short")
        return content
    assert member.method == DEFLATED64, "the directory's reader refuses others"
    return _decompress64(member, data)


def _decompress64(member: Member, data: memoryview) -> bytes:
    import inflate64  # noqa: PLC0415 - few archives need it

    inflating = inflate64.Inflater()
    content = bytearray()
    for position in range(0, len(data), _DEFLATE64_PIECE_BYTES):
        content += inflating.inflate(bytes(data[position : position + _DEFLATE64_PIECE_BYTES]))
        if len(content) > member.size_bytes:
            break
    return bytes(content)
