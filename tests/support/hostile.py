"""Programs for tests/integration/test_hostile.py: a node to be attacked, and everything that strangers and a hostile member do to it.

    python -m tests.support.hostile serve PORTS DIRECTORY     the node s; logs to standard error
    python -m tests.support.hostile attack PORTS              until standard input ends; then prints what was answered, as JSON

PORTS: those of the members s, g, h, x, y, with commas. x and y are hostile: x has its key, and listens too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable

import msgpack
import zstandard

from nsync.auth.keys import SigningKey
from nsync.authority.charter import Charter, FederationId, Instance
from nsync.authority.effective import Authority
from nsync.log.stored import Head
from nsync.store.repair import Repairs
from nsync.transport import wire
from nsync.transport.gossip import Gossip
from nsync.transport.listener import Listener
from nsync.transport.requests import authorization
from nsync.transport.roster import Roster
from nsync.transport.times import wall_ms
from tests.integration.test_forks_between_peers import History, StoreLog
from tests.support.notary import Notaries

NAMES = "sghxy"
KEYS = {name: SigningKey(bytes([number]) * 32) for number, name in enumerate(NAMES, 1)}
SILENT, SLOW_HEADS, SLOW_BODIES = 1400, 400, 200
"""Connections at a time: 2000."""

ANSWERED_S_MAX = 40.0
"""Until each kind of request was answered by more than "later", it goes on for so long after it was told to end."""

SEGMENTS, OPS = 800, 128
"""What s has to give."""

BOMB = zstandard.ZstdCompressor().compress(bytes(1 << 28))
JUNK = wire.encode_frames([bytes([7]) * (1 << 20)] * 7)
"""Seven segments of a MiB that compress to nothing."""


def federation(ports: list[int]) -> Charter:
    instances = tuple(
        Instance(name, name, KEYS[name].public, bytes(16), f"http://127.0.0.1:{port}", (f"{name}.",), (), {})
        for name, port in zip(NAMES, ports)
    )
    return Charter("test", 1, FederationId(bytes(16)), instances)


def history(charter: Charter, name: str, segments: int, ops: int) -> History:
    """A log that does not compress well; the same each time."""
    me, rng = charter.by_name(name), random.Random(name)
    assert me is not None
    made = History(charter, me.author, KEYS[name])
    for _ in range(segments):
        made.sign([b"\x92\x64\xc4\x64" + rng.randbytes(100) for _ in range(ops)])
    return made


async def serve(ports: list[int], directory: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    charter = federation(ports)
    me = charter.instances[0]
    log = StoreLog(directory / "s.db", charter, me.author)
    log.receive(history(charter, "s", SEGMENTS, OPS).frames, "s")
    ground = Notaries(Authority(charter), "s", KEYS["s"].sign, wall_ms())
    ground.engine = log.engine
    executor = ThreadPoolExecutor(2)
    calls = Charter("test", 1, charter.federation, (me, *charter.instances[3:]))  # the honest ones come by themselves, at their own times
    gossip = Gossip(
        calls,
        me,
        KEYS["s"],
        log,
        executor,
        random.Random(1),
        lambda: None,
        interval_s=1.0,
        notices=ground.notary,
        repairs=Repairs(ground, wall_ms),
    )
    listener = Listener(gossip.server(charter).app())
    await listener.start("127.0.0.1", ports[0])
    running = asyncio.ensure_future(gossip.run())
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    running.cancel()
    await listener.stop()


class Attack:
    """All of it at once."""

    def __init__(self, ports: list[int]) -> None:
        self.charter = federation(ports)
        self.s, self.g, _, self.x, self.y = self.charter.instances
        self.rng = random.Random(1)
        self.answers: dict[str, Counter[str]] = {}
        self.sources = 0
        self.segments = history(self.charter, "x", 40, 10).frames
        self.kinds = self.requests()

    async def run(self) -> None:
        listening = await asyncio.start_server(self.lie, "127.0.0.1", int(self.x.url.rsplit(":", 1)[1]))
        tasks = [
            *(self.keep(4.0, self.hold, b"") for _ in range(SILENT)),
            *(self.keep(4.0, self.hold, b"POST /nsync/v1/push HTTP/1.1\r\nHost: s\r\nX: ") for _ in range(SLOW_HEADS)),
            *(self.keep(4.0, self.slow_body) for _ in range(SLOW_BODIES)),
            *(self.keep(0.02, self.ask, verb) for verb in self.kinds),
            self.keep(0.1, self.endless),
        ]
        running = [asyncio.ensure_future(task) for task in tasks]
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        until = time.monotonic() + ANSWERED_S_MAX
        while time.monotonic() < until and any(set(self.answers.get(kind, ())) <= {"429", "503"} for kind in self.kinds):
            await asyncio.sleep(0.1)
        print(json.dumps(self.answers), flush=True)
        assert listening.is_serving() and not any(task.done() for task in running), "it went on to the end"
        os._exit(0)  # a flood needs no orderly end

    async def keep(self, pause_s: float, attack: Callable[..., Awaitable[None]], *args: Any) -> None:
        while True:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
                await attack(*args)
            await asyncio.sleep(self.rng.uniform(0.5, 1.5) * pause_s)

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """From many addresses, as a botnet would."""
        self.sources += 1
        address = f"127.0.{2 + self.sources // 250 % 8}.{1 + self.sources % 250}"
        return await asyncio.open_connection("127.0.0.1", int(self.s.url.rsplit(":", 1)[1]), local_addr=(address, 0))

    async def hold(self, start: bytes) -> None:
        """Keep a connection for as long as the server does, a byte a second if it wants some."""
        reader, writer = await self.dial()
        try:
            writer.write(start)
            while not reader.at_eof() and not writer.is_closing():
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(reader.read(1), 1.0)
                if start:
                    writer.write(b"y")
        finally:
            writer.transport.abort()

    async def slow_body(self) -> None:
        body = secrets.token_bytes(1 << 20)
        await self.hold(self.head("push", body, caller=self.y) + body[:100])

    async def endless(self) -> None:
        reader, writer = await self.dial()
        try:
            writer.write(self.head("push", b"", caller=self.y).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
            while not reader.at_eof() and not writer.is_closing():
                writer.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
                await asyncio.wait_for(writer.drain(), 10)
        finally:
            writer.transport.abort()

    async def ask(self, what: str) -> None:
        """One of `requests`, and what is answered."""
        reader, writer = await self.dial()
        try:
            writer.write(self.kinds[what]())
            status = (await asyncio.wait_for(reader.readuntil(b"\r\n"), 30)).split()[1].decode()
            self.answers.setdefault(what, Counter())[status] += 1
            while await asyncio.wait_for(reader.read(1 << 16), 5):
                pass
        finally:
            writer.transport.abort()

    def requests(self) -> dict[str, Callable[[], bytes]]:
        hello = wire.encode_hello(bytes(16), Roster(self.charter).digest)
        frames = wire.encode_frames(self.segments[:20])
        replayed = self.head("hello", hello) + hello
        altered = wire.encode_frames([f[:-1] + b"\0" for f in self.segments] * 100)
        return {
            "bomb": lambda: self.head("push", BOMB) + BOMB,
            "junk": lambda: self.head("push", JUNK) + JUNK,
            "wrong signatures": lambda: self.head("push", altered) + altered,
            "wrong digest": lambda: self.head("push", frames) + bytes(len(frames)),
            "replay": lambda: replayed,
            "re-signed": lambda: self.head("hello", hello, key=KEYS["y"]) + hello,
            "wrong audience": lambda: self.head("hello", hello, audience=self.g) + hello,
            "older version": lambda: self.version(wire.VERSION - 1),
            "newer version": lambda: self.version(wire.VERSION + 1),
            "flood of hellos": lambda: self.head("hello", hello) + hello,
            "everything": self.pull,
            "garbage": lambda: self.head("pull", BOMB[:50_000]) + BOMB[:50_000],
        }

    def version(self, number: int) -> bytes:
        body: bytes = msgpack.packb([number, number, bytes(16), bytes(16), None])
        return self.head("hello", body) + body

    def pull(self) -> bytes:
        body = wire.encode_have({self.s.author: []})
        return self.head("pull", body) + body

    def head(self, verb: str, body: bytes, key: Any = None, audience: Any = None, caller: Any = None) -> bytes:
        path, now_ms, nonce = wire.PATH + verb, time.time_ns() // 1_000_000, secrets.token_bytes(16)
        me, to = caller or self.x, (audience or self.s).author
        signed = authorization(key or KEYS[me.name], self.charter.federation, me.author, to, "POST", path, body, now_ms, nonce)
        lines = (f"POST {path} HTTP/1.1", "Host: s", "Connection: close", f"Authorization: {signed}", f"Content-Length: {len(body)}")
        return "\r\n".join((*lines, "", "")).encode()

    async def lie(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """To a node that asks: heads that are fewer, more, or others; then streams that bring nothing, or have no end."""
        try:
            start = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            if b"/hello " in start:
                writer.write(self.lying_heads())
            elif b"/pull " in start:
                await self.endless_answer(writer)
            else:
                writer.write(secrets.token_bytes(100))
            await asyncio.wait_for(writer.drain(), 10)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            pass
        finally:
            writer.close()

    def lying_heads(self) -> bytes:
        fewer: list[Head] = []
        more = [Head(self.x.author, self.rng.randrange(1, 1 << 40), secrets.token_bytes(16))]
        others = sorted(Head(secrets.token_bytes(16), 5, secrets.token_bytes(16)) for _ in range(200))
        body: bytes = msgpack.packb([wire.VERSION, self.rng.choice([fewer, more, others, [[1, 2]]]), False])
        return body

    async def endless_answer(self, writer: asyncio.StreamWriter) -> None:
        stream, frames = wire.FrameWriter(), [f[:-1] + b"\0" for f in self.segments]
        while not writer.is_closing():
            writer.write(b"".join(stream.write(frame) for frame in frames) + stream.flush())
            await asyncio.wait_for(writer.drain(), 10)


def main() -> None:
    role, ports = sys.argv[1], [int(port) for port in sys.argv[2].split(",")]
    if role == "serve":
        asyncio.run(serve(ports, Path(sys.argv[3])))
    else:
        os.nice(19)  # it is another machine's work: its time is not to be taken from this one's
        asyncio.run(Attack(ports).run())


if __name__ == "__main__":
    main()
