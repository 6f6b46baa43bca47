"""Peers with real stores over real sockets: both branches of a fork reach everybody (R4.4), a restored database is found out (R4.6),
and a peer that lies about its heads costs one question.
"""

from __future__ import annotations

import copy
import logging
import random
import shutil
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Optional

import pytest
from sqlalchemy import create_engine

from nsync.auth.keys import SigningKey, verify
from nsync.authority.charter import AuthorId, Charter, Place
from nsync.authority.effective import Authority
from nsync.clock import Stamp
from nsync.log import segment as segments
from nsync.log.segment import EMPTY, Tip, build_changeset
from nsync.log.stored import Head, Receipt, StoredSegment
from nsync.namespace.ops import ACKNOWLEDGE
from nsync.store.database import create_tables, writing
from nsync.store.log import SqlLog, decode_batch
from nsync.store.serving import LOOK_AHEAD
from nsync.transport import session
from tests.integration.test_transport import Node, members, on_a_loop, running, until

NOW_MS = 1_700_000_000_000


class StoreLog:
    """The store as a SegmentLog, and how often it was asked what."""

    def __init__(self, path: Path, charter: Charter, me: AuthorId) -> None:
        self.path = path
        self.engine = create_engine(f"sqlite:///{path}")
        self._authority = Authority(charter)
        self._me = me
        self.located = 0
        self.asked = 0
        self.frames = 0
        self.received: list[Receipt] = []
        create_tables(self.engine)

    def heads(self) -> list[Head]:
        with self.engine.connect() as connection:
            return SqlLog(connection, self._authority).stored_heads()

    def unknown(self, theirs: Collection[Head]) -> list[Head]:
        with self.engine.connect() as connection:
            return SqlLog(connection, self._authority).unknown(theirs)

    def locator(self, author: bytes) -> list[Place]:
        self.located += 1
        with self.engine.connect() as connection:
            return SqlLog(connection, self._authority).locator(author)

    def segments_after(self, have: session.Have, bytes_max: int) -> list[StoredSegment]:
        self.asked += 1
        with self.engine.connect() as connection:
            return SqlLog(connection, self._authority).segments_after(have, bytes_max)

    def receive(self, frames: Sequence[bytes], sender: str) -> Receipt:
        self.frames += len(frames)
        decoded, rejected = decode_batch(frames, self._authority, verify)
        with writing(self.engine) as connection:
            log = SqlLog(connection, self._authority)
            log.heard(self._me, [Head(s.header.author, s.header.last, s.hash) for s in decoded])
            receipt = log.store(decoded)
        self.received.append(Receipt(receipt.stored, (*rejected, *receipt.rejected)))
        return self.received[-1]

    def publish(self, sign: segments.Sign, count: int = 1) -> None:
        for _ in range(count):
            with writing(self.engine) as connection:
                SqlLog(connection, self._authority).publish([ACKNOWLEDGE], self._me, sign, NOW_MS)

    def read_only(self) -> Optional[str]:
        with self.engine.connect() as connection:
            return SqlLog(connection, self._authority).read_only(self._me)

    def is_known(self, author: bytes, history: History) -> bool:
        return self.unknown([Head(author, history.tip.seq, history.tip.hash)]) == []

    def close(self) -> None:
        self.engine.dispose()


class History:
    """What one machine signs with an author's key; a copy signs another history from here on."""

    def __init__(self, charter: Charter, author: AuthorId, key: SigningKey) -> None:
        self._charter, self._author, self._key = charter, author, key
        self.tip = EMPTY
        self.frames: list[bytes] = []

    def copy(self) -> History:
        other = copy.copy(self)
        other.frames = list(self.frames)
        return other

    def write(self, changesets: int, content: int = 0) -> History:
        """Sign more changesets of one op; `content` tells two histories apart."""
        for _ in range(changesets):
            self.sign([bytes([0x92, 0x64, content])])
        return self

    def sign(self, ops: Sequence[bytes]) -> None:
        """Sign one changeset."""
        stamp = Stamp(NOW_MS + self.tip.seq, 0)
        places = {"federation": self._charter.federation, "charter_version": 1, "author": self._author, "tip": self.tip}
        for signed in build_changeset(ops, **places, stamp=stamp, deps=(), sign=self._key.sign):  # type: ignore[arg-type]
            self.frames.append(signed.frame)
            self.tip = Tip(signed.header.last, signed.hash, signed.header.stamp, 0)


class Trio:
    """The nodes a and b, and what c signed; c itself is down."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.charter, self.keys = members("abc")
        self.nodes = [self.node(index, StoreLog) for index in range(2)]
        self.c = self.charter.instances[2].author

    def node(self, index: int, log: type[StoreLog], file: str = "") -> Node[StoreLog]:
        me = self.charter.instances[index]
        store = log(self.directory / (file or f"{me.name}.db"), self.charter, me.author)
        return Node(self.charter, me, self.keys[index], store, 3600)

    def history(self) -> History:
        return History(self.charter, self.c, self.keys[2])


@asynccontextmanager
async def serving(*nodes: Node[StoreLog], gossip: bool = False) -> AsyncIterator[None]:
    async with running(nodes, gossip):
        yield
    for node in nodes:
        node.log.close()


async def sync(node: Node[StoreLog], peer: str) -> tuple[int, int, str]:
    """One exchange: how many segments came, how many went, and what went wrong."""
    (report,) = [report for report in await node.gossip.sync_once() if report.peer == peer]
    return report.pulled, report.pushed, report.error


@pytest.fixture
def trio(tmp_path: Path) -> Trio:
    return Trio(tmp_path)


# ── forks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("shared", "one", "other"), [(0, 1, 1), (1, 1, 1), (3, 2, 2), (3, 1, 7), (20, 1, 40), (7, 90, 2)])
@on_a_loop
async def test_peers_with_different_branches_have_both_after_one_exchange(
    trio: Trio, shared: int, one: int, other: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "nsync.transport")
    a, b = trio.nodes
    first = trio.history().write(shared)
    second = first.copy().write(other, content=2)
    a.log.receive(first.write(one, content=1).frames, "c")
    b.log.receive(second.frames, "c")
    async with serving(a, b):
        assert await sync(a, "b") == (other, one, "")
        assert sorted(a.log.heads()) == sorted(b.log.heads()) == sorted(Head(trio.c, h.tip.seq, h.tip.hash) for h in (first, second))
        for _ in range(2):
            assert await sync(a, "b") == (0, 0, "")
    assert len([r for r in caplog.records if "author c has signed two histories" in r.getMessage()]) == 1


@on_a_loop
async def test_a_fork_two_hundred_segments_back_is_found_with_one_question(trio: Trio) -> None:
    a, b = trio.nodes
    first = trio.history().write(150)
    second = first.copy().write(200, content=2)
    a.log.receive(first.write(200, content=1).frames, "c")
    b.log.receive(second.frames, "c")
    async with serving(a, b):
        a.log.frames = a.log.located = 0
        assert await sync(a, "b") == (200, 200, "")
    assert a.log.located == 1
    assert a.log.frames < 2 * 200, "what is sent for nothing is less than what is new"
    assert len(a.log.locator(trio.c)) < 30


@on_a_loop
async def test_a_newcomer_gets_a_long_log_and_its_branches_each_after_what_it_continues(trio: Trio) -> None:
    a, b = trio.nodes
    trunk = trio.history().write(3 * LOOK_AHEAD)
    branches = [trunk.copy().write(count, content=count) for count in (1, 5, LOOK_AHEAD + 1)]
    for history in branches:
        assert b.log.receive(history.frames, "c").rejected == ()
    async with serving(a, b):
        assert await sync(a, "b") == (3 * LOOK_AHEAD + 1 + 5 + LOOK_AHEAD + 1, 0, "")
    assert sorted(a.log.heads()) == sorted(b.log.heads()) and len(a.log.heads()) == 3
    assert all(receipt.rejected == () for receipt in a.log.received)


@pytest.mark.parametrize("who_calls", ["a", "b"])
@on_a_loop
async def test_a_fork_within_a_long_changeset_passes_whole(trio: Trio, monkeypatch: pytest.MonkeyPatch, who_calls: str) -> None:
    """What the branches share of the changeset is stored with each of them, and is not sent again."""
    monkeypatch.setattr(segments, "OPS_MAX", 1)
    a, b = trio.nodes
    ops = [bytes([0x93, 0x64, i % 100, i // 100]) for i in range(2 * LOOK_AHEAD)]
    first = trio.history().write(2)
    second = first.copy()
    first.sign([*ops, bytes([0x92, 0x64, 1])])
    second.sign([*ops, bytes([0x92, 0x64, 2])])
    for history in (first, second):
        assert b.log.receive(history.frames, "c").rejected == ()
    a.log.receive(first.frames, "c")
    async with serving(a, b):
        a.log.frames = 0
        assert await (sync(a, "b") if who_calls == "a" else sync(b, "a")) == ((1, 0, "") if who_calls == "a" else (0, 1, ""))
        assert sorted(a.log.heads()) == sorted(b.log.heads())
        assert a.log.frames == 1


# ── a restored database ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("who_calls", ["a", "b"])
@on_a_loop
async def test_a_restored_node_signs_nothing_more_once_it_has_met_a_peer(trio: Trio, who_calls: str) -> None:
    a, b = trio.nodes
    a.log.publish(a.key.sign)
    a.log.close()
    shutil.copy(a.log.path, trio.directory / "backup.db")
    a.log.publish(a.key.sign, 2)
    async with serving(a, b):
        assert await sync(a, "b") == (0, 3, "")
    assert a.log.read_only() is None
    restored = trio.node(0, StoreLog, "backup.db")
    b = trio.node(1, StoreLog)
    restored.port, b.port = a.port, trio.nodes[1].port
    async with serving(restored, b):
        assert restored.log.read_only() is None
        caller, callee = (restored, "b") if who_calls == "a" else (b, "a")
        assert sum((await sync(caller, callee))[:2]) == 2
        assert "nothing more is signed here" in (restored.log.read_only() or "")
        assert restored.log.heads() == b.log.heads(), "it gets its own log back"


@on_a_loop
async def test_a_copy_of_a_machine_is_found_out_at_both(trio: Trio) -> None:
    a, b = trio.nodes
    a.log.publish(a.key.sign)
    a.log.close()
    shutil.copy(a.log.path, trio.directory / "copy.db")
    twin = trio.node(0, StoreLog, "copy.db")
    a.log.publish(a.key.sign)
    with pytest.MonkeyPatch.context() as later:
        later.setattr(f"{__name__}.NOW_MS", NOW_MS + 5)
        twin.log.publish(twin.key.sign)
    async with serving(a, b):
        await sync(a, "b")
    b = trio.node(1, StoreLog)
    async with serving(twin, b):
        assert await sync(twin, "b") == (1, 1, "")
        assert "nothing more is signed here" in (twin.log.read_only() or "")
    a, b = trio.node(0, StoreLog), trio.node(1, StoreLog)
    async with serving(a, b):
        assert a.log.read_only() is None, "it has not heard of it"
        assert await sync(b, "a") == (0, 1, "")
        assert "nothing more is signed here" in (a.log.read_only() or "")


# ── lies ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class LyingLog(StoreLog):
    """Announces other heads than it has."""

    lie = ""
    victim = b""

    def heads(self) -> list[Head]:
        heads = super().heads()
        others = [head for head in heads if head.author != self.victim]
        (true,) = [head for head in heads if head.author == self.victim] or [Head(self.victim, 0, bytes(16))]
        hash_ = random.Random(self.lie).randbytes(16)
        told = {"more": [Head(self.victim, true.seq + 5, hash_)], "other": [true._replace(hash=hash_)], "fewer": []}
        told["branches"] = [true, *(Head(self.victim, true.seq + i, hash_) for i in range(60))]
        return sorted([*others, *told[self.lie]])


@pytest.mark.parametrize("whose", ["c", "a"])
@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ("more", "did not come"),
        ("other", "did not come"),
        ("branches", "did not come"),
        ("fewer", "announces less than it has"),
    ],
)
@on_a_loop
async def test_a_peer_that_lies_about_its_heads_costs_one_question_and_is_backed_off(trio: Trio, lie: str, reason: str, whose: str) -> None:
    a = trio.nodes[0]
    b = trio.node(1, LyingLog)
    assert isinstance(b.log, LyingLog)
    history = trio.history().write(3 * LOOK_AHEAD)
    a.log.publish(a.key.sign, 3)
    own = [stored.frame for stored in a.log.segments_after({a.me.author: []}, 1 << 20)]
    for log in (a.log, b.log):
        log.receive([*history.frames, *own], "c")
        log.received.clear()
        log.asked = 0
    b.log.lie, b.log.victim = lie, trio.c if whose == "c" else a.me.author
    async with running([b], gossip=False), running([a]):
        await until(lambda: a.peer("b").failures == 1, "backed off")
        assert reason in a.peer("b").reason
        assert a.peer("b").pause_ms(a.peer("b").next_try_ms - 100) == 100
    assert b.log.asked == (lie != "fewer") and not a.log.received, "one pull, which brings nothing"
    assert len(b.log.received) == (lie == "fewer"), "one push, which is known there"
    assert a.log.read_only() is None, "nobody's word ends signing"
    for log in (a.log, b.log):
        log.close()


class Withholding(StoreLog):
    """Serves c's log without its first segment."""

    def segments_after(self, have: session.Have, bytes_max: int) -> list[StoredSegment]:
        return [stored for stored in super().segments_after(have, bytes_max) if stored.author == self._me or stored.first > 1]


@on_a_loop
async def test_a_gap_is_no_fault_and_the_rest_passes(trio: Trio) -> None:
    a, b = trio.nodes[0], trio.node(1, Withholding)
    b.log.receive(trio.history().write(3).frames, "c")
    b.log.publish(b.key.sign, 2)
    async with serving(a, b):
        pulled, pushed, error = await sync(a, "b")
    assert (pulled, pushed) == (2, 0)
    assert "announced segments" in error and "refused" not in error
    assert "a gap" in a.log.received[0].rejected[0] and a.log.received[0].faults == ()
