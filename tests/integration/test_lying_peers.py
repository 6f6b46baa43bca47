"""Peers that answer what no nsync answers: whatever it is, the exchange ends, and the next one with them is a new one.

The nodes of `test_transport`; what they ask is answered by a socket of the test.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import Callable

import pytest

from nsync.log.stored import Head
from nsync.transport import client as transport_client
from nsync.transport import gossip, pulls, wire
from tests.integration.test_transport import MemoryLog, Node, frame, members, on_a_loop, until

Respond = Callable[[str, asyncio.StreamWriter], Awaitable[None]]
"""Given the verb that is asked."""

ENDS_S_MAX = 20.0


@asynccontextmanager
async def beside(respond: Respond, names: str = "ab") -> AsyncIterator[list[Node[MemoryLog]]]:
    """Nodes, of which none is started; as b `respond` answers."""
    charter, keys = members(names)
    nodes = [Node(charter, me, key, MemoryLog(), 3600) for me, key in zip(charter.instances, keys)]

    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"Content-Length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                await respond(head.split(b" ")[1].decode().rpartition("/")[2], writer)
        writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.ensure_future(serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", nodes[1].port)
    try:
        yield nodes
    finally:
        for node in nodes:
            await node.stop()
            node.executor.shutdown()
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving)


async def answer(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    await writer.drain()


def heads(*announced: Head) -> bytes:
    return wire.encode_hello_reply(wire.HelloReply(wire.VERSION, list(announced)))


@pytest.mark.parametrize("rest", [b"5\r\nabcdeXX\r\n", b"zz\r\nxx\r\n"], ids=["what follows a chunk", "the length of a chunk"])
@on_a_loop
async def test_a_stream_that_is_not_http_ends(rest: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A good chunk comes first and is kept. aiohttp tells nobody of such a chunk's length: then it ends as silence does."""
    monkeypatch.setattr(transport_client, "IDLE_S_MAX", 1.0)
    monkeypatch.setattr(transport_client, "BATCH_MS_MAX", 0)

    async def respond(verb: str, writer: asyncio.StreamWriter) -> None:
        if verb == "hello":
            await answer(writer, heads(Head(b.me.author, 5, bytes(16))))
            return
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        good = wire.FrameWriter().write_all([frame(b.me.author, 1)])
        writer.write(b"%x\r\n%b\r\n" % (len(good), good))
        await writer.drain()
        await until(lambda: bool(a.log.segments.get(b.me.author)), "the good one is stored")
        writer.write(rest)
        await writer.drain()

    async with beside(respond) as (a, b):
        await a.start(gossip=False)
        (report,) = await asyncio.wait_for(a.gossip.sync_once(), ENDS_S_MAX)
        assert report.pulled == 1 and b.me.url in report.error
        (again,) = await asyncio.wait_for(a.gossip.sync_once(), ENDS_S_MAX)
        assert again.error, "asked again, not left for ever"


@on_a_loop
async def test_who_sends_its_own_log_slowly_holds_back_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    """b says that it has what c has, and sends a segment of its own now and then: each is new."""
    for module in (pulls, gossip):
        monkeypatch.setattr(module, "LEASE_MS", 500)
    monkeypatch.setattr(transport_client, "BATCH_MS_MAX", 0)
    asked = asyncio.Event()

    async def respond(verb: str, writer: asyncio.StreamWriter) -> None:
        if verb == "hello":
            await answer(writer, heads(Head(b.me.author, 500, bytes(16)), *c.log.heads()))
            return
        asked.set()
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        stream = wire.FrameWriter()
        for seq in range(1, 5000):
            writer.write(stream.write_all([frame(b.me.author, seq)]))
            await writer.drain()
            await asyncio.sleep(0.1)

    async with beside(respond, "abc") as (a, b, c):
        c.log.append(c.me.author, 50)
        await a.start()
        await asyncio.wait_for(asked.wait(), ENDS_S_MAX)
        await c.start(gossip=False)
        await until(lambda: len(a.log.segments.get(c.me.author, ())) == 50, "a has c's log", ENDS_S_MAX)


@on_a_loop
async def test_of_who_is_not_in_the_charter_nothing_is_asked() -> None:
    """As many authors as a hello holds, others each time: they cost no question, and nothing of them is kept."""
    asked: list[str] = []

    async def respond(verb: str, writer: asyncio.StreamWriter) -> None:
        asked.append(verb)
        strangers = sorted(Head(secrets.token_bytes(16), 1, bytes(16)) for _ in range(wire.HEADS_MAX))
        await answer(writer, heads(*strangers))

    async with beside(respond) as (a, _):
        await a.start(gossip=False)
        for _ in range(3):
            (report,) = await a.gossip.sync_once()
            assert report == ("b", 0, 0, "")
        assert asked == ["hello"] * 3
        assert await a.gossip.lacking() == 0
