"""The node of one instance: peers' API, gossip and bridge in one asyncio process. The only place that knows all.

The database is worked on by one thread at a time for writes and another for what peers read, never on the event loop. The write lock is
held for at most 100 ms where the changesets allow, and left alone at least as long as it was held, so that Rucio's own
writers get their turn.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Callable, TypeVar

from sqlalchemy.exc import DBAPIError

from nsync import metrics
from nsync.auth.keys import verify
from nsync.authority.effective import Authority
from nsync.config import Settings
from nsync.errors import ConfigError
from nsync.rucio_bridge import triggers
from nsync.rucio_bridge.bridge import HOLD_MS_MAX, Bridge, Worked
from nsync.rucio_bridge.engine import get_engine
from nsync.store import migrations
from nsync.transport.gossip import Gossip, SyncReport
from nsync.transport.listener import Listener
from nsync.transport.server import Server
from nsync.transport.times import wall_ms

LOG = logging.getLogger(__name__)

RETRY_PARKED_S = 30.0
"""How often what is parked is tried again: the operator who removed the cause waits this long at most."""
FIRST_WORD_S_MAX = 10.0
"""How long nothing is published after the start while peers have not answered: they may know that this database is a restored one."""
FAILED_PAUSE_S = 5.0
"""After a database error: it is tried again, but not in a hot loop."""

T = TypeVar("T")


class Node:
    """One instance of the federation."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.bridge = Bridge(get_engine(), Authority(settings.charter), settings.me, settings.key.sign, verify, settings.rse_expression)
        self._writer = ThreadPoolExecutor(1, "nsync-write")
        self._reader = ThreadPoolExecutor(2, "nsync-peers")
        self._news = asyncio.Event()
        self.gossip = Gossip(
            settings.charter,
            settings.me,
            settings.key,
            self.bridge,
            self._reader,
            random.Random(),  # noqa: S311 - jitter, not a secret
            self._news.set,
            interval_s=settings.gossip_interval_s,
            source_address=settings.source_address,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Serve, gossip and work until `stop` is set."""
        with self._closing():
            await self._prepare()
            await self._serve(stop)
        LOG.info("%s stopped", self.settings.me.name)

    async def _serve(self, stop: asyncio.Event) -> None:
        verbs = self.gossip.verbs()
        server = Server(self.settings.charter, self.settings.me, self.bridge, self._reader, self.gossip.received, verbs=verbs)
        behind_proxy = self.settings.me.url.startswith("https:") and self.settings.tls is None
        listener = Listener(server.app(), behind_proxy=behind_proxy)
        try:
            port = await listener.start(self.settings.host, self.settings.port, self.settings.tls)
        except OSError as error:
            where = f"{self.settings.host}:{self.settings.port}"
            raise ConfigError(f"[nsync] listen = {where}: {error.strerror}; does a node run here already?") from error
        if self.settings.metrics is not None:
            metrics.serve(*self.settings.metrics)
        LOG.info("%s listens on %s:%d for the federation %r", self.settings.me.name, self.settings.host, port, self.settings.charter.name)
        tasks = [asyncio.ensure_future(self.gossip.run()), asyncio.ensure_future(self._keep_working())]
        stopping = asyncio.ensure_future(stop.wait())
        try:
            done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()
        finally:
            for task in (*tasks, stopping):
                task.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)
            await listener.stop()

    async def run_once(self) -> list[SyncReport]:
        """Exchange with every peer, publish, apply what came, exchange once more, and tell how that went."""
        with self._closing():
            await self._prepare()
            before = await self.gossip.sync_once()  # a restored database must not sign before it knows what its peers have of its own log
            await self._work_until_idle()
            after = await self.gossip.sync_once()
            await self._work_until_idle()
            await self._do(lambda: self.bridge.retry_parked(wall_ms()))
        return [SyncReport(two.peer, one.pulled + two.pulled, one.pushed + two.pushed, two.error) for one, two in zip(before, after)]

    async def _prepare(self) -> None:
        await self._write(lambda: check_installed(self.bridge))
        await self._write(lambda: self.bridge.adopt(self.settings.charter_text, wall_ms()))
        await self._write(lambda: self.bridge.share(self.settings.shared_scopes))

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Transactions at hand end, those not begun never do, and nobody holds the database."""
        try:
            yield
        finally:
            for executor in (self._reader, self._writer):
                executor.shutdown(cancel_futures=True)
            self.bridge.engine.dispose()

    async def _keep_working(self) -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.gossip.asked.wait(), FIRST_WORD_S_MAX)
        retried = -RETRY_PARKED_S
        publish_only = False
        while True:
            self._news.clear()
            try:
                worked = await self._do(partial(self.bridge.work, wall_ms(), publish_only))
                if time.monotonic() - retried > RETRY_PARKED_S:
                    retried = time.monotonic()
                    await self._do(lambda: self.bridge.retry_parked(wall_ms(), HOLD_MS_MAX))
            except Exception as error:  # rolled back; whatever it was, gossip goes on, and so does what users publish here
                known = isinstance(error, DBAPIError)
                LOG.error("a transaction was rolled back and is tried again in %g s: %s", FAILED_PAUSE_S, error, exc_info=not known)
                metrics.FAILED_TRANSACTIONS.inc()
                await asyncio.sleep(FAILED_PAUSE_S)
                publish_only = not publish_only
                continue
            publish_only = False
            if worked.idle:
                await self._until_news()
            else:
                await asyncio.sleep(worked.held_ms / 1000)

    def _tell(self, worked: Worked) -> None:
        metrics.WRITE_LOCK_SECONDS.inc(worked.held_ms / 1000)
        metrics.PUBLISHED_OPS.inc(worked.published)
        for peer in self.gossip.status():
            metrics.PEER_FAILURES.labels(peer.name).set(peer.failures)
        if worked.published:
            LOG.info("published %d ops", worked.published)
            self.gossip.wake()
        if worked.applied:
            self.gossip.applied()
        for applied in worked.applied:
            name = self.bridge.authority.name(applied.author)
            LOG.info("applied %s %d-%d: %d entries changed", name, applied.first, applied.last, len(applied.changed))
            metrics.APPLIED_CHANGESETS.labels(name).inc()
            metrics.VOID_STATEMENTS.labels(name).inc(applied.void)

    async def _until_news(self) -> None:
        """Segments wake the bridge at once; captured rows are looked for every sleep_time."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._news.wait(), self.settings.sleep_time_s)

    async def _work_until_idle(self) -> None:
        while True:
            worked = await self._do(lambda: self.bridge.work(wall_ms()))
            if worked.idle:
                return
            await asyncio.sleep(worked.held_ms / 1000)

    async def _do(self, job: Callable[[], Worked]) -> Worked:
        worked = await self._write(job)
        self._tell(worked)
        return worked

    async def _write(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, job)


def check_installed(bridge: Bridge) -> None:
    """Raises ConfigError unless the nsync tables are there, at the revision that this nsync works with."""
    with bridge.engine.connect() as connection:
        migrations.require_current(connection)
        missing = triggers.missing(connection)
    if missing:
        LOG.warning(
            "changes of this Rucio are not captured, since triggers are missing (%s); run 'nsync bridge install'", ", ".join(missing)
        )
