"""The shell around notices and repair, over real sockets: what it costs whom, and who is asked again when."""

from __future__ import annotations

import asyncio
import random
import secrets
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Callable

import pytest

from nsync.auth.keys import verify
from nsync.authority.documents import load
from nsync.authority.effective import Authority
from nsync.log.notices import Stand
from nsync.testbed.layout import free_ports
from nsync.transport import gates, notices, repair, wire
from nsync.transport.budgets import CPU_MS, Budget
from nsync.transport.gossip import Gossip
from nsync.transport.listener import Listener
from nsync.transport.notices import Word
from nsync.transport.repair import Places, encode_first, encode_places
from nsync.transport.requests import authorization
from nsync.transport.server import Server
from nsync.transport.times import wall_ms
from tests.integration.test_limits import allow
from tests.integration.test_transport import on_a_loop, post, until
from tests.support.below import Below, agreed, history, without
from tests.support.federation import KEYS, NAMES, charter_document


class Pair:
    """atlas has everything below a floor, cms lacks some of it; both in files."""

    def __init__(self, directory: Path, seed: int = 7) -> None:
        ports = dict(zip(NAMES, free_ports(3)))
        authority = Authority(load(charter_document({name: f"http://127.0.0.1:{port}" for name, port in ports.items()}), verify))
        rng = random.Random(seed)
        segments = history(rng, charter=authority.charter)
        floor = agreed(segments, authority=authority)
        self.charter = authority.charter
        self.whole = Below("atlas", segments, floor, directory / "whole.db", authority)
        lacking, self.count = without(self.whole.segments(), rng, 0.3)
        self.lacking = Below("cms", lacking, floor, directory / "lacking.db", authority)
        self.executor = ThreadPoolExecutor(2)
        self.gossip = {one.name: self._gossip(one) for one in (self.whole, self.lacking)}

    def _gossip(self, one: Below) -> Gossip:
        return Gossip(
            self.charter,
            one.me,
            KEYS[one.name],
            one,
            self.executor,
            random.Random(1),
            lambda: None,
            interval_s=3600,
            notices=one.notary,
            repairs=one.repairs,
        )

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """atlas answers."""
        door, whole = self.gossip["atlas"], self.whole
        server = Server(self.charter, whole.me, whole, self.executor, door.received, verbs=door.verbs(), notices=door.door)
        listener = Listener(server.app())
        await listener.start("127.0.0.1", int(whole.me.url.rsplit(":", 1)[1]))
        try:
            yield
        finally:
            await listener.stop()

    async def ask(self, verb: str, body: bytes) -> tuple[int, bytes]:
        """A question of cms, and what atlas answers."""
        (author, audience), path = (self.lacking.me.author, self.whole.me.author), wire.PATH + verb
        nonce = secrets.token_bytes(16)
        signed = authorization(KEYS["cms"], self.charter.federation, author, audience, "POST", path, body, wall_ms(), nonce)
        status, answer, _ = await post(self.whole.me.url, verb, body, Authorization=signed)
        return status, answer


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.executor.shutdown()
    for one in (made.whole, made.lacking):
        one.engine.dispose()


QUESTIONS = {
    "notices": notices.encode(Word(Stand(0, ()), ())),
    repair.BLOCKS: encode_first(1, 0),
    repair.BITMAPS: encode_places(Places(1, (0,))),
    repair.OPS: encode_places(Places(1, tuple(range(8)))),
}


@pytest.mark.parametrize("verb", QUESTIONS)
@on_a_loop
async def test_what_a_question_costs_is_charged(verb: str, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "EXHAUSTED_S", 0.01)
    allow(monkeypatch, **{CPU_MS: Budget(0.001, 5)})
    async with pair.served():
        for _ in range(200):
            status, text = await pair.ask(verb, QUESTIONS[verb])
            if status == 429:
                break
        assert status == 429 and CPU_MS.encode() in text


@on_a_loop
async def test_answers_are_worked_on_beside_the_loop(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()
    for name in ("decode_digests", "decode_bitmaps", "decode_ops"):

        def noted(data: bytes, count: int, within: Callable[[bytes, int], object] = getattr(repair, name)) -> object:
            threads.add(threading.get_ident())
            return within(data, count)

        monkeypatch.setattr(repair, name, noted)
    async with pair.served():
        await pair.gossip["cms"].sync_once()
    assert pair.lacking.repairs.damage() is None
    assert threads and threading.get_ident() not in threads


@on_a_loop
async def test_a_long_repair_lets_exchanges_through(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is small and what is new comes between two parts; each part wakes the next, without a timer."""
    monkeypatch.setattr(repair, "OPS_MAX", 8)
    asked: list[str] = []
    for one, name in ((pair.whole, "heads"), (pair.whole.repairs, "digests"), (pair.whole.repairs, "bitmaps"), (pair.whole.repairs, "ops")):

        def noted(*given: Any, within: Callable[..., Any] = getattr(one, name), name: str = name) -> Any:
            asked.append(name)
            return within(*given)

        monkeypatch.setattr(one, name, noted)
    async with pair.served():
        await pair.gossip["cms"].sync_once()
        assert asked == ["heads", "digests", "bitmaps", "ops"]
        running = asyncio.ensure_future(pair.gossip["cms"].run())
        await until(lambda: pair.lacking.repairs.damage() is None, "it is repaired", 30)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    parts = -(-pair.count // 8)
    assert parts > 3 and asked == ["heads", "digests", "bitmaps", "ops"] + (parts - 1) * ["heads", "ops"]


@on_a_loop
async def test_who_broke_off_is_asked_again_at_the_next_exchange(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its database failed once, after it had answered some of it."""
    monkeypatch.setattr(repair, "OPS_MAX", 8)
    within, failing = pair.whole.repairs.ops, [False, True]

    def ops(floor: int, numbers: Sequence[int], bytes_max: int) -> Any:
        if failing and failing.pop(0):
            raise OSError("no such disk")
        return within(floor, numbers, bytes_max)

    monkeypatch.setattr(pair.whole.repairs, "ops", ops)
    async with pair.served():
        errors = []
        while pair.lacking.repairs.damage() is not None:
            errors += [report.error for report in await pair.gossip["cms"].sync_once() if report.peer == "atlas"]
            assert len(errors) < 2 * pair.count
    assert [bool(error) for error in errors[:3]] == [False, True, False] and not any(errors[2:])


@on_a_loop
async def test_who_goes_away_between_two_parts_is_not_waited_for(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "OPS_MAX", 8)
    async with pair.served():
        await pair.gossip["cms"].sync_once()
        assert pair.gossip["cms"].mends
    await pair.gossip["cms"].sync_once()
    assert not pair.gossip["cms"].mends
