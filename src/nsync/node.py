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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Callable, Optional, TypeVar

from sqlalchemy.exc import DBAPIError

from nsync import metrics
from nsync.auth.keys import verify
from nsync.authority.effective import Authority
from nsync.config import Settings
from nsync.errors import CharterMoved, ConfigError
from nsync.log.stored import Head
from nsync.rucio_bridge import measures, takeover, triggers
from nsync.rucio_bridge.bridge import Bridge, Worked
from nsync.rucio_bridge.effects import HOLD_MS_MAX
from nsync.rucio_bridge.engine import get_engine
from nsync.rucio_bridge.guard import unknown_schema
from nsync.rucio_bridge.heartbeats import BEAT_S, Heartbeats
from nsync.rucio_bridge.tending import Tending
from nsync.rucio_bridge.watch import Watch
from nsync.store import migrations, status
from nsync.store.log import SqlLog
from nsync.store.peers import PeerTable
from nsync.store.repair import Repairs, found_below
from nsync.transport.gossip import Gossip, SyncReport
from nsync.transport.health import Health, Reasons
from nsync.transport.keeper import Keeper
from nsync.transport.listener import Listener
from nsync.transport.peers import held_back
from nsync.transport.times import happens, wall_ms

LOG = logging.getLogger(__name__)

RETRY_PARKED_S = 30.0
"""How often what is parked is tried again: the operator who removed the cause waits this long at most."""
FIRST_WORD_S_MAX = 10.0
"""How long nothing is published after the start while peers have not answered: they may know that this database is a restored one."""
FAILED_PAUSE_S = 5.0
"""After a database error: it is tried again, but not in a hot loop."""

APPLY_S = 0.2
"""Between two looks of a node that runs once at what an exchange has brought so far."""
PROGRESS_S = 5.0
"""How often it is told how far a node is that lacks something."""

T = TypeVar("T")


class Node:
    """One instance of the federation."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.bridge = bridge_of(settings)
        self._writer = ThreadPoolExecutor(1, "nsync-write")
        self._reader = ThreadPoolExecutor(2, "nsync-peers")
        self._looker = ThreadPoolExecutor(1, "nsync-look")
        self._watcher = ThreadPoolExecutor(1, "nsync-watch")
        self._beater = ThreadPoolExecutor(1, "nsync-beat")
        self._heartbeats = Heartbeats(f"{settings.me.name} at {settings.host}:{settings.port}")
        self._failed = False
        """Whether the last transaction was rolled back."""
        self._voter = ThreadPoolExecutor(1, "nsync-vote")
        self._news = asyncio.Event()
        self._watch = Watch(self.bridge.engine, self._watcher)
        self.tending = Tending(self.bridge, settings.key.sign, verify, wall_ms, settings.lease_s, settings.floor_interval_s, self._voter)
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
            notices=self.tending.notary,
            repairs=Repairs(self.bridge, wall_ms),
        )
        self.keeper = Keeper(self.gossip, PeerTable(self.bridge.engine), self._looker, self._writer, settings.gossip_interval_s)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve, gossip and work until `stop` is set."""
        with self._closing():
            takeover.introduce(self.bridge.engine)
            looking = asyncio.ensure_future(self._keep_taking_over())
            try:
                await self._prepare()
                await self._serve(stop)
            finally:
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)
        LOG.info("%s stopped", self.settings.me.name)

    async def _serve(self, stop: asyncio.Event) -> None:
        me, gossip = self.settings.me, self.gossip
        app = gossip.server().app()
        Health(self._unwell).add_to(app)
        listener = Listener(app, behind_proxy=me.url.startswith("https:") and self.settings.tls is None)
        try:
            port = await listener.start(self.settings.host, self.settings.port, self.settings.tls)
        except OSError as error:
            where = f"{self.settings.host}:{self.settings.port}"
            raise ConfigError(f"[nsync] listen = {where}: {error.strerror}; does a node run here already?") from error
        if self.settings.metrics is not None:
            metrics.serve(*self.settings.metrics)
        LOG.info("%s listens on %s:%d for the federation %r", self.settings.me.name, self.settings.host, port, self.settings.charter.name)
        work = (self.gossip.run(), self._keep_working(), self._keep_tending(), self.keeper.run(), self._tell_progress())
        beside = [self._keep_beating()]
        if not self.settings.polling:  # a poll fills the outbox itself
            beside.append(self._watch.run(self._news.set))
        tasks = [asyncio.ensure_future(one) for one in (*work, *beside)]
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
            with suppress(DBAPIError):
                await self.keeper.keep()

    async def run_once(self) -> list[SyncReport]:
        """Exchange with every peer, publish, apply what came, exchange once more, and tell how that went."""
        with self._closing():
            takeover.introduce(self.bridge.engine)
            looking = asyncio.ensure_future(self._keep_taking_over())
            beside: list[asyncio.Future[None]] = []
            try:
                await self._prepare()
                beside = [asyncio.ensure_future(one) for one in (self._tell_progress(), self._keep_beating())]
                return await self._once()
            finally:
                for task in (looking, *beside):
                    task.cancel()
                await asyncio.gather(looking, *beside, return_exceptions=True)

    async def _once(self) -> list[SyncReport]:
        before = await self.gossip.sync_once()  # a restored database must not sign before it knows what its peers have of its own log
        await self._work_until_idle()
        await self.tending.once(self.gossip.wake)
        reports = await self._drain(before)
        await self._do(lambda: self.bridge.retry_parked(wall_ms()))
        await self.keeper.keep()
        return reports

    async def _drain(self, reports: Sequence[SyncReport]) -> list[SyncReport]:
        """Exchange until everything is here that the peers have told of, or a round brings nothing and makes no room; what was done in all.

        What they have told of may grow from round to round, and need not exist."""
        while True:
            after, applied = await self._exchange_and_apply()
            reports = [
                SyncReport(two.peer, one.pulled + two.pulled, one.pushed + two.pushed, two.error) for one, two in zip(reports, after)
            ]
            brought = applied or any(report.pulled for report in after)
            if not self.gossip.mends and not (brought and await self.gossip.lacking()):
                return list(reports)

    async def _exchange_and_apply(self) -> tuple[list[SyncReport], bool]:
        """One exchange with every peer, and whether something was applied meanwhile: only so many segments may wait."""
        exchanging = asyncio.ensure_future(self.gossip.sync_once())
        applied = ended = False
        try:
            while not ended:
                ended = bool((await asyncio.wait({exchanging}, timeout=APPLY_S))[0])
                applied |= await self._work_until_idle()
            return exchanging.result(), applied
        finally:
            exchanging.cancel()
            await asyncio.gather(exchanging, return_exceptions=True)

    async def _prepare(self) -> None:
        await self._write(lambda: check_installed(self.bridge, triggered=self.settings.polling is None))
        await self._write(lambda: self.bridge.adopt(self.settings.charter_text, wall_ms()))
        await self._write(lambda: self.bridge.map_scopes(self.settings.scope_map))
        await self._write(lambda: self.bridge.share(self.settings.shared_scopes))
        await self.keeper.recall()

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Transactions at hand end, those not begun never do, and nobody holds the database."""
        try:
            yield
        finally:
            for executor in (self._watcher, self._looker, self._voter, self._reader, self._writer, self._beater):
                executor.shutdown(cancel_futures=True)
            self._heartbeats.die()
            self.bridge.engine.dispose()

    async def _first_word(self) -> None:
        """Sign nothing before peers could say what they have of this instance's own log (R4.6)."""
        await happens(self.gossip.asked, FIRST_WORD_S_MAX)

    async def _keep_tending(self) -> None:
        await self._first_word()
        await self.tending.run(self.gossip.wake)

    async def _keep_working(self) -> None:
        await self._first_word()
        retried = -RETRY_PARKED_S
        publish_only = False
        while True:
            self._news.clear()
            try:
                worked = await self._do(partial(self.bridge.work, wall_ms(), publish_only))
                if time.monotonic() - retried > RETRY_PARKED_S:
                    retried = time.monotonic()
                    await self._do(lambda: self.bridge.retry_parked(wall_ms(), HOLD_MS_MAX))
                    measures.PARKED_FACTS.set(await self._write(self.bridge.count_parked))
            except CharterMoved:
                raise  # the whole node begins anew
            except Exception as error:  # rolled back; whatever it was, gossip goes on, and so does what users publish here
                known = isinstance(error, DBAPIError)
                LOG.error("a transaction was rolled back and is tried again in %g s: %s", FAILED_PAUSE_S, error, exc_info=not known)
                measures.FAILED_TRANSACTIONS.inc()
                self._failed = True
                await asyncio.sleep(FAILED_PAUSE_S)
                publish_only = not publish_only
                continue
            publish_only = self._failed = False
            await asyncio.sleep(worked.held_ms / 1000)
            if not any(one.author != self.bridge.me.author for one in worked.applied):  # what was captured is published, all of it
                await self._until_news()

    def _tell(self, worked: Worked) -> None:
        if worked.held_ms:
            measures.WRITE_LOCK_SECONDS.observe(worked.held_ms / 1000)
        measures.PUBLISHED_OPS.inc(worked.published)
        for peer in self.gossip.status():
            metrics.PEER_FAILURES.labels(peer.name).set(peer.failures)
        if worked.published:
            LOG.info("published %d ops", worked.published)
            self.gossip.wake()
        if worked.applied:
            self.gossip.applied()
        for applied in worked.applied:
            name = self.bridge.authority.name(applied.author)
            LOG.info("applied %s %d-%d: %d entries changed", name, applied.first, applied.last, applied.changed)
            measures.APPLIED_CHANGESETS.labels(author=name).inc()
            measures.CHANGED_ENTRIES.labels(author=name).inc(applied.changed)
            measures.VOID_STATEMENTS.labels(author=name).inc(applied.void)

    async def _until_news(self) -> None:
        """Segments wake the bridge at once, and captured rows by the watch; what that may miss is looked for every sleep_time."""
        await happens(self._news, self.settings.sleep_time_s)

    async def _work_until_idle(self) -> bool:
        """Whether something was applied."""
        applied = False
        while True:
            worked = await self._do(lambda: self.bridge.work(wall_ms()))
            applied |= bool(worked.applied)
            if worked.idle:
                return applied
            await asyncio.sleep(worked.held_ms / 1000)

    async def _do(self, job: Callable[[], Worked]) -> Worked:
        self.bridge.held_back = held_back(self.gossip.ahead_ms())
        worked = await self._write(job)
        if worked.published:
            await self._write(self.tending.notary.renew)
        self._tell(worked)
        return worked

    async def _keep_beating(self) -> None:
        """Be seen in Rucio's heartbeats."""
        while True:
            await asyncio.get_running_loop().run_in_executor(self._beater, self._heartbeats.beat)
            await asyncio.sleep(BEAT_S)

    async def _keep_taking_over(self) -> None:
        """End what another node on this database began and will not end; and by looking be heard, from the first transaction on."""
        while True:
            try:
                await asyncio.get_running_loop().run_in_executor(self._beater, takeover.end_silent, self.bridge.engine)
            except DBAPIError as error:
                LOG.debug("whether another node is silent could not be seen: %s", error)
            await asyncio.sleep(takeover.LOOK_S)

    async def _tell_progress(self) -> None:
        """Say how far this node is, as long as it lacks something at two looks."""
        before: Optional[status.Progress] = None
        while True:
            await asyncio.sleep(PROGRESS_S)
            with suppress(DBAPIError):
                heads = status.believed(self.gossip.records(), self.settings.charter)
                now = await asyncio.get_running_loop().run_in_executor(self._looker, self._progress, heads)
                if before is not None and before.behind and now != before:
                    LOG.info("%s: %s", "catching up" if now.behind else "caught up", now)
                before = now

    def _progress(self, heads: Sequence[Head]) -> status.Progress:
        with self.bridge.engine.connect() as connection:
            return status.progress(connection, heads)

    async def _unwell(self) -> Reasons:
        """What this node cannot do, for GET /health/ready."""
        reasons = await asyncio.get_running_loop().run_in_executor(self._looker, unwell, self.bridge)
        if self._failed:
            reasons["bridge"] = "the last transaction was rolled back, and is tried again; see the node's log"
        clock = held_back(self.gossip.ahead_ms())
        if clock is not None:
            reasons["clock"] = clock
        return reasons

    async def _write(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, job)


def bridge_of(settings: Settings) -> Bridge:
    """The bridge to the database of rucio.cfg."""
    return Bridge(
        get_engine(),
        Authority(settings.charter),
        settings.me,
        settings.key.sign,
        verify,
        settings.rse_expression,
        is_new=settings.is_new,
        bulk=settings.bulk,
        polling=settings.polling,
        audit_interval_s=settings.audit_interval_s,
    )


def check_installed(bridge: Bridge, triggered: bool) -> None:
    """Raises ConfigError unless the nsync tables are there, at the revision that this nsync works with; warns without triggers."""
    with bridge.engine.connect() as connection:
        migrations.require_current(connection)
        missing = triggers.missing(connection) if triggered else []
    if missing:
        LOG.warning(
            "changes of this Rucio are not captured, since triggers are missing (%s); run 'nsync bridge install'", ", ".join(missing)
        )


def unwell(bridge: Bridge) -> Reasons:
    """What the database of `bridge` does not allow now; in texts that anybody may read."""
    try:
        with bridge.engine.connect() as connection:
            if migrations.outdated(connection) is not None:
                return {"database": "it has no nsync tables of this revision; run 'nsync bridge install'"}
            reasons = {}
            if unknown_schema(connection) is not None:
                reasons["schema"] = "this Rucio is not one that nsync is tested with: it gossips, and writes no rows"
            if SqlLog(connection, bridge.authority).read_only(bridge.me.author) is not None:
                reasons["log"] = "nothing more is published here; 'nsync status' says why"
            if found_below(SqlLog(connection, bridge.authority)) is not None:
                reasons["below the floor"] = "something that is live is missing here, and is fetched; 'nsync status' says more"
            return reasons
    except DBAPIError as error:
        LOG.warning("the database does not answer: %s", error)
        return {"database": "it does not answer; see the node's log"}
