"""What peers cost each other: bytes on the wire, catching up between two processes, rounds until all have something, an event loop that stays free.

python -m benchmarks.gossip DATABASE PORT     # serves a store: the other process
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Optional
from urllib.request import ProxyHandler, build_opener

from benchmarks.rows import Row, timed
from benchmarks.streams import _KEYS, AUTHORITY, CHARTER, Federation, Stream, batches
from benchmarks.subject import Store
from nsync.auth.keys import verify
from nsync.authority.charter import Charter, Instance, Place
from nsync.authority.effective import Authority
from nsync.log.stored import Head, Receipt, StoredSegment
from nsync.store.database import writing
from nsync.store.log import SqlLog, decode_batch
from nsync.store.notary import Notary, Opened
from nsync.store.repair import Repairs
from nsync.testing import convergence
from nsync.transport import session, wire
from nsync.transport.client import PeerClient, open_session
from nsync.transport.gossip import Gossip
from nsync.transport.listener import Listener
from nsync.transport.roster import Roster
from nsync.transport.times import wall_ms

SIZES = (3, 8, 20, 50)
NAMES = (
    "wire_hello_bytes",
    "wire_heads_bytes_per_author",
    "catchup_ops_per_s_two_processes",
    "catchup_vs_ingest",
    "wire_behind_bytes_per_file_did",
    "loop_lag_p99_ms",
    "sync_idle_cpu_ms_per_round",
    *(f"convergence_rounds_n{size}" for size in SIZES),
    *(f"flood_ms_n{size}" for size in SIZES),
)
FILES_MAX = 200_000
"""More take longer, and show nothing new."""
ROUNDS = 200
SEEDS = 10
LAG_LOOK_S = 0.002
LOOPBACK = "127.0.0.1"
START_S_MAX = 60.0

_URLS = build_opener(ProxyHandler({}))


def measure(directory: Path, entries: int) -> Iterator[Row]:
    yield from messages()
    stream = Federation(directory, 21, authors=["atlas"]).publish_new(min(entries, FILES_MAX))
    yield from catching_up(directory, stream)
    yield from at_once(directory, stream)
    for size in SIZES:
        found = [convergence.rounds(size, seed) for seed in range(SEEDS)]
        what = f"intervals, each node asking 3, until all of {size} have a new segment, nobody being told; the slowest of {SEEDS}: {max(found):.2g}"
        yield Row(f"convergence_rounds_n{size}", statistics.mean(found), what, "log2(N)", math.log2(size))
    for size in SIZES:
        found = [convergence.seconds(size, seed) * 1000 for seed in range(SEEDS)]
        what = f"virtual ms until all of {size} have it, 1 to 30 ms one way; the slowest of {SEEDS} is {max(found):.0f}"
        yield Row(f"flood_ms_n{size}", statistics.mean(found), what)


def messages() -> Iterator[Row]:
    """Bodies as they are."""
    roster, told = Roster(CHARTER), session.Told()
    heads = [Head(author, 1 << 31, bytes(16)) for author in roster.authors]
    question = wire.encode_hello(session.digest(heads), roster.digest, session.digest(heads))
    answer = wire.encode_hello_reply(told.answer("cms", wire.decode_hello(question), heads), roster)
    yield Row("wire_hello_bytes", max(len(question), len(answer)), f"bytes of body there when in sync; back {len(answer)}")
    whole = wire.encode_hello_reply(wire.HelloReply(wire.VERSION, heads), roster)
    yield Row("wire_heads_bytes_per_author", len(whole) / len(heads), "bytes, with the seq above 2^31")


# ---- two instances


class StoreLog:
    """A stand-alone store as the transport's SegmentLog."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def _ask(self, question: Callable[[SqlLog], Any]) -> Any:
        with self._store.engine.connect() as connection:
            return question(SqlLog(connection, AUTHORITY))

    def heads(self) -> list[Head]:
        return list(self._ask(lambda log: log.stored_heads()))

    def unknown(self, theirs: Collection[Head]) -> list[Head]:
        return list(self._ask(lambda log: log.unknown(theirs)))

    def locator(self, author: bytes) -> list[Place]:
        return list(self._ask(lambda log: log.locator(author)))

    def segments_after(self, have: session.Have, bytes_max: int) -> list[StoredSegment]:
        return list(self._ask(lambda log: log.segments_after(have, bytes_max)))

    def receive(self, frames: Sequence[bytes], sender: str) -> Receipt:
        segments, rejected = decode_batch(frames, AUTHORITY, verify)
        with writing(self._store.engine) as connection:
            receipt = SqlLog(connection, AUTHORITY).store(segments)
        return Receipt(receipt.stored, (*rejected, *receipt.rejected))


class Node:
    """A store, a server and its gossip, and a thread that applies what comes."""

    def __init__(self, charter: Charter, name: str, store: Store) -> None:
        me = charter.by_name(name)
        assert me is not None
        self.store, self.log, self.applied = store, StoreLog(store), 0
        self.charter, self.me = charter, me
        self._news = asyncio.Event()
        self._reader, self._writer = ThreadPoolExecutor(2), ThreadPoolExecutor(1)
        self.engine, self.authority = store.engine, Authority(charter)
        notary = Notary(self, _KEYS[name].sign, verify, wall_ms, lambda taken, sender: None)
        log, repairs = self.log, Repairs(self, wall_ms)
        self.gossip = Gossip(charter, me, _KEYS[name], log, self._reader, random.Random(1), self._news.set, notices=notary, repairs=repairs)
        self._listener = Listener(self.gossip.server().app())

    @contextmanager
    def opened(self, now_ms: int) -> Iterator[Opened]:
        """A transaction of the notary's (store.notary.Ground)."""
        with writing(self.engine) as connection:
            yield Opened(SqlLog(connection, self.authority), True, lambda by: None)

    async def serve(self) -> None:
        await self._listener.start(LOOPBACK, int(self.me.url.rsplit(":", 1)[1]))

    async def close(self) -> None:
        await self._listener.stop()
        self._reader.shutdown()
        self._writer.shutdown()

    async def catch_up(self, ops: int) -> None:
        """Gossip until so many ops are applied, the catalogue left to the end as a newcomer does."""
        gossip = asyncio.ensure_future(self.gossip.run())
        try:
            while self.applied < ops:
                done = await asyncio.get_running_loop().run_in_executor(self._writer, self.store.apply_one, False)
                if done is None:
                    await self._news.wait()
                    self._news.clear()
                else:
                    self.applied += done
                    self.gossip.applied()
        finally:
            gossip.cancel()
            with suppress(asyncio.CancelledError):
                await gossip


def _charter(*names: str) -> Charter:
    """The members `names` of the benchmarks' charter, on ports of this machine."""
    return replace(CHARTER, instances=tuple(_here(CHARTER.by_name(name)) for name in names))


def _here(instance: Optional[Instance]) -> Instance:
    assert instance is not None
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return replace(instance, url=f"http://{LOOPBACK}:{free.getsockname()[1]}")


def _url(path: Path) -> str:
    return f"sqlite:///{path}"


def catching_up(directory: Path, stream: Stream) -> Iterator[Row]:
    """Another process serves all, this one begins with nothing; beside ingesting the same frames from a file."""
    full = Store(_url(directory / "full.db"))
    alone = timed(lambda: full.ingest(batches(stream.path), catalogue=False))
    full.close()
    seconds, received = _with_other_process(directory, stream)
    rate, beside = stream.ops / seconds, stream.ops / alone.wall_s
    what = "file DIDs a second from one process to another: fetched, verified, durable, applied"
    yield Row("catchup_ops_per_s_two_processes", rate, what, "ingest_new_files_per_s of the same frames", beside)
    yield Row("catchup_vs_ingest", rate / beside, "of the rate of ingest in the same run, by the clock")
    yield Row("wire_behind_bytes_per_file_did", received / stream.ops, "bytes of body that came in all, hello and heads included")


def _with_other_process(directory: Path, stream: Stream) -> tuple[float, int]:
    """The seconds until all is applied here, and the bytes that came."""
    charter = _charter("atlas", "cms")
    port = charter.instances[0].url.rsplit(":", 1)[1]
    other = subprocess.Popen([sys.executable, "-m", "benchmarks.gossip", str(directory / "full.db"), port])
    try:
        _wait_for(charter.instances[0].url)
        store = Store(_url(directory / "newcomer.db"))

        async def story() -> tuple[float, int]:
            async with _node(charter, "cms", store) as node:
                began = time.perf_counter()
                await node.catch_up(stream.ops)
                return time.perf_counter() - began, node.gossip.meters["atlas"].bytes_in

        found = asyncio.run(story())
        store.close()
        return found
    finally:
        other.kill()
        other.wait()


def at_once(directory: Path, stream: Stream) -> Iterator[Row]:
    """One process serves all and receives all, on one event loop."""
    charter = _charter("atlas", "cms")
    full, store = Store(_url(directory / "full.db")), Store(_url(directory / "again.db"))
    lags: list[float] = []

    async def story() -> float:
        async with _node(charter, "atlas", full) as serving, _node(charter, "cms", store) as node:
            watching = asyncio.ensure_future(_watch(lags))
            await node.catch_up(stream.ops)
            watching.cancel()
            return await _idle(serving, node)

    idle_ms = asyncio.run(story())
    full.close()
    store.close()
    lags.sort()
    what = f"ms late that the event loop is, serving and receiving at once; median {statistics.median(lags):.2g}, worst {lags[-1]:.3g}"
    yield Row("loop_lag_p99_ms", lags[int(0.99 * len(lags))], what)
    yield Row("sync_idle_cpu_ms_per_round", idle_ms, "ms of CPU for one round between two in sync, both sides together")


async def _watch(lags: list[float]) -> None:
    while True:
        before = time.perf_counter()
        await asyncio.sleep(LAG_LOOK_S)
        lags.append((time.perf_counter() - before - LAG_LOOK_S) * 1000)


async def _idle(serving: Node, node: Node) -> float:
    """Ms of CPU of a round trip that finds that nothing is to be done."""
    async with open_session() as http:
        client = PeerClient(http, node.charter, node.me, serving.me, _KEYS["cms"])
        began = time.process_time()
        for _ in range(ROUNDS):
            reply = await client.hello(session.covering(node.log.heads(), await node.gossip.door.digest()))
            assert reply.heads is None
    return (time.process_time() - began) / ROUNDS * 1000


@asynccontextmanager
async def _node(charter: Charter, name: str, store: Store) -> AsyncIterator[Node]:
    node = Node(charter, name, store)
    await node.serve()
    try:
        yield node
    finally:
        await node.close()


def _wait_for(url: str) -> None:
    end = time.monotonic() + START_S_MAX
    while True:
        try:
            with _URLS.open(url + "/ping", timeout=5):
                return
        except OSError:
            assert time.monotonic() < end, f"{url} does not answer"
            time.sleep(0.05)


async def _serve(database: str, port: str) -> None:
    atlas = CHARTER.by_name("atlas")
    assert atlas is not None
    charter = replace(CHARTER, instances=(replace(atlas, url=f"http://{LOOPBACK}:{port}"), *CHARTER.instances[1:]))
    async with _node(charter, "atlas", Store(_url(Path(database)))):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
