"""Keeps this instance and its peers in sync: one task per peer, so that a slow one delays nobody.

A task exchanges with a healthy peer when something wakes it, and with a failing one when its back-off ends, not before:

    own new segments     wake()       all peers, at once
    others' segments     received()   RELAY_PEERS_MAX random peers, after a random moment (their author tells all anyway)
    anti-entropy         timer        the peer, every `interval_s` or so: repairs whatever was missed

Wake-ups that come during an exchange make one more, however many they were. What happened is in `status()`; the log tells
when a row of failures begins and when it ends, since one cut shows in several ways.

Make and use it on one event loop; from another thread, `loop.call_soon_threadsafe(gossip.wake)`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Callable, NamedTuple, Optional

from nsync.authority.charter import Charter, Instance
from nsync.authority.effective import Authority
from nsync.errors import NsyncError
from nsync.log.stored import PeerRecord
from nsync.transport.client import PeerClient, open_session
from nsync.transport.exchange import Exchange, Peer
from nsync.transport.peers import Meter, PeerState, ahead_ms
from nsync.transport.ports import LogDoor, OnReceived, SegmentLog
from nsync.transport.requests import Signer
from nsync.transport.times import monotonic_ms, wall_ms

logger = logging.getLogger("nsync.transport.gossip")

INTERVAL_S = 5.0
RELAY_PEERS_MAX = 4
RELAY_S_MAX = 0.5
"""Others' segments are passed on within this time: most often their author was faster, and it is one small round trip."""


Reach = Callable[[], AbstractAsyncContextManager[Callable[[Instance], Peer]]]
"""Opens what it takes to reach peers, and gives the client of each."""


class SyncReport(NamedTuple):
    """What one exchange did."""

    peer: str
    pulled: int
    """Segments from the peer that were new here."""
    pushed: int
    """Segments from here that were new to the peer."""
    error: str
    """Empty when all went well."""


class Gossip:
    """The peers of one instance."""

    def __init__(
        self,
        charter: Charter,
        me: Instance,
        signer: Signer,
        log: SegmentLog,
        executor: Optional[Executor],
        rng: random.Random,
        on_received: OnReceived,
        interval_s: float = INTERVAL_S,
        source_address: Optional[str] = None,
        reach: Optional[Reach] = None,
    ) -> None:
        """`on_received`: what the node does about segments from elsewhere; see ports.OnReceived. `reach`: HTTP, unless given."""
        self._charter = charter
        self._me = me
        self._signer = signer
        self._log = LogDoor(log, executor, self.received)
        self._rng = rng
        self._on_received = on_received
        self._interval_s = interval_s
        self._source_address = source_address
        self._reach = reach or self._over_http
        self._peers = {i.name: i for i in charter.instances if i.author != me.author and i.retired is None}
        self._states = {name: PeerState(name) for name in self._peers}
        self.meters = {name: Meter() for name in self._peers}
        self._running: dict[str, Exchange] = {}
        self._reset = {name: asyncio.Event() for name in self._peers}
        self._woken = {name: asyncio.Event() for name in self._peers}
        self._busy = {name: asyncio.Lock() for name in self._peers}
        self._forked: frozenset[bytes] = frozenset()
        self._relay: Optional[asyncio.TimerHandle] = None
        self._unasked = set(self._peers)
        self.asked = asyncio.Event()
        """Set once every peer was asked, whether it answered or not: what they have of this instance's own log is known then (R4.6)."""
        if not self._peers:
            self.asked.set()

    async def run(self) -> None:
        """Keep up with every peer, until cancelled."""
        async with self._reach() as client:
            tasks = [asyncio.ensure_future(self._keep_up(client(peer))) for peer in self._peers.values()]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                if self._relay is not None:
                    self._relay.cancel()

    async def sync_once(self) -> list[SyncReport]:
        """One exchange with every peer, whatever its back-off."""
        async with self._reach() as client:
            return await asyncio.gather(*(self._exchange(client(peer)) for peer in self._peers.values()))

    def wake(self) -> None:
        """New segments were stored here: tell all peers."""
        for woken in self._woken.values():
            woken.set()

    def received(self) -> None:
        """Segments from elsewhere were stored here: the node applies them, and some peers hear of them soon."""
        self._on_received()
        if self._relay is None:
            self._relay = asyncio.get_running_loop().call_later(self._rng.uniform(0, RELAY_S_MAX), self._pass_on)

    def status(self) -> list[PeerState]:
        """How each peer fares, by the event loop's clock."""
        return list(self._states.values())

    def records(self) -> list[PeerRecord]:
        """All that is known of each peer, by wall time: to be kept and shown."""
        now_ms, now_wall_ms = monotonic_ms(), wall_ms()
        for name, exchange in self._running.items():
            if exchange.theirs is not None:
                self.meters[name].saw(exchange.theirs, now_ms)
        return [self.meters[name].record(state, now_ms, now_wall_ms) for name, state in self._states.items()]

    def recall(self, records: Iterable[PeerRecord]) -> None:
        """Go on from what an earlier process kept. Before `run`, which tries each peer at once whatever was kept."""
        now_ms, now_wall_ms = monotonic_ms(), wall_ms()
        for record in records:
            if record.name in self._peers:
                self._states[record.name] = self.meters[record.name].recall(record, now_ms, now_wall_ms)

    def reset(self, name: str) -> None:
        """End the back-off of a peer: it is tried now."""
        if name in self._peers:
            self._reset[name].set()
            self._woken[name].set()

    def ahead_ms(self) -> Optional[int]:
        """How far the clock here is ahead of the median of the peers' (R3.7); None when none is known."""
        now_ms, now_wall_ms = monotonic_ms(), wall_ms()
        return ahead_ms(meter.offset_ms(now_ms, now_wall_ms) for meter in self.meters.values())

    def _pass_on(self) -> None:
        self._relay = None
        for name in self._rng.sample(sorted(self._peers), min(RELAY_PEERS_MAX, len(self._peers))):
            self._woken[name].set()

    @asynccontextmanager
    async def _over_http(self) -> AsyncIterator[Callable[[Instance], Peer]]:
        async with open_session(self._source_address) as http:
            yield lambda peer: PeerClient(http, self._charter, self._me, peer, self._signer, self.meters[peer.name])

    async def _keep_up(self, client: Peer) -> None:
        while True:
            await self._exchange(client)
            await self._due(client.name)

    async def _due(self, name: str) -> None:
        """Return when the back-off is over; for a healthy peer, when it is woken or the timer runs out."""
        pause_ms = self._states[name].pause_ms(monotonic_ms())
        if pause_ms:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._reset[name].wait(), pause_ms / 1000)
            return
        woken = self._woken[name]
        timer = asyncio.get_running_loop().call_later(self._interval_s * self._rng.uniform(0.5, 1.5), woken.set)
        try:
            await woken.wait()
        finally:
            timer.cancel()

    async def _exchange(self, client: Peer) -> SyncReport:
        async with self._busy[client.name]:
            self._woken[client.name].clear()
            self._reset[client.name].clear()
            exchange = self._running[client.name] = Exchange(client, self._log, self._me.author)
            error = ""
            try:
                await exchange.run()
            except NsyncError as failure:
                error = str(failure)
            except Exception as failure:  # the log is a port: whatever it raises must not end the gossip
                logger.exception("exchange with %s failed here", client.name)
                error = f"{type(failure).__name__}: {failure}"
            self._note(client.name, exchange, error)
            self._unasked.discard(client.name)
            if not self._unasked:
                self.asked.set()
            return SyncReport(client.name, exchange.pulled, exchange.pushed, error)

    def _note(self, name: str, exchange: Exchange, error: str) -> None:
        now_ms, before = monotonic_ms(), self._states[name]
        del self._running[name]
        if exchange.theirs is not None:
            self.meters[name].saw(exchange.theirs, now_ms)
        state = before.answered(now_ms) if exchange.answered else before
        self._states[name] = state = state.failed(now_ms, error, self._rng) if error else state.succeeded(now_ms)
        if error and not before.failures:
            logger.warning("peer %s: %s (%s; tried again until it works)", name, error, _last_answer(before, now_ms))
        elif error:
            logger.debug("peer %s: %s (next try in %d ms)", name, error, state.pause_ms(now_ms))
        elif before.since_ms is not None:
            logger.info("peer %s: in order again after %d failures in %d s", name, before.failures, (now_ms - before.since_ms) // 1000)
        for author in sorted(exchange.forked - self._forked):
            logger.warning(
                "author %s has signed two histories, and both are kept here: what most members had seen before counts (R4.5); "
                "its instance needs a new incarnation in the charter",
                Authority(self._charter).name(author),
            )
        self._forked |= exchange.forked


def _last_answer(state: PeerState, now_ms: int) -> str:
    if state.last_contact_ms is None:
        return "no answer since this node started"
    return f"its last answer came {(now_ms - state.last_contact_ms) // 1000} s ago"
