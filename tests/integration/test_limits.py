"""Each limit before and behind the request: what is hit by it is told so, counted, and nobody else notices."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from nsync import metrics
from nsync.authority.charter import Place
from nsync.authority.effective import Authority
from nsync.log.lease import sign_head
from nsync.log.notices import FLOOR, Notice, Stand, head_notice
from nsync.store.database import create_tables, open_store
from nsync.transport import budgets, gates, listener, notices, wire
from nsync.transport.budgets import BODY_BYTES, CPU_MS, REQUESTS, SIGNATURES, Budget
from nsync.transport.notices import Word
from tests.integration.test_transport import HELLO, Node, ask, client, dial, federation, frame, head, hung_up, on_a_loop, post, sign, until
from tests.support.notary import Notaries

GENEROUS = Budget(1e9, 1e9)
HITS = metrics.LIMIT_HITS


def hits(limit: str) -> float:
    value: float = HITS.labels(limit)._value.get()
    return value


def allow(patch: pytest.MonkeyPatch, **changes: Budget) -> None:
    """Budgets without end, but for `changes`."""
    patch.setattr(budgets, "PEER_BUDGETS", {**dict.fromkeys(budgets.PEER_BUDGETS, GENEROUS), **changes})


async def limited(caller: Node[Any], callee: Node[Any], limit: str) -> bool:
    """Whether a hello is answered with "later" because of `limit`."""
    before = hits(limit)
    status, text, headers = await ask(caller, callee, "hello", HELLO)
    assert status == 200 or (status == 429 and limit.encode() in text and 1 <= int(headers["Retry-After"]) <= budgets.RETRY_S_MAX)
    assert hits(limit) == before + (status == 429)
    return status == 429


@on_a_loop
async def test_too_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "EXHAUSTED_S", 0.01)
    allow(monkeypatch, requests=Budget(1, 5))
    async with federation("abc", gossip=False) as (a, b, c):
        assert [await limited(a, b, REQUESTS) for _ in range(5)] == [False] * 5
        assert any([await limited(a, b, REQUESTS) for _ in range(3)])
        assert not await limited(c, b, REQUESTS), "others are served"
        async with client(a, b) as peer:
            with pytest.raises(Exception, match="429 a has used up its requests"):
                await peer.hello(bytes(16))


@pytest.mark.parametrize("budget", [SIGNATURES, CPU_MS, BODY_BYTES])
@on_a_loop
async def test_who_brings_nothing_new_uses_up_its_budget(budget: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments that are here already, time and again; those that were new cost no signatures."""
    monkeypatch.setattr(gates, "EXHAUSTED_S", 0.01)
    allow(monkeypatch, **{budget: {SIGNATURES: Budget(1, 150), CPU_MS: Budget(0.1, 20), BODY_BYTES: Budget(1, 1 << 20)}[budget]})
    async with federation("ab", gossip=False) as (a, b):
        frames = [frame(a.me.author, seq, 1000) for seq in range(1, 101)]
        assert (await ask(a, b, "push", wire.encode_frames(frames)))[0] == 200
        if budget == SIGNATURES:
            assert not await limited(a, b, budget)
        for _ in range(400):
            status, text, _ = await ask(a, b, "push", wire.encode_frames(frames))
            if status == 429:
                break
        assert status == 429 and budget.encode() in text


@on_a_loop
async def test_notices_are_charged_before_their_signatures_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads in the name of another that it never signed; then a floor that says of itself that it has a thousand votes."""
    monkeypatch.setattr(gates, "EXHAUSTED_S", 0.01)
    allow(monkeypatch, signatures=Budget(1, 150))
    async with federation("abc", start=False) as (a, b, c):
        notary = Notaries(Authority(b.charter), "b", b.key.sign, 1_800_000_000_000)
        notary.engine = open_store(f"sqlite:///{tmp_path}/b.db")
        create_tables(notary.engine)
        b.notices = notary.notary
        await b.start(gossip=False)
        lies = [sign_head(b.charter.federation, c.me.author, Place(seq, bytes(16)), 1_800_000_000_000, a.key.sign) for seq in range(1, 101)]
        body = notices.encode(Word(Stand(0, ()), tuple(map(head_notice, lies))))
        assert [(await ask(a, b, "notices", body))[0] for _ in range(3)] == [200, 200, 429]
        assert len([text for text in notary.said if "refused 92 more that a brought" in text]) == 2, "those of the third are not looked at"
        floor = Notice(FLOOR, bytes(1000 * notices.VOTE_BYTES_MIN))
        assert [(await ask(c, b, "notices", notices.encode(Word(Stand(0, ()), (floor,)))))[0] for _ in range(2)] == [200, 429]
        status, text, _ = await ask(c, b, "hello", HELLO)
        assert status == 429 and SIGNATURES.encode() in text
        notary.engine.dispose()


@on_a_loop
async def test_a_request_that_is_sent_twice_is_answered_once() -> None:
    async with federation("ab", gossip=False) as (a, b):
        signed = sign(a, b, "hello", HELLO)
        assert [(await post(b.me.url, "hello", HELLO, Authorization=signed))[0] for _ in range(3)] == [200, 401, 401]
        assert b.log.asked == 1


@on_a_loop
async def test_a_body_has_its_limit_also_when_it_does_not_say_its_length() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(2 * wire.BODY_BYTES_MAX >> 16):
            yield bytes(1 << 16)

    async with federation("ab", gossip=False) as (a, b):
        before, status = hits("body_size"), 413
        with suppress(aiohttp.ClientConnectionError):  # it may hang up while much is still being sent
            status = (await post(b.me.url, "push", endless(), Authorization=sign(a, b, "push", b"")))[0]
        assert status == 413 and hits("body_size") == before + 1


@on_a_loop
async def test_segments_under_way_have_bounded_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "EXHAUSTED_S", 0.01)
    monkeypatch.setattr(budgets, "PEER_SEGMENTS_MAX", 9)
    async with federation("ab", gossip=False) as (a, b):
        status, text, _ = await ask(a, b, "push", wire.encode_frames([frame(a.me.author, seq) for seq in range(1, 11)]))
        assert status == 429 and b"a has 10 segments under way; 9 is the limit" in text and not b.log.received
        assert (await ask(a, b, "push", wire.encode_frames([frame(a.me.author, 1)])))[0] == 200


@on_a_loop
async def test_bodies_have_bounded_room_and_small_ones_always_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is announced takes none."""
    monkeypatch.setattr(gates, "EXHAUSTED_S", 0.01)
    monkeypatch.setattr(budgets, "BYTES_MAX", 3 << 20)
    async with federation("abcd", gossip=False) as (a, b, c, d):
        body, slow = bytes(wire.BODY_BYTES_MAX), []
        for caller in (a, a, c):
            reader, writer = await dial(b)
            writer.write(head(caller, b, "push", body) + body[:10])
            slow.append((reader, writer))
        frames = wire.encode_frames([frame(d.me.author, 1, 1 << 20)])
        assert (await ask(d, b, "push", frames))[0] == 200, "they hold 30 bytes"
        for _, writer in slow:
            writer.write(body[10 : 1 << 20])
        await until(lambda: b.server._gates._budgets.held >= 3 << 20, "now they hold all")
        assert (await ask(d, b, "push", frames))[0] == 429
        assert (await ask(d, b, "hello", HELLO))[0] == 200
        for _, writer in slow:
            writer.transport.abort()


@on_a_loop
async def test_slow_pulls_take_no_place_of_what_is_short() -> None:
    """Of as many members as it takes to fill all places of pulls."""
    names = "abcdefghi"
    async with federation(names + "z", gossip=False) as nodes:
        *callers, last, z = nodes
        z.log.append(z.me.author, 60, size=1 << 20)
        have, pulls = wire.encode_have({z.me.author: []}), []
        for caller in callers:
            for _ in range(gates.PEER_EXCHANGES_MAX):
                reader, writer = await dial(z)
                writer.write(head(caller, z, "pull", have) + have)
                assert b" 200 " in await reader.readline()
                pulls.append(writer)
        assert len(pulls) == gates.EXCHANGES_MAX
        assert (await ask(last, z, "hello", HELLO))[0] == 200
        assert (await ask(callers[0], z, "push", wire.encode_frames([frame(callers[0].me.author, 1)])))[0] == 200
        assert (await ask(last, z, "pull", have))[0] == 503
        for writer in pulls:
            writer.transport.abort()


@on_a_loop
async def test_a_body_that_comes_slowly_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slower than its rate after the grace, however long it might take in all."""
    monkeypatch.setattr(budgets, "BODY_GRACE_S", 0.3)
    async with federation("ab", gossip=False) as (a, b):
        before, body = hits("body_rate"), bytes(1 << 20)
        reader, writer = await dial(b)
        writer.write(head(a, b, "push", body))
        answer = asyncio.ensure_future(reader.readline())
        for _ in range(100):
            writer.write(body[:100])
            await asyncio.wait([answer], timeout=0.05)
            if answer.done():
                break
        assert b" 408 " in answer.result() and hits("body_rate") == before + 1
        await hung_up(reader, writer)


@on_a_loop
async def test_a_stranger_has_one_request_and_a_member_keeps_its_connection() -> None:
    async with federation("ab", gossip=False) as (a, b):
        for request, closes in ((b"GET /ping HTTP/1.1\r\nHost: b\r\n\r\n", True), (b"GET /nowhere HTTP/1.1\r\nHost: b\r\n\r\n", True)):
            reader, writer = await dial(b)
            writer.write(request * 2)
            said = await asyncio.wait_for(reader.read(), 3)
            assert closes and said.count(b"HTTP/1.1 ") == 1
            writer.close()
        reader, writer = await dial(b)
        for _ in range(3):
            writer.write(head(a, b, "hello", HELLO) + HELLO)
            said = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 3)
            assert b" 200 " in said and b"close" not in said.lower()
            await reader.readexactly(int(said.lower().partition(b"content-length: ")[2].split()[0]))
        writer.close()


@on_a_loop
async def test_a_member_has_only_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "EXHAUSTED_S", 0.01)
    monkeypatch.setattr(listener, "MEMBER_CONNECTIONS_MAX", 2)
    async with federation("abc", gossip=False) as (a, b, c):
        kept = []
        for status in (b" 200 ", b" 200 ", b" 429 "):
            reader, writer = await dial(b)
            writer.write(head(a, b, "hello", HELLO) + HELLO)
            assert status in await reader.readline()
            kept.append(writer)
        assert (await ask(c, b, "hello", HELLO))[0] == 200
        kept[0].transport.abort()
        for writer in kept:
            writer.close()
        await until(lambda: not b.listener._members, "their places are free")  # type: ignore[union-attr]


@on_a_loop
async def test_strangers_make_room_for_whoever_comes() -> None:
    """However many they are, and however quickly they are replaced."""
    async with federation("ab", start=False) as (a, b):
        await b.start(gossip=False, connections_max=10, header_s_max=30.0, behind_proxy=True)
        before = hits("connections")
        silent = [await dial(b) for _ in range(40)]
        assert (await ask(a, b, "hello", HELLO))[0] == 200
        assert hits("connections") > before
        gone = [await asyncio.wait_for(reader.read(), 3) for reader, _ in silent[:30]]
        assert gone == [b""] * 30
        for _, writer in silent:
            writer.close()


@on_a_loop
async def test_a_source_has_only_so_many_connections_and_not_too_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "SOURCE_CONNECTIONS_MAX", 3)
    async with federation("ab", start=False) as (a, b):
        await b.start(gossip=False, source_rate=Budget(0.01, 6))
        held = [await asyncio.open_connection("127.0.0.1", b.port, local_addr=("127.0.0.9", 0)) for _ in range(4)]
        await hung_up(*held.pop())
        for _, writer in held:
            writer.close()
        before = hits("source_rate")
        await until(lambda: not b.listener._sources, "they are gone")  # type: ignore[union-attr]
        for _ in range(4):
            _, writer = await asyncio.open_connection("127.0.0.1", b.port, local_addr=("127.0.0.9", 0))
            writer.close()
        await until(lambda: hits("source_rate") > before, "too fast")
        assert (await ask(a, b, "hello", HELLO))[0] == 200, "another source is another"


@on_a_loop
async def test_requests_sent_ahead_end_the_connection() -> None:
    async with federation("ab", gossip=False) as (_, b):
        before = hits("requests_ahead")
        reader, writer = await dial(b)
        writer.write(b"GET /ping HTTP/1.1\r\nHost: b\r\n\r\n" * 1000)
        await hung_up(reader, writer)
        assert hits("requests_ahead") == before + 1


@on_a_loop
async def test_an_answer_that_nobody_reads_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "WRITE_S_MAX", 0.2)
    monkeypatch.setattr(listener, "WATCH_S", 0.05)
    async with federation("ab", gossip=False) as (a, b):
        b.log.append(b.me.author, 60, size=1 << 20)
        before, have = hits("write_time"), wire.encode_have({b.me.author: []})
        deaf = socket.create_connection(("127.0.0.1", b.port))
        deaf.sendall(head(a, b, "pull", have) + have)
        await until(lambda: hits("write_time") > before, "it is hung up on")
        deaf.close()


@on_a_loop
async def test_a_caller_that_goes_before_its_answer_begins_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async with federation("ab", start=False) as (a, b):
        await b.start(gossip=False, source_rate=GENEROUS)
        have = wire.encode_have({b.me.author: []})
        for n in range(200):
            _, writer = await dial(b)
            writer.write(head(a, b, "pull", have) + have)
            await asyncio.sleep(n % 20 / 4000)
            writer.transport.abort()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@on_a_loop
async def test_refusals_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Some are told, and the number of the others; malformed requests are only counted."""
    caplog.set_level(logging.INFO)
    async with federation("ab", start=False) as (_, b):
        await b.start(gossip=False, source_rate=GENEROUS)
        before = hits("malformed")
        for start in (b"POST /nsync/v1/push HTTP/1.1\r\nHost: b\r\n\r\n", b"GET /ping HTTP/1.1\r\n folded: x\r\n\r\n"):
            for _ in range(100):
                reader, writer = await dial(b)
                writer.write(start)
                with suppress(ConnectionError):
                    await asyncio.wait_for(reader.read(), 3)
                writer.close()
        assert hits("malformed") == before + 100
    assert 1 <= len([r for r in caplog.records if "no nsync Authorization header" in r.getMessage()]) <= budgets.REFUSALS_TOLD.burst + 10
    assert not [r for r in caplog.records if r.name.startswith(("aiohttp", "nsync.transport.http"))]


@on_a_loop
async def test_a_database_that_does_not_answer_is_503_and_fills_no_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when it fails in the middle of an answer: that is cut short, and not taken for a whole one."""
    allow(monkeypatch)
    caplog.set_level(logging.INFO)
    async with federation("ab", gossip=False) as (a, b):
        b.log.append(b.me.author, 60, size=1 << 20)
        b.log.broken = True
        answers = [await ask(a, b, "hello", HELLO) for _ in range(100)]
        assert {(status, headers.get("Retry-After")) for status, _, headers in answers} == {(503, "1")}
        b.log.broken, b.log.fails_after = False, 2
        with pytest.raises(aiohttp.ClientPayloadError):
            await ask(a, b, "pull", wire.encode_have({b.me.author: []}))
        b.log.fails_after = None
        assert (await ask(a, b, "hello", HELLO))[0] == 200
    told = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert 1 <= len(told) <= budgets.REFUSALS_TOLD.burst + 10 and not [r for r in told if r.exc_info]
    assert "a /nsync/v1/hello: OSError: no space left" in told[0].getMessage()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /ping HTTP/1.1\r\nHost: b\r\n" + b"X: y\r\n" * 29 + b"\r\n", b"200"),
        (b"GET /ping HTTP/1.1\r\nHost: b\r\n" + b"X: y\r\n" * listener.HEADERS_MAX + b"\r\n", b"400"),
        (b"GET /ping HTTP/1.1\r\nHost: b\r\nX: " + b"y" * (listener.HEADER_BYTES_MAX + 100) + b"\r\n\r\n", b"400"),
        (b"GET /ping?" + b"y" * (listener.HEADER_BYTES_MAX + 100) + b" HTTP/1.1\r\nHost: b\r\n\r\n", b"400"),
    ],
)
@on_a_loop
async def test_heads_have_bounded_lines_and_numbers_of_lines(request_: bytes, status: bytes) -> None:
    async with federation("ab", gossip=False) as (_, b):
        reader, writer = await dial(b)
        writer.write(request_)
        assert (await asyncio.wait_for(reader.readline(), 3)).split()[1] == status
        writer.close()


@on_a_loop
async def test_behind_a_proxy_the_source_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "SOURCE_CONNECTIONS_MAX", 3)
    async with federation("ab", start=False) as (a, b):
        await b.start(gossip=False, behind_proxy=True, source_rate=Budget(0.01, 1))
        proxied = [await dial(b) for _ in range(20)]
        assert (await ask(a, b, "hello", HELLO))[0] == 200
        for _, writer in proxied:
            writer.close()


def test_every_limit_has_a_counter() -> None:
    """So that one that is not hit shows 0; and none is counted under a name that is not documented."""
    assert {*budgets.PEER_BUDGETS, budgets.BYTES, budgets.SEGMENTS} < set(metrics.LIMITS)
    assert {labels[0] for labels in HITS._metrics} <= set(metrics.LIMITS)
