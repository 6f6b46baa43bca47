"""A node without Rucio, as a process of its own: listener, server and gossip of the transport on a bare SQLite store.

    python -m tests.support.lone CONFIG

CONFIG is a JSON file, see `Config`. The process says `{"listens": true}` once peers can ask it; then each line of JSON on standard input is
answered by one on standard output (`Lone.do_…`). It ends when standard input does: it cannot outlive who started it.
`NSYNC_FAILPOINT` kills it at the store's places, and at `serve-batch`, where a peer that pulls is given segments.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, TypeVar

from sqlalchemy import Connection, Engine

from nsync.auth.keys import SigningKey, verify
from nsync.authority.charter import Instance, Place
from nsync.authority.documents import load
from nsync.authority.effective import Authority
from nsync.clock import AHEAD_MS_MAX
from nsync.failpoints import failpoint
from nsync.log.stored import Head, Receipt, StoredSegment
from nsync.namespace import fields, keys
from nsync.namespace.keys import Attribute, Did, Identity
from nsync.namespace.ops import ACKNOWLEDGE, Assert, encode_op
from nsync.store.database import create_tables, open_store, writing
from nsync.store.log import Applied, SqlLog, decode_batch
from nsync.store.notary import Notary, Opened
from nsync.store.repair import Repairs
from nsync.testing.peer import SHARED
from nsync.testing.workload import Workload
from nsync.transport.gossip import Gossip
from nsync.transport.listener import Listener
from nsync.transport.session import Have
from nsync.transport.times import happens, wall_ms

LOOPBACK = "127.0.0.1"
COMPARED = ("nsync_segment", "nsync_branch", "nsync_entry", "nsync_conflict")
"""Of the tables that must be the same at all instances those that tell what is stored, what is applied, and what is shown."""
STORED = "SELECT b.author, s.first, s.last, s.hash FROM nsync_segment s JOIN nsync_branch b ON b.id = s.branch ORDER BY 1, 2"

TEND_S = 1.0
"""Between two looks at what is to be signed and voted for."""

T = TypeVar("T")


class Config(NamedTuple):
    """What is in CONFIG."""

    name: str
    charter: str
    """The path of the charter, and so below."""
    key: str
    database: str
    port: int
    """Where it listens. Peers dial the URL in the charter, which may be a proxy's."""
    source_address: str
    interval_s: float
    seed: int


class Store:
    """The log in a file of SQLite (transport's SegmentLog), and the work of a node on it. Each method is one transaction."""

    def __init__(self, path: str, authority: Authority, me: Instance, key: SigningKey) -> None:
        self.engine: Engine = open_store(f"sqlite:///{path}")
        create_tables(self.engine)
        self.authority = authority
        self.me, self.author = me, me.author
        self._key = key

    @contextmanager
    def opened(self, now_ms: int) -> Iterator[Opened]:
        """A transaction of the notary's (store.notary.Ground)."""
        with writing(self.engine) as connection:
            yield Opened(SqlLog(connection, self.authority), True, lambda by: None)

    def heads(self) -> list[Head]:
        return self._read(lambda log: log.stored_heads())

    def unknown(self, theirs: Collection[Head]) -> list[Head]:
        return self._read(lambda log: log.unknown(theirs))

    def locator(self, author: bytes) -> list[Place]:
        return self._read(lambda log: log.locator(author))

    def segments_after(self, have: Have, bytes_max: int) -> list[StoredSegment]:
        found = self._read(lambda log: log.segments_after(have, bytes_max))
        if found:
            failpoint("serve-batch")
        return found

    def receive(self, frames: Sequence[bytes], sender: str) -> Receipt:
        segments, rejected = decode_batch(frames, self.authority, verify)
        failpoint("receive-verified")
        with writing(self.engine) as connection:
            log = SqlLog(connection, self.authority)
            log.heard(self.author, [Head(s.header.author, s.header.last, s.hash) for s in segments])
            stored = log.store(segments)
            failpoint("receive-before-commit")
        failpoint("receive-after-commit")
        for text in (*rejected, *stored.rejected):
            logging.warning("refused a segment that %s brought: %s", sender, text)
        return Receipt(stored.stored, (*rejected, *stored.rejected))

    def work(self, ops: Sequence[bytes] = ()) -> list[Applied]:
        """Publish `ops`; else apply the next changeset; acknowledge what waits for this home."""
        now_ms = wall_ms()
        with writing(self.engine) as connection:
            failpoint("work-locked")
            log = SqlLog(connection, self.authority)
            applied = self._publish(log, ops, now_ms) if ops else log.apply_next(now_ms)
            worked = [] if applied is None else [applied]
            if log.state.owes_acknowledgement(self.author):
                worked.append(self._publish(SqlLog(connection, self.authority), [ACKNOWLEDGE], now_ms))
            failpoint("work-before-commit")
        failpoint("work-after-commit")
        return worked

    def _publish(self, log: SqlLog, ops: Sequence[bytes], now_ms: int) -> Applied:
        return log.publish(ops, self.author, self._key.sign, now_ms)

    def state(self) -> dict[str, Any]:
        """What is stored, as it is; what must be the same elsewhere, as digests; and what waits here."""
        with self.engine.connect() as connection:
            log = SqlLog(connection, self.authority)
            stored = [(author.hex(), first, last, hash_.hex()) for author, first, last, hash_ in connection.exec_driver_sql(STORED)]
            waits = [author.hex() for author in {head.author for head in log.stored_heads()} if not log.is_applied(author)]
            digests = {table: _digest(connection, table) for table in COMPARED}
            return {"stored": stored, "digests": digests, "waits": waits, "read_only": log.read_only(self.author)}

    def _read(self, question: Callable[[SqlLog], T]) -> T:
        with self.engine.connect() as connection:
            return question(SqlLog(connection, self.authority))


def _digest(connection: Connection, table: str) -> str:
    rows = sorted(map(repr, connection.exec_driver_sql(SHARED[table])))
    return f"{len(rows)} rows {blake2b(''.join(rows).encode(), digest_size=16).hexdigest()}"


class Lone:
    """The node."""

    def __init__(self, config: Config) -> None:
        charter = load(Path(config.charter).read_text(), verify)
        me = charter.by_name(config.name)
        assert me is not None, config.name
        self.me: Instance = me
        self.config = config
        self.visible: list[tuple[str, int, int]] = []
        """(author, last, ns of the clock of this machine) of each changeset that took effect in this process, after COMMIT."""
        key = SigningKey.load(Path(config.key))
        self._rng = random.Random(f"{config.seed} {config.name}")
        self._workload = Workload(self._rng, [instance.name for instance in charter.instances])
        self._writer, self._reader = ThreadPoolExecutor(1, "write"), ThreadPoolExecutor(2, "read")
        self._news = asyncio.Event()
        self.store = Store(config.database, Authority(charter), me, key)
        self.notary = Notary(self.store, key.sign, verify, wall_ms, lambda taken, sender: None)
        self.gossip = Gossip(
            charter,
            me,
            key,
            self.store,
            self._reader,
            random.Random(),
            self._news.set,
            interval_s=config.interval_s,
            source_address=config.source_address,
            notices=self.notary,
            repairs=Repairs(self.store, wall_ms),
        )
        self.listener = Listener(self.gossip.server().app())

    async def run(self, commands: asyncio.StreamReader) -> None:
        """Until `commands` end."""
        await self.listener.start(LOOPBACK, self.config.port)
        _say({"listens": True})
        work = [self.gossip.run(), self._keep_working(), self._keep_tending(), self._obey(commands)]
        tasks = [asyncio.ensure_future(one) for one in work]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.listener.stop()
            for executor in (self._reader, self._writer):
                executor.shutdown()
            self.store.engine.dispose()

    async def _obey(self, commands: asyncio.StreamReader) -> None:
        while line := await commands.readline():
            asked = json.loads(line)
            _say(await getattr(self, f"do_{asked.pop('do')}")(**asked))

    async def _keep_working(self) -> None:
        while True:
            self._news.clear()
            if not await self._work():
                await happens(self._news, AHEAD_MS_MAX / 1000)

    async def _keep_tending(self) -> None:
        while True:
            if (await self._do(self._writer, self.notary.tend)).fresh:
                self.gossip.wake()
            await asyncio.sleep(TEND_S)

    async def _work(self, ops: Sequence[bytes] = ()) -> list[Applied]:
        applied = await self._do(self._writer, partial(self.store.work, ops))
        now_ns = time.monotonic_ns()
        self.visible += [(one.author.hex(), one.last, now_ns) for one in applied]
        if any(one.author == self.me.author for one in applied):
            self.gossip.wake()
        if applied:
            self.gossip.applied()
        return applied

    async def _do(self, executor: Executor, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, job)

    # ---- what it is told

    async def do_publish(self, big_ops: int = 0, size: int = 0) -> dict[str, Any]:
        """A changeset of random statements; or of `big_ops` ops of `size` bytes each, which hardly compress."""
        ops = [self._big(size) for _ in range(big_ops)] or self._workload.changeset(self.me.name)
        began_ns = time.monotonic_ns()
        applied = (await self._work(ops))[0]
        self._workload.published(self.me.name, applied.author, applied.first, ops)
        return {"author": applied.author.hex(), "first": applied.first, "last": applied.last, "began_ns": began_ns}

    def _big(self, size: int) -> bytes:
        did = Did(self.me.name, f"big{self._rng.getrandbits(64):x}")
        text = json.dumps({"noise": base64.b64encode(self._rng.randbytes(size * 3 // 4)).decode()}, separators=(",", ":"))
        return encode_op([Assert(did, Identity(keys.DATASET)), Assert(Attribute(did, fields.OPENDATA_META), text)])

    async def do_state(self) -> dict[str, Any]:
        return await self._do(self._writer, self.store.state)

    async def do_visible(self) -> dict[str, Any]:
        return {"visible": self.visible}

    async def do_peers(self) -> dict[str, Any]:
        return {state.name: {"failures": state.failures, "reason": state.reason} for state in self.gossip.status()}


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


async def _main(path: str) -> None:
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    await Lone(Config(**json.loads(Path(path).read_text()))).run(commands)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    (path,) = arguments or sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    asyncio.run(_main(path))


if __name__ == "__main__":
    main()
