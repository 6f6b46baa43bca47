"""Catching up over real sockets: nothing is fetched twice, wherever a connection breaks, whoever is asked, and however slow the store is.

The peers of `test_transport`, with a wire that can be cut, or slowed down, between them.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Optional

import pytest

from nsync.authority.effective import Authority
from nsync.log.stored import FULL, Head, Receipt, StoredSegment
from nsync.namespace.ops import ACKNOWLEDGE
from nsync.store.database import writing
from nsync.store.log import SqlLog
from nsync.testbed.layout import free_ports
from nsync.transport import exchange, gossip, pulls, session, wire
from nsync.transport.exchange import PUSH_OPS_MAX
from nsync.transport.flood import Flood
from nsync.transport.gossip import FEW_PEERS, Gossip
from nsync.transport.roster import Roster
from tests.integration.test_forks_between_peers import NOW_MS, History, StoreLog
from tests.integration.test_transport import (
    AUTHORS,
    WAIT_S,
    MemoryLog,
    Node,
    ask,
    client,
    converged,
    federation,
    header_hash,
    members,
    on_a_loop,
    running,
    until,
)

SEGMENT_BYTES = 20_000
"""Random, so they take as many on the wire."""


class Wire:
    """Passes connections on to a peer, and ends them as the test likes."""

    def __init__(self, to: int, port: int) -> None:
        self.port, self._to = port, to
        self.cut_after: Optional[int] = None
        """Bytes from the peer after which a connection ends."""
        self.bytes_per_s: Optional[int] = None
        self.back = 0
        """Bytes that came from the peer in all."""

    @asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._pass, "127.0.0.1", self.port)
        try:
            yield
        finally:
            server.close()
            await server.wait_closed()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        tasks = [asyncio.ensure_future(self._copy(reader, back)), asyncio.ensure_future(self._copy(there, writer, True))]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for end in (back, writer):
            end.close()
            with suppress(ConnectionError):
                await end.wait_closed()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counted: bool = False) -> None:
        sent = 0
        with suppress(ConnectionError):
            while data := await reader.read(4096):
                if counted and self.cut_after is not None:
                    data = data[: self.cut_after - sent]
                writer.write(data)
                await writer.drain()
                sent += len(data)
                self.back += len(data) * counted
                if counted and self.cut_after is not None and sent >= self.cut_after:
                    return
                if counted and self.bytes_per_s is not None:
                    await asyncio.sleep(len(data) / self.bytes_per_s)


@asynccontextmanager
async def behind(names: str, **options: float) -> AsyncIterator[tuple[list[Node[MemoryLog]], dict[str, Wire]]]:
    """Nodes of which the first reaches the others through wires; the others only answer, until they are started."""
    charter, keys = members(names)
    nodes = [Node(charter, me, key, MemoryLog(), 3600) for me, key in zip(charter.instances, keys)]
    wires = {node.me.name: Wire(node.port, port) for node, port in zip(nodes[1:], free_ports(len(names) - 1))}
    through = (replace(i, url=f"http://127.0.0.1:{wires[i.name].port}") if i.name in wires else i for i in charter.instances)
    nodes[0].charter = replace(charter, instances=tuple(through))
    async with running(nodes, gossip=False, start=False):
        for node in nodes[1:]:
            await node.start(gossip=False)
        async with nodes_through(list(wires.values())):
            yield nodes, wires


@asynccontextmanager
async def nodes_through(wires: Sequence[Wire]) -> AsyncIterator[None]:
    if not wires:
        yield
        return
    async with wires[0].up(), nodes_through(wires[1:]):
        yield


def frames_received(node: Node[MemoryLog]) -> int:
    return sum(node.log.received)


@on_a_loop
async def test_wherever_the_connection_breaks_nothing_that_came_is_fetched_again() -> None:
    """Cut ever further on, at odd places: in the head of the answer, in a frame, between two."""
    async with behind("ab") as ((a, b), wires):
        await a.start(gossip=False)
        b.log.append(b.me.author, 300, SEGMENT_BYTES)
        rng, cuts = random.Random(1), 0
        while len(a.log.segments.get(b.me.author, [])) < 300:
            wires["b"].cut_after = rng.choice([150, 1000, 30_000, 200_000, 1_000_000])
            before = len(a.log.segments.get(b.me.author, []))
            (report,) = await a.gossip.sync_once()
            assert report.pulled == len(a.log.segments.get(b.me.author, [])) - before
            cuts += bool(report.error)
            wires["b"].cut_after = None if cuts > 60 else 0
        assert cuts > 5
        assert frames_received(a) == 300, "each segment once"
        whole = sum(len(segment.frame) for segment in b.log.segments[b.me.author])
        assert wires["b"].back <= whole + cuts * (wire.FRAME_BYTES_MIN + 2 * (1 << 17)), "and of what was being sent a zstd block"


@on_a_loop
async def test_a_newcomer_pulls_from_all_who_have_it_and_each_segment_once() -> None:
    """Three peers have all of 24 logs, and tell each other of nothing meanwhile."""
    async with behind("abcd") as ((newcomer, *others), wires):
        authors = AUTHORS[1:25]
        for node in others:
            for author in authors:
                node.log.append(author, 700, 500)
        wires["b"].bytes_per_s = 3_000_000  # the others have done their share while it is at its own
        await newcomer.start()
        await until(converged(newcomer, others[0]), "the newcomer has all", wait_s=40)
        needed = len(authors) * 700
        assert frames_received(newcomer) <= 1.05 * needed
        whole = sum(len(segment.frame) for log in others[0].log.segments.values() for segment in log)
        assert sum(one.back for one in wires.values()) <= 1.05 * whole
        shares = [one.back / whole for one in wires.values()]
        assert min(shares) > 0.15, f"each peer gave its share: {shares}"


@on_a_loop
async def test_what_a_dead_peer_was_asked_for_is_taken_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """One peer takes the question, and then sends next to nothing."""
    monkeypatch.setattr(pulls, "LEASE_MS", 300)
    monkeypatch.setattr("nsync.transport.gossip.LEASE_MS", 300)
    async with behind("abc") as ((newcomer, *others), wires):
        authors = AUTHORS[1:9]
        for node in others:
            for author in authors:
                node.log.append(author, 1200, 500)
        wires["b"].bytes_per_s = 20_000
        await newcomer.start()
        await until(converged(newcomer, others[0]), "the newcomer has all", wait_s=40)
        assert frames_received(newcomer) <= 1.05 * len(authors) * 1200


class Narrow(MemoryLog):
    """Takes so many segments ahead of what is applied, as the store does."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.refused = 0

    def receive(self, frames: Sequence[bytes], sender: str) -> Receipt:
        stored = 0
        for one in frames:
            new = header_hash(one) not in {segment.hash for segment in self.segments.get(one[:16], [])}
            if new and not self.room:
                self.refused += 1
                return Receipt(stored, (f"segment{FULL}wait",))
            stored += super().receive([one], sender).stored
            self.room -= new
        return Receipt(stored, ())


@on_a_loop
async def test_the_stream_waits_for_the_store() -> None:
    """What waits to be applied is bounded; the sender waits then, and nothing is fetched twice, and nobody has failed."""
    charter, keys = members("ab")
    a, b = (Node(charter, me, key, log, 3600) for me, key, log in zip(charter.instances, keys, (Narrow(50), MemoryLog())))
    async with running([a, b], gossip=False):
        b.log.append(b.me.author, 2000, 5000)
        pulling = asyncio.ensure_future(a.gossip.sync_once())
        while not pulling.done():
            await asyncio.sleep(0.02)
            if not a.log.room:
                a.log.room = 400
                a.gossip.applied()
        ((report,),) = (await pulling,)
        assert report == ("b", 2000, 0, "")
        assert a.log.refused, "it was full at times"
        assert b.log.asked <= 3, "asked once"


@on_a_loop
async def test_a_store_that_is_slow_ends_the_pull_before_the_sender_hangs_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for one segment at a time, at a third of the pace at which the sender would wait for all of them."""
    monkeypatch.setattr(exchange, "WAITED_MS_MAX", 500)
    monkeypatch.setattr(gossip, "ROOM_S_MIN", 0.01)
    charter, keys = members("ab")
    a, b = (Node(charter, me, key, log, 3600) for me, key, log in zip(charter.instances, keys, (Narrow(1), MemoryLog())))
    async with running([a, b], gossip=False):
        b.log.append(b.me.author, 300, 5000)
        reports = []
        while not a.log.segments.get(b.me.author) or len(a.log.segments[b.me.author]) < 300:
            pulling = asyncio.ensure_future(a.gossip.sync_once())
            while not pulling.done():
                await asyncio.sleep(0.02)
                a.log.room += not a.log.room
                a.gossip.applied()
            reports += await pulling
            assert not reports[-1].error and reports[-1].pulled
            a.log.room += 100
        assert len(reports) > 1, "not all in one"
        assert sum(report.pulled for report in reports) == 300


class Blocked(MemoryLog):
    """Stores nothing before it may."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = threading.Event()

    def receive(self, frames: Sequence[bytes], sender: str) -> Receipt:
        assert self.opened.wait(WAIT_S)
        return super().receive(frames, sender)


class Counted(MemoryLog):
    """Knows how many batches were read from it."""

    batches = 0

    def segments_after(self, have: session.Have, bytes_max: int) -> list[StoredSegment]:
        self.batches += 1
        return super().segments_after(have, bytes_max)


@on_a_loop
async def test_a_store_that_stands_still_stops_the_sender() -> None:
    """Of 56 MiB some batches are on their way: what the sockets hold, and what both ends may. The rest stays in the sender's log."""
    charter, keys = members("ab")
    a, b = nodes = [Node(charter, me, key, log, 3600) for me, key, log in zip(charter.instances, keys, (Blocked(), Counted()))]
    async with running(nodes, gossip=False):
        b.log.append(b.me.author, 56, 1 << 20)
        pulling, last = asyncio.ensure_future(a.gossip.sync_once()), -1
        while last != b.log.batches or not last:
            last = b.log.batches
            await asyncio.sleep(0.5)
        assert last <= 8, "of 19"
        a.log.opened.set()
        (report,) = await pulling
        assert report == ("b", 56, 0, "") and b.log.batches > 15


@on_a_loop
async def test_who_lacks_much_is_told_and_asks_whom_it_likes() -> None:
    async with federation("ab", interval_s=3600) as (a, b):
        await until(lambda: a.met("b") and b.met("a"), "met")
        a.log.append(a.me.author, PUSH_OPS_MAX + 1)
        (report,) = await a.gossip.sync_once()
        assert report == ("b", 0, 0, "")
        await until(converged(a, b), "b asks for it")
        assert frames_received(b) == PUSH_OPS_MAX + 1


@on_a_loop
async def test_who_cannot_ask_is_sent_all() -> None:
    """b reaches nobody: a pushes even much."""
    async with federation("ab", interval_s=3600, start=False) as (a, b):
        (nobody,) = free_ports(1)
        b.charter = replace(b.charter, instances=(replace(a.me, url=f"http://127.0.0.1:{nobody}"), b.me))
        await a.start(gossip=False)
        await b.start()
        await until(lambda: b.peer("a").failures > 0, "b fails to reach a")
        a.log.append(a.me.author, PUSH_OPS_MAX + 1)
        (report,) = await a.gossip.sync_once()
        assert report == ("b", 0, PUSH_OPS_MAX + 1, "")


@on_a_loop
async def test_news_floods_a_large_federation() -> None:
    """Twelve nodes, whose timers never fire: who has the segment tells some, and they ask for it."""
    async with federation("abcdefghijkl", interval_s=3600) as nodes:
        assert len(nodes) - 1 > FEW_PEERS
        names = [node.me.name for node in nodes]
        await until(lambda: all(node.met(*(n for n in names if n != node.me.name)) for node in nodes), "all have met", wait_s=30)
        for node in random.Random(1).sample(nodes, 3):
            node.log.append(node.me.author)
            node.gossip.wake()
            await until(converged(*nodes), "all have it", wait_s=10)
        assert all(sum(node.log.received) <= 4 for node in nodes), "each segment was fetched once by each"


def test_the_next_in_the_ring_is_always_told() -> None:
    flood = Flood("c", None, random.Random(1), lambda name: name != "d")  # type: ignore[arg-type]
    names = dict.fromkeys("abdefghij")
    for _ in range(20):
        first, *others = flood.targets(names)
        assert first == "e", "d is not well"
        assert len(set(others)) == 4 and not {"c", "d", "e"} & set(others)
    assert Flood("z", None, random.Random(1), lambda _: True).targets({"a": 1, "b": 2})[0] == "a"  # type: ignore[arg-type]
    assert Flood("z", None, random.Random(1), lambda _: True).targets({}) == []  # type: ignore[arg-type]


# ── versions ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("low", "high", "status", "text"),
    [
        (wire.VERSION - 1, wire.VERSION - 1, 400, b"upgrade the older one"),
        (wire.VERSION + 1, wire.VERSION + 1, 400, b"upgrade the older one"),
        (wire.VERSION - 1, wire.VERSION, 200, b""),
        (wire.VERSION, wire.VERSION + 1, 200, b""),
        (wire.VERSION - 2, wire.VERSION + 7, 200, b""),
        (wire.VERSION + 1, wire.VERSION - 1, 400, b"upgrade the older one"),
    ],
)
@on_a_loop
async def test_the_highest_common_version_is_spoken(low: int, high: int, status: int, text: bytes) -> None:
    """Also with a newer peer, whose hello says more than this nsync knows of."""
    async with federation("ab", gossip=False) as (a, b):
        b.log.append(b.me.author)
        more = [b"new", 7] if high > wire.VERSION else []
        hello = wire.msgpack.packb([low, high, bytes(16), Roster(a.charter).digest, None, *more])
        answered, body, _ = await ask(a, b, "hello", hello)
        assert answered == status and text in body
        if status == 200:
            assert wire.decode_hello_reply(body, Roster(a.charter)) == (wire.VERSION, b.log.heads(), False)


@on_a_loop
async def test_a_peer_that_answers_in_another_version_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with federation("ab", gossip=False) as (a, b):
        for version in (wire.VERSION - 1, wire.VERSION + 1):
            monkeypatch.setattr(b.server, "_told", Answering(wire.HelloReply(version, None)))
            (report,) = await a.gossip.sync_once()
            assert f"in version {version} of the protocol, this nsync speaks 3 to 3; upgrade the older one" in report.error


async def take(node: Node[StoreLog], frames: Sequence[bytes]) -> bool:
    return node.log.receive(frames, "").stored == len(frames)


class Answering(session.Told):
    """Answers every hello like this."""

    def __init__(self, reply: wire.HelloReply) -> None:
        super().__init__()
        self._reply = reply

    def answer(self, *_: object) -> wire.HelloReply:
        return self._reply


@on_a_loop
async def test_ops_of_a_later_version_pass_and_mean_nothing(tmp_path: Path) -> None:
    """c asks b for what a signed; all three have the store of this version."""
    charter, keys = members("abc")
    logs = [StoreLog(tmp_path / f"{me.name}.db", charter, me.author) for me in charter.instances]
    a, b, c = nodes = [Node(charter, me, key, log, 3600) for me, key, log in zip(charter.instances, keys, logs)]
    history = History(charter, a.me.author, a.key)
    history.sign([bytes([0x92, 0x64, 7]), ACKNOWLEDGE, bytes([0x93, 0x65, 0xC4, 0x01, 0x00, 0xA1, 0x78])])
    assert logs[0].receive(history.frames, "").stored == 1
    async with running(nodes, gossip=False):
        for to, asker in ((a, b), (b, c)):
            async with client(asker, to) as peer:
                await peer.pull({a.me.author: []}, partial(take, asker))
    assert [segment.frame for segment in logs[2].segments_after({a.me.author: []}, 1 << 20)] == history.frames
    with writing(logs[2].engine) as connection:
        applied = SqlLog(connection, Authority(charter)).apply_next(NOW_MS + 1000)
    assert applied is not None and (applied.first, applied.last, applied.changed, applied.void) == (1, 3, 0, 0)
    for log in logs:
        log.close()


# ── what a peer was told last ────────────────────────────────────────────────────────────────────────────────────────


@on_a_loop
async def test_only_what_changed_is_told_again() -> None:
    async with federation("ab", gossip=False) as (a, b):
        for author in AUTHORS[1:]:
            b.log.append(author)
        await a.gossip.sync_once()
        b.log.append(AUTHORS[9])
        async with client(a, b) as peer:
            before = a.gossip.meters["b"].heads
            assert before is not None and len(before) == 36
            reply = await peer.hello(bytes(16), session.digest(before))
            assert reply == (wire.VERSION, [Head(AUTHORS[9], 2, b.log.heads()[8].hash)], True)
        (report,) = await a.gossip.sync_once()
        assert report == ("b", 1, 0, ""), "b remembers another state, and tells all"
        assert converged(a, b)()


@on_a_loop
async def test_a_peer_that_tells_of_changes_to_who_asked_for_all_is_a_liar(monkeypatch: pytest.MonkeyPatch) -> None:
    async with federation("ab", gossip=False) as (a, b):
        b.log.append(b.me.author)
        monkeypatch.setattr(b.server, "_told", Answering(wire.HelloReply(wire.VERSION, [], True)))
        (report,) = await a.gossip.sync_once()
        assert "was asked for all" in report.error


def test_a_gossip_without_peers_runs_no_anti_entropy() -> None:
    charter, keys = members("a")

    async def story() -> None:
        gossip = Gossip(charter, charter.instances[0], keys[0], MemoryLog(), None, random.Random(1), lambda: None, interval_s=0.001)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(gossip.run(), 0.1)
        assert gossip.asked.is_set()

    asyncio.run(story())
