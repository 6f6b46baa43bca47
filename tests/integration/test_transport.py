"""Peers over real sockets: three nodes converge, and a peer that is slow, down, lying or a stranger does no harm.

The segment log is a dict of lists; its frames are opaque bytes with a small header, so that author and seq are known.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import io
import logging
import random
import secrets
import struct
import threading
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Callable, Generic, Optional, TypeVar

import aiohttp
import pytest

from nsync.auth.keys import SigningKey
from nsync.authority.charter import AuthorId, Charter, FederationId, Incarnation, Instance, Place
from nsync.errors import NotAuthorised, NsyncError, ProtocolError, TransportError
from nsync.log.segment import NO_HASH
from nsync.log.stored import BEGINNING, Head, PeerRecord, Receipt, StoredSegment
from nsync.testbed.layout import free_ports
from nsync.transport import session, wire
from nsync.transport.client import PeerClient, open_session
from nsync.transport.exchange import Peer
from nsync.transport.gates import PEER_EXCHANGES_MAX
from nsync.transport.gossip import RELAY_S_MAX, Gossip
from nsync.transport.listener import Listener
from nsync.transport.notices import NoticeLog
from nsync.transport.peers import CLOCK_HEADER, PeerState
from nsync.transport.ports import SegmentLog, Take
from nsync.transport.repair import RepairLog
from nsync.transport.requests import authorization
from nsync.transport.roster import Roster
from nsync.transport.times import monotonic_ms

Test = Callable[..., Coroutine[None, None, None]]

HEADER = struct.Struct(">16sQQ")
HELLO = wire.encode_hello(bytes(16), bytes(16))
WAIT_S = 10.0
AUTHORS = [AuthorId(bytes([number]) * 16) for number in range(37)]
"""Others of whom there are logs."""
PAST = tuple(Incarnation(author, bytes(32), None) for author in AUTHORS)


def on_a_loop(test: Test) -> Callable[..., None]:
    """Run an asynchronous test, in bounded time."""

    @functools.wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return run


def frame(author: bytes, seq: int, size: int = 100) -> bytes:
    """A segment of one op."""
    return HEADER.pack(author, seq, seq) + b"sign" * 16 + random.Random(repr((author, seq))).randbytes(size)


def header_hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


class MemoryLog:
    """A SegmentLog in memory, of authors who never fork, with the faults that the tests switch on."""

    def __init__(self) -> None:
        self.broken = False
        self.announced: list[Head] = []
        self.segments: dict[bytes, list[StoredSegment]] = {}
        self.refuses: set[bytes] = set()
        self.fails_after: Optional[int] = None
        self.received: list[int] = []
        self.asked = 0
        self.threads: set[int] = set()
        self._lock = threading.Lock()

    def append(self, author: bytes, count: int = 1, size: int = 100) -> None:
        with self._lock:
            end = len(self.segments.setdefault(author, []))
            for seq in range(end + 1, end + count + 1):
                self._add(author, seq, seq, frame(author, seq, size))

    def heads(self) -> list[Head]:
        with self._lock:
            self.threads.add(threading.get_ident())
            self.asked += 1
            if self.broken:
                raise OSError("no space left")
            return [*self.announced, *(Head(author, log[-1].last, log[-1].hash) for author, log in self.segments.items() if log)]

    def unknown(self, theirs: Collection[Head]) -> list[Head]:
        with self._lock:
            return [head for head in theirs if (head.seq, head.hash) not in self._places(head.author)]

    def locator(self, author: bytes) -> list[Place]:
        with self._lock:
            places = self._places(author)
            return [*places[-1:], BEGINNING] if places else []

    def _places(self, author: bytes) -> list[Place]:
        return [Place(segment.last, segment.hash) for segment in self.segments.get(author, [])]

    def segments_after(self, have: session.Have, bytes_max: int) -> list[StoredSegment]:
        with self._lock:
            self.threads.add(threading.get_ident())
            if self.fails_after is not None:
                self.fails_after -= 1
                if self.fails_after < 0:
                    raise RuntimeError("the disk is gone")
            batch, size = [], 0
            for author, places in sorted(have.items()):
                for segment in self.segments.get(author, [])[max((place.seq for place in places), default=0) :]:
                    size += len(segment.frame)
                    if batch and size > bytes_max:
                        return batch
                    batch.append(segment)
            return batch

    def receive(self, frames: Sequence[bytes], sender: str) -> Receipt:
        with self._lock:
            self.threads.add(threading.get_ident())
            self.received.append(len(frames))
            results = [self._receive(f) for f in frames]
            return Receipt(results.count(""), tuple(r for r in results if r and r != "known"))

    def _receive(self, data: bytes) -> str:
        author, first, last = HEADER.unpack_from(data)
        end = len(self.segments.setdefault(author, []))
        if author in self.refuses or first > end + 1:
            return f"author {author.hex()}, seq {first}: refused\n"
        if first <= end:
            return "known"
        self._add(author, first, last, data)
        return ""

    def _add(self, author: bytes, first: int, last: int, data: bytes) -> None:
        log = self.segments[author]
        log.append(StoredSegment(author, first, last, data, log[-1].hash if log else NO_HASH, header_hash(data)))


Log = TypeVar("Log", bound=SegmentLog)


class Node(Generic[Log]):
    """A server and the gossip of one instance, as `node.py` puts them together."""

    def __init__(self, charter: Charter, me: Instance, key: SigningKey, log: Log, interval_s: float) -> None:
        self.charter, self.me, self.key, self.interval_s = charter, me, key, interval_s
        self.port = int(me.url.rsplit(":", 1)[1])
        self.log = log
        self.source_address: Optional[str] = None
        self.notices: Optional[NoticeLog] = None
        self.repairs: Optional[RepairLog] = None
        self.applied = 0
        self.executor = ThreadPoolExecutor(1, thread_name_prefix=me.name)
        self.listener: Optional[Listener] = None
        self.running: Optional[asyncio.Task[None]] = None

    async def start(self, gossip: bool = True, body_s_max: float = wire.BODY_S_MAX, **limits: Any) -> None:
        rng = random.Random(self.me.name)
        self.gossip = Gossip(
            self.charter,
            self.me,
            self.key,
            self.log,
            self.executor,
            rng,
            self.on_received,
            self.interval_s,
            self.source_address,
            notices=self.notices,
            repairs=self.repairs,
        )
        self.server = self.gossip.server(body_s_max=body_s_max)
        self.listener = Listener(self.server.app(), **limits)
        await self.listener.start("127.0.0.1", self.port)
        self.running = asyncio.ensure_future(self.gossip.run()) if gossip else None

    def on_received(self) -> None:
        self.applied += 1

    async def stop(self) -> None:
        if self.running is not None:
            self.running.cancel()
            with suppress(asyncio.CancelledError):
                await self.running
        if self.listener is not None:
            await self.listener.stop()
        self.running = self.listener = None

    def met(self, *names: str) -> bool:
        return all(self.peer(name).last_contact_ms is not None for name in names)

    def peer(self, name: str) -> PeerState:
        return next(state for state in self.gossip.status() if state.name == name)


def members(names: str) -> tuple[Charter, list[SigningKey]]:
    keys = [SigningKey(bytes([i]) * 32) for i in range(1, len(names) + 1)]
    instances = tuple(
        Instance(name, name, key.public, bytes(16), f"http://127.0.0.1:{port}", (f"{name}.",), (), {}, () if number else PAST)
        for number, (name, key, port) in enumerate(zip(names, keys, free_ports(len(names))))
    )
    return Charter("test", 1, FederationId(bytes(16)), instances), keys


@asynccontextmanager
async def federation(names: str, interval_s: float = 0.2, gossip: bool = True, start: bool = True) -> AsyncIterator[list[Node[MemoryLog]]]:
    """Running nodes, or only their servers; afterwards nothing of them may be left."""
    charter, keys = members(names)
    nodes = [Node(charter, me, key, MemoryLog(), interval_s) for me, key in zip(charter.instances, keys)]
    async with running(nodes, gossip, start):
        yield nodes


@asynccontextmanager
async def running(nodes: Sequence[Node[Any]], gossip: bool = True, start: bool = True) -> AsyncIterator[None]:
    """Let `nodes` run, or only their servers."""
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:
        for node in nodes:
            stack.callback(node.executor.shutdown)
            stack.push_async_callback(node.stop)
            if start:
                await node.start(gossip)
        yield
    await until(lambda: asyncio.all_tasks() == before, "no task is left")


async def until(condition: Callable[[], bool], what: str, wait_s: float = WAIT_S) -> float:
    """Wait for `condition`, at most `wait_s`; returns how long it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < wait_s, f"not within {wait_s} s: {what}"
        await asyncio.sleep(0.005)
    return time.monotonic() - begun


def write(node: Node[MemoryLog], count: int = 1, size: int = 100) -> None:
    node.log.append(node.me.author, count, size)
    node.gossip.wake()


def converged(*nodes: Node[MemoryLog]) -> Callable[[], bool]:
    return lambda: all(node.log.segments == nodes[0].log.segments for node in nodes)


@asynccontextmanager
async def client(
    caller: Node[Any], callee: Node[Any], key: Optional[SigningKey] = None, me: Optional[Instance] = None
) -> AsyncIterator[PeerClient]:
    async with open_session() as http:
        yield PeerClient(http, caller.charter, me or caller.me, callee.me, key or caller.key)


def sign(caller: Node[Any], callee: Node[Any], verb: str, body: bytes) -> str:
    """The Authorization header of one request."""
    path, now_ms, nonce = wire.PATH + verb, time.time_ns() // 1_000_000, secrets.token_bytes(16)
    return authorization(caller.key, caller.charter.federation, caller.me.author, callee.me.author, "POST", path, body, now_ms, nonce)


def head(caller: Node[Any], callee: Node[Any], verb: str, body: bytes) -> bytes:
    """The head of one request, for a raw socket."""
    signed = sign(caller, callee, verb, body)
    return f"POST {wire.PATH}{verb} HTTP/1.1\r\nHost: b\r\nAuthorization: {signed}\r\nContent-Length: {len(body)}\r\n\r\n".encode()


async def post(url: str, verb: str, body: Any, **headers: str) -> tuple[int, bytes, Mapping[str, str]]:
    """Send anything; returns status, body and headers of the answer."""
    async with open_session() as http, http.post(url + wire.PATH + verb, data=body, headers=headers) as response:
        return response.status, await response.read(), response.headers


async def ask(caller: Node[Any], callee: Node[Any], verb: str, body: bytes, **headers: str) -> tuple[int, bytes, Mapping[str, str]]:
    """A signed request."""
    return await post(callee.me.url, verb, io.BytesIO(body), Authorization=sign(caller, callee, verb, body), **headers)


async def served(caller: Node[Any], callee: Node[Any]) -> None:
    """Return when `callee` has a place for `caller`, for all that it may ask; until then it says 503, or hangs up."""
    begun = time.monotonic()
    for verb, body in (("hello", HELLO), ("pull", wire.encode_have({}))):
        status = 503
        while status == 503:
            assert time.monotonic() - begun < WAIT_S
            with suppress(aiohttp.ClientConnectionError, ConnectionError):
                status, _, _ = await ask(caller, callee, verb, body)


async def nothing(_: Sequence[bytes]) -> bool:
    raise AssertionError("nothing came whole")


async def dial(node: Node[Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", node.port)


async def hung_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The server closes the connection, in bounded time."""
    with suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), 3.0)
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


# ── convergence ──────────────────────────────────────────────────────────────────────────────────────────────────────


@on_a_loop
async def test_three_nodes_converge() -> None:
    async with federation("abc") as nodes:
        for node in nodes:
            node.log.append(node.me.author, 50)
        await until(converged(*nodes), "all have all")
        assert sum(map(len, nodes[0].log.segments.values())) == 150
        assert all(node.applied for node in nodes)
        assert all(threading.get_ident() not in node.log.threads for node in nodes)
        await until(lambda: all(not state.reason for node in nodes for state in node.gossip.status()), "all are healthy")


@on_a_loop
async def test_a_local_segment_is_pushed_at_once() -> None:
    async with federation("abc", interval_s=3600) as nodes:
        await until(lambda: nodes[0].met("b", "c"), "met")
        write(nodes[0])
        await until(converged(*nodes), "all have it, and no timer fired")


@on_a_loop
async def test_what_comes_from_a_peer_is_passed_on() -> None:
    """a can reach b only, b tells c; the timers never fire."""
    async with federation("abc", interval_s=3600, start=False) as (a, b, c):
        a.charter = Charter("test", 1, a.charter.federation, (a.me, b.me))
        for node in (b, c, a):
            await node.start()
        await until(lambda: a.met("b") and b.met("c"), "met")
        write(a)
        await until(lambda: a.me.author in c.log.segments, "c has it")


@on_a_loop
async def test_many_wake_ups_make_few_exchanges() -> None:
    async with federation("ab", interval_s=3600) as (a, b):
        await until(lambda: a.met("b"), "met")
        for _ in range(500):
            write(a)
        await until(converged(a, b), "b has all")
        assert len(b.log.received) <= 3
        await asyncio.sleep(2 * RELAY_S_MAX)  # b passes it on
        asked = a.log.asked + b.log.asked
        assert asked < 30
        await asyncio.sleep(0.1)
        assert a.log.asked + b.log.asked == asked, "then there is silence"


@on_a_loop
async def test_a_log_larger_than_one_batch_comes_in_bounded_batches() -> None:
    async with federation("ab", gossip=False) as (a, b):
        a.log.append(a.me.author, 24, size=1 << 20)
        a.log.append(a.me.author, 3000)
        (report,) = await b.gossip.sync_once()
        assert report == ("a", 3024, 0, "")
        assert max(b.log.received) <= wire.BATCH_FRAMES_MAX
        assert len(b.log.received) >= 24 * 1024 // 4096 + 3
        b.log.append(b.me.author, 24, size=1 << 20)
        (report,) = await b.gossip.sync_once()
        assert report == ("a", 0, 24, "")
        assert converged(a, b)()


@on_a_loop
async def test_a_log_larger_than_one_pull_is_asked_for_again() -> None:
    count = 2 * (wire.PULL_BYTES_MAX >> 20)
    async with federation("ab", gossip=False) as (a, b):
        a.log.append(a.me.author, count, size=1 << 20)
        (report,) = await b.gossip.sync_once()
        assert report == ("a", count, 0, "")


@on_a_loop
async def test_in_sync_costs_one_small_round_trip() -> None:
    async with federation("ab", gossip=False) as (a, b):
        for node in (a, b):
            for author in AUTHORS[:36]:
                node.log.append(author)
        roster, digest = Roster(a.charter), session.digest(a.log.heads())
        question = wire.encode_hello(digest, roster.digest, digest)
        status, answer, _ = await ask(a, b, "hello", question)
        assert (status, len(question), len(answer)) == (200, 57, 4)
        b.log.append(b.me.author)
        _, answer, _ = await ask(a, b, "hello", question)
        assert wire.decode_hello_reply(answer, roster) == (wire.VERSION, [b.log.heads()[-1]], True), "what has changed since"
        _, answer, _ = await ask(a, b, "hello", question)
        assert len(wire.decode_hello_reply(answer, roster).heads or []) == 37, "b was asked since a state that it told last no more"


# ── failures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@on_a_loop
async def test_a_peer_goes_down_and_comes_back() -> None:
    async with federation("abc") as (a, b, c):
        await until(lambda: a.met("c"), "met")
        await c.stop()
        write(a, 10)
        await until(converged(a, b), "b has it although c is down")
        await until(lambda: a.peer("c").failures >= 2, "a knows that c is down")
        state = a.peer("c")
        assert c.me.url in state.reason
        assert state.since_ms is not None and state.next_try_ms is not None
        write(b, 5)
        await c.start()
        await until(converged(a, b, c), "c has caught up", wait_s=20)
        await until(lambda: a.peer("c").failures == 0, "a knows that c is back", wait_s=20)
        assert a.peer("c").reason == ""


@on_a_loop
async def test_a_wake_up_respects_the_back_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nsync.transport")
    async with federation("ab", interval_s=3600, start=False) as (a, _):
        await a.start()
        await until(lambda: a.peer("b").failures == 1, "a knows that b is down")
        next_try_ms = a.peer("b").next_try_ms
        for _ in range(20):
            a.gossip.wake()
            await asyncio.sleep(0)
        assert a.peer("b").failures == 1
        await until(lambda: a.peer("b").failures == 2, "tried again")
        assert monotonic_ms() >= next_try_ms - 20
    told = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 1, "that it fails is logged once, not at each try"


@on_a_loop
async def test_who_calls_is_tried_at_once_and_if_it_does_not_answer_not_again_for_a_while() -> None:
    async with federation("ab", interval_s=3600, start=False) as (a, b):
        await a.start()
        a.gossip.recall([PeerRecord("b", failures=20)])
        while a.peer("b").pause_ms(monotonic_ms()) < 2 * WAIT_S * 1000:  # until a long one is drawn
            before = a.peer("b").failures
            a.gossip.reset("b")
            await until(lambda: a.peer("b").failures > before, "a new try")  # noqa: B023
        async with client(b, a) as calls:
            before = a.peer("b").failures
            await calls.hello(bytes(16))
            await until(lambda: a.peer("b").failures == before + 1, "it is tried, and b does not answer yet")
            for _ in range(5):
                await calls.hello(bytes(16))
            await asyncio.sleep(0.5)
            assert a.peer("b").failures <= before + 2, "a second try is its back-off's at most"


@on_a_loop
async def test_who_calls_and_answers_is_well_again() -> None:
    async with federation("ab", interval_s=3600, start=False) as (a, b):
        await a.start()
        a.gossip.recall([PeerRecord("b", failures=20)])
        while a.peer("b").pause_ms(monotonic_ms()) < 2 * WAIT_S * 1000:
            before = a.peer("b").failures
            a.gossip.reset("b")
            await until(lambda: a.peer("b").failures > before, "a new try")  # noqa: B023
        assert a.peer("b").reason
        await b.start(gossip=False)
        async with client(b, a) as calls:
            await calls.hello(bytes(16))
        await until(lambda: a.peer("b").failures == 0, "b is well, long before the end of its back-off")


class Scripted:
    """A peer whose answers to hello are given: an error, or None for "in sync"."""

    def __init__(self, name: str, answers: list[Optional[NsyncError]]) -> None:
        self.name = name
        self.answers = answers

    async def hello(self, digest: bytes, since: Optional[bytes]) -> wire.HelloReply:
        error = self.answers.pop(0)
        if error is not None:
            raise error
        return wire.HelloReply(wire.VERSION, None)

    async def tell(self, heads: Sequence[Head]) -> bool:
        raise AssertionError("in sync")

    async def pull(self, have: session.Have, take: Take) -> None:
        raise AssertionError("in sync")

    async def push(self, frames: Sequence[bytes]) -> Receipt:
        raise AssertionError("in sync")


@on_a_loop
async def test_a_row_of_failures_is_told_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    """One cut shows in several ways: refused connections, time-outs, answers of a proxy."""
    caplog.set_level(logging.INFO, "nsync.transport")
    charter, keys = members("ab")
    peer = Scripted("b", [TransportError("not reached"), TransportError("no answer in time"), ProtocolError("502"), None, None])

    @asynccontextmanager
    async def reach() -> AsyncIterator[Callable[[Instance], Peer]]:
        yield lambda _: peer

    gossip = Gossip(charter, charter.instances[0], keys[0], MemoryLog(), None, random.Random(1), lambda: None, reach=reach)
    while peer.answers:
        await gossip.sync_once()
    assert [record.getMessage() for record in caplog.records] == [
        "peer b: not reached (no answer since this node started; tried again until it works)",
        "peer b: in order again after 3 failures in 0 s",
    ]


@on_a_loop
async def test_a_slow_peer_delays_nobody() -> None:
    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with federation("abc", start=False) as (a, b, c):
        mute = await asyncio.start_server(silence, "127.0.0.1", c.port)
        await a.start()
        await b.start()
        write(a, 10)
        await until(converged(a, b), "b has it")
        assert not a.peer("c").failures and not b.peer("c").failures, "c is still waited for"
        await a.stop()
        await b.stop()
        mute.close()
        await mute.wait_closed()


@on_a_loop
async def test_an_interrupted_pull_resumes() -> None:
    async with federation("ab", gossip=False) as (a, b):
        a.log.append(a.me.author, 12, size=1 << 20)
        a.log.fails_after = 2
        (report,) = await b.gossip.sync_once()
        assert report.pulled == 6 and "could not be reached" in report.error
        a.log.fails_after = None
        (report,) = await b.gossip.sync_once()
        assert report == ("a", 6, 0, "")


@on_a_loop
async def test_what_is_refused_is_told_once_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    refused, other = AUTHORS[:2]
    caplog.set_level(logging.INFO, "nsync.transport")
    async with federation("ab", start=False) as (a, b):
        a.log.append(refused, 3)
        a.log.append(other, 3)
        b.log.append(b.me.author, 2)
        b.log.refuses = {refused}
        await a.start(gossip=False)
        await b.start()
        await until(lambda: b.peer("a").failures >= 3, "b backs off")
        assert len(b.log.segments[other]) == 3
        assert len(a.log.segments[b.me.author]) == 2
        assert "refused" in b.peer("a").reason and "\n" not in b.peer("a").reason
    assert len([r for r in caplog.records if "a sent a segment that is refused" in r.getMessage()]) == 1


@on_a_loop
async def test_a_refused_push_stops_and_is_told() -> None:
    async with federation("ab", gossip=False) as (a, b):
        a.log.append(bytes(16), 8, size=1 << 20)
        b.log.refuses = {bytes(16)}
        (report,) = await a.gossip.sync_once()
        assert "b refuses a segment that is stored here" in report.error and report.pushed == 0
        assert len(b.log.received) == 1, "the second batch is not sent"


@on_a_loop
async def test_a_peer_that_announces_what_it_does_not_send_is_backed_off() -> None:
    async with federation("ab", interval_s=3600, start=False) as (a, b):
        b.log.announced = [Head(b.me.author, 99, bytes(16))]
        await b.start(gossip=False)
        await a.start()
        await until(lambda: a.peer("b").failures == 1, "backed off")
        assert "did not come" in a.peer("b").reason


@on_a_loop
async def test_a_log_that_breaks_does_not_end_the_gossip(caplog: pytest.LogCaptureFixture) -> None:
    async with federation("ab") as (a, b):
        b.log.append(b.me.author, 5)
        a.log.broken = True
        await until(lambda: "no space left" in a.peer("b").reason, "the reason is shown")
        a.log.broken = False
        await until(converged(a, b), "a has caught up")


@on_a_loop
async def test_cancelling_the_gossip_in_the_middle_of_a_pull_leaves_nothing() -> None:
    async with federation("ab", start=False) as (a, b):
        a.log.append(a.me.author, 200, size=1 << 20)
        await a.start(gossip=False)
        await b.start()
        await until(lambda: bool(b.log.received), "the pull has begun")
        await b.stop()
        await until(lambda: bool(b.applied), "what is durable is announced, although nobody waits for it")
        assert len(b.log.segments[a.me.author]) < 200


# ── strangers and limits ─────────────────────────────────────────────────────────────────────────────────────────────


@on_a_loop
async def test_a_stranger_gets_401_and_nothing_else() -> None:
    async with federation("ab", gossip=False) as (a, b):
        wrong = SigningKey(bytes(32))
        for key, me in ((wrong, a.me), (wrong, replace(a.me, key=wrong.public))):
            async with client(a, b, key, me) as peer:
                with pytest.raises(NotAuthorised, match=f"b .{b.me.url}.* compare the charter"):
                    await peer.hello(bytes(16))
        for verb in ("hello", "pull", "push"):
            status, body, headers = await post(b.me.url, verb, b"x" * 100)
            assert (status, body) == (401, b"")
            assert set(headers) <= {"Content-Length", "Content-Type", "Date", "Server", "Connection", CLOCK_HEADER}
        assert not b.log.threads, "the log was not asked"


@on_a_loop
async def test_a_body_is_not_read_for_a_stranger() -> None:
    async with federation("ab", gossip=False) as (_, b):
        reader, writer = await dial(b)
        writer.write(b"POST /nsync/v1/push HTTP/1.1\r\nHost: b\r\nContent-Length: 1000000\r\n\r\n")
        assert b" 401 " in await reader.readline()
        await hung_up(reader, writer)


@on_a_loop
async def test_ping_needs_no_key() -> None:
    async with federation("a", gossip=False) as (a,), open_session() as http, http.get(f"{a.me.url}/ping") as response:
        assert set(await response.json()) == {"version"}


@pytest.mark.parametrize(
    ("verb", "body", "headers", "status", "text"),
    [
        ("push", bytes(wire.BODY_BYTES_MAX + 1), {}, 413, b"exceeded"),
        ("hello", bytes(wire.HELLO_BYTES_MAX + 1), {}, 413, b"exceeded"),
        ("hello", b"\xc0", {}, 400, b"hello: not a list of at most 128 entries"),
        ("hello", b"", {}, 400, b"hello: not msgpack"),
        ("hello", b"\x93\x07\x09\xc4\x10" + bytes(16), {}, 400, b"versions 7 to 9, this nsync speaks 3 to 3"),
        ("hello", b"\x93\x01\x01\xc4\x10" + bytes(16), {}, 400, b"versions 1 to 1, this nsync speaks 3 to 3; upgrade the older one"),
        ("pull", b"\x92\x03\x91\x92\xc4\x01x\x01", {}, 400, b"author: not 16 bytes"),
        ("push", b"not zstd", {}, 400, b"frames: not a zstd stream"),
        ("push", wire.encode_frames([bytes(64)])[:-3], {}, 400, b"cut short"),
        ("hello", b"\x93\x01\x01\xc4\x10" + bytes(16), {"Content-Encoding": "deflate"}, 415, b"Content-Encoding"),
    ],
)
@on_a_loop
async def test_members_are_told_what_is_wrong(verb: str, body: bytes, headers: dict[str, str], status: int, text: bytes) -> None:
    async with federation("ab", gossip=False) as (a, b):
        answered = await ask(a, b, verb, body, **headers)
        assert answered[0] == status and text in answered[1] and len(answered[1]) < 200


@on_a_loop
async def test_a_replaced_body_is_refused() -> None:
    async with federation("ab", gossip=False) as (a, b):
        signed = sign(a, b, "push", wire.encode_frames([frame(a.me.author, 1)]))
        other = wire.encode_frames([frame(a.me.author, 2)])
        assert (await post(b.me.url, "push", other, Authorization=signed))[:2] == (401, b"")
        assert not b.log.received


@on_a_loop
async def test_slow_bodies_and_slow_headers_are_hung_up_on() -> None:
    async with federation("ab", start=False) as (a, b):
        await b.start(gossip=False, body_s_max=0.2, header_s_max=0.2)
        reader, writer = await dial(b)
        writer.write(head(a, b, "push", bytes(1000)) + b"0")
        assert b" 408 " in await reader.readline()
        await hung_up(reader, writer)
        for start in (b"", b"POST /nsync/v1/push HTT"):
            reader, writer = await dial(b)
            writer.write(start)
            await hung_up(reader, writer)
        assert (await ask(a, b, "hello", HELLO))[0] == 200, "the place is free again"


@on_a_loop
async def test_a_caller_that_hangs_up_in_the_middle_frees_its_place(caplog: pytest.LogCaptureFixture) -> None:
    async with federation("ab", gossip=False) as (a, b):
        b.log.append(b.me.author, 60, size=1 << 20)
        have = wire.encode_have({b.me.author: []})
        for _ in range(2 * PEER_EXCHANGES_MAX):
            for request in (head(a, b, "push", bytes(1000)) + b"x", head(a, b, "pull", have) + have):
                reader, writer = await dial(b)
                writer.write(request)
                await asyncio.sleep(0.02)  # let it begin; should it not have, the test is only weaker
                writer.transport.abort()
                await served(a, b)
        for _ in range(3):
            reader, writer = await dial(b)
            writer.write(b"POST /nsync/v1/push HTTP/1.1\r\nHost: b\r\nContent-Length: 1000000\r\n\r\nx")
            await reader.readline()
            writer.transport.abort()
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR], "no traceback"


@on_a_loop
async def test_beyond_its_places_a_peer_is_asked_to_come_later() -> None:
    async with federation("abc", gossip=False) as (a, b, c):
        b.log.append(b.me.author, 60, size=1 << 20)
        have, pulls = wire.encode_have({b.me.author: []}), []
        for _ in range(PEER_EXCHANGES_MAX):
            reader, writer = await dial(b)
            writer.write(head(a, b, "pull", have) + have)
            assert b" 200 " in await reader.readline()
            pulls.append(writer)
        status, _, headers = await ask(a, b, "pull", have)
        assert status == 503 and headers["Retry-After"] == "1"
        assert (await ask(c, b, "pull", wire.encode_have({})))[0] == 200, "others are served"
        async with client(a, b) as peer:
            with pytest.raises(TransportError, match="not able to answer now: 503 busy"):
                await peer.pull({}, nothing)
        for writer in pulls:
            writer.transport.abort()


@on_a_loop
async def test_beyond_the_greatest_number_of_connections_a_new_one_is_closed() -> None:
    async with federation("ab", start=False) as (a, b):
        await b.start(gossip=False, connections_max=2)
        first = [await dial(b) for _ in range(2)]
        for reader, writer in first:
            writer.write(head(a, b, "hello", HELLO) + HELLO)
            assert b" 200 " in await reader.readline()
        await hung_up(*await dial(b))
        for _, writer in first:
            writer.transport.abort()
        await served(a, b)


@on_a_loop
async def test_the_client_dials_from_the_address_it_is_given_and_through_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    callers: list[str] = []

    async def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        callers.append(writer.get_extra_info("peername")[0])
        writer.close()

    async with federation("ab", start=False) as (a, b):
        server = await asyncio.start_server(note, "127.0.0.1", b.port)
        a.source_address = "127.0.0.2"
        await a.start(gossip=False)
        (report,) = await a.gossip.sync_once()
        assert callers == ["127.0.0.2"] and "could not be reached" in report.error
        server.close()
        await server.wait_closed()


@on_a_loop
async def test_the_client_believes_no_server() -> None:
    """Redirects, encodings, endless answers and bombs end in an error that names the peer."""
    bomb = wire.zstandard.ZstdCompressor().compress(bytes(1 << 28))
    answers = {
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n": "unexpected answer 302",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n": "unexpected answer 200",
        b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1 << 20): "answered more than",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xff": "hello reply",
        b"HTTP/1.1 500 \r\nContent-Length: 3\r\n\r\n\x1b\n\xff": r"500 \?\?\?",
        b"nonsense\r\n\r\n": "could not be reached",
        b"": "could not be reached",
    }
    async with federation("ab", start=False) as (a, b):
        answer = b""

        async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await reader.read(1 << 10)
            writer.write(answer)
            with suppress(ConnectionError):
                await writer.drain()
            writer.close()

        server = await asyncio.start_server(respond, "127.0.0.1", b.port)
        for answer, text in answers.items():  # noqa: B007  (respond sends it)
            async with client(a, b) as peer:
                with pytest.raises((TransportError, ProtocolError), match=text) as raised:
                    await peer.hello(bytes(16))
            assert b.me.url in str(raised.value)
        async with client(a, b) as peer:
            answer = b"HTTP/1.1 200 OK\r\n\r\n" + bomb
            with pytest.raises(ProtocolError):
                await peer.pull({}, nothing)
        server.close()
        await server.wait_closed()
