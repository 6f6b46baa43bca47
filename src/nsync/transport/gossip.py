"""Keeps this instance and its peers in sync: one task per peer, so that a slow one delays nobody.

A task exchanges with a healthy peer when something wakes it, and with a failing one when its back-off ends, not before:

                         up to FEW_PEERS peers                      more
    own new segments     wake(): an exchange with all, at once      the flood (transport.flood): some are told, who tell others
    others' segments     received(): with RELAY_PEERS_MAX random    the flood
                         ones, after a random moment (their
                         author tells all anyway)
    news from a peer     told(): what it has is pulled from it, unless somebody else is asked for it already (transport.pulls)
    anti-entropy         every `interval_s` or so an exchange with the next ASKED_PEERS_MAX of a shuffled deck of all peers: repairs
                         whatever was missed, at a cost that does not grow with their number

Wake-ups that come during an exchange make one more, however many they were. What happened is in `status()`; the log tells
when a row of failures begins and when it ends, since one cut shows in several ways.

Make and use it on one event loop; from another thread, `loop.call_soon_threadsafe(gossip.wake)`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Callable, NamedTuple, Optional

from aiohttp import web

from nsync.authority.charter import Charter, Instance
from nsync.authority.effective import Authority
from nsync.errors import NsyncError
from nsync.log.stored import Head, PeerRecord
from nsync.transport import session, wire
from nsync.transport.client import PeerClient, open_session
from nsync.transport.exchange import Exchange, Peer
from nsync.transport.flood import Flood
from nsync.transport.mending import Mender
from nsync.transport.metering import Metered
from nsync.transport.notices import NOTICES_BYTES_MAX, VERB, NoticeDoor, NoticeLog, decode, encode
from nsync.transport.peers import Meter, PeerState, ahead_ms
from nsync.transport.ports import LogDoor, OnReceived, SegmentLog
from nsync.transport.pulls import LEASE_MS, Pulls
from nsync.transport.repair import RepairLog
from nsync.transport.requests import Signer
from nsync.transport.roster import Roster
from nsync.transport.server import Server, Verb
from nsync.transport.times import happens, monotonic_ms, wall_ms

logger = logging.getLogger("nsync.transport.gossip")

INTERVAL_S = 5.0
ASKED_PEERS_MAX = 3
FEW_PEERS = 8
"""All of so many hear of new segments from their author: a round trip and the segments to each."""
RELAY_PEERS_MAX = 4
RELAY_S_MAX = 0.5
"""Others' segments are passed on within this time: most often their author was faster, and it is one small round trip."""
START_S_PER_PEER = 0.02
"""Many peers are asked one after the other when the process starts: perhaps all of them just did, too."""
ROOM_S_MIN = 0.25
"""Between two attempts to store the same batch, whose signatures are checked each time."""
ROOM_S_MAX = 2.0
"""How long a stream waits for something to be applied here, when too much of it waits."""

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
        few_peers: int = FEW_PEERS,
        notices: Optional[NoticeLog] = None,
        repairs: Optional[RepairLog] = None,
    ) -> None:
        """`on_received`: what the node does about segments from elsewhere; see ports.OnReceived. `reach`: HTTP, unless given.
        `few_peers`: more than so many hear of what is new by the flood."""
        self._charter = charter
        self._me = me
        self._authors = frozenset(Roster(charter).authors)
        self._signer = signer
        self._here = (me, log, executor, self.received)
        self._log = LogDoor(log, executor, self.received)
        self._rng = rng
        self._on_received = on_received
        self._interval_s = interval_s
        self._source_address = source_address
        self._reach = reach or self._over_http
        metered = Metered(executor) if executor is not None else None
        self.door = NoticeDoor(notices, metered, self.noticed) if notices is not None else None
        """To the notices, where there are any; the server's too."""
        self._mender = Mender(repairs, metered) if repairs is not None else None
        self._peers = {i.name: i for i in charter.instances if i.author != me.author and i.retired is None}
        self._is_large = len(self._peers) > few_peers
        self._states = {name: PeerState(name) for name in self._peers}
        self.meters = {name: Meter() for name in self._peers}
        self._running: dict[str, Exchange] = {}
        self._reset = {name: asyncio.Event() for name in self._peers}
        self._woken = {name: asyncio.Event() for name in self._peers}
        self._busy = {name: asyncio.Lock() for name in self._peers}
        self._forked: frozenset[bytes] = frozenset()
        self._relay: Optional[asyncio.TimerHandle] = None
        self._flood = Flood(me.name, self._log, rng, self._is_well)
        self._pulls = Pulls(lambda: sum(map(self._is_well, self._peers)), self._given_back)
        self._clients: dict[str, Peer] = {}
        """Of those who are kept up with; none before `run`."""
        self._whole: set[str] = set()
        """Who is due a whole exchange; others that are woken are asked for what they told, no more."""
        self._heard: dict[str, list[Head]] = {}
        self._left: dict[str, Sequence[Head]] = {}
        self._given = 0
        self._again: Optional[asyncio.TimerHandle] = None
        self._applied = asyncio.Event()
        self._unasked = set(self._peers)
        self.asked = asyncio.Event()
        """Set once every peer was asked, whether it answered or not: what they have of this instance's own log is known then (R4.6)."""
        if not self._peers:
            self.asked.set()

    async def run(self) -> None:
        """Keep up with every peer, until cancelled."""
        async with self._reach() as client:
            self._clients = {name: client(peer) for name, peer in self._peers.items()}
            tasks = [asyncio.ensure_future(self._keep_up(peer)) for peer in self._clients.values()]
            tasks += [asyncio.ensure_future(task) for task in (self._flood.run(self._clients), self._keep_asking())]
            try:
                await asyncio.gather(*tasks)
            finally:
                self._clients = {}
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                for timer in (self._relay, self._again):
                    if timer is not None:
                        timer.cancel()

    async def sync_once(self) -> list[SyncReport]:
        """One exchange with every peer, whatever its back-off, about all authors, whatever there was no room for."""
        self._pulls.rested()
        async with self._reach() as client:
            self._whole.update(self._peers)
            return await asyncio.gather(*(self._exchange(client(peer)) for peer in self._peers.values()))

    def wake(self) -> None:
        """New segments were stored here: tell the peers."""
        if self._is_large:
            self._flood.news()
            self.noticed()
        else:
            self._want(self._peers)

    def received(self) -> None:
        """Segments from elsewhere were stored here: the node applies them, and some peers hear of them soon."""
        self._on_received()
        if self._is_large:
            self._flood.news()
        else:
            self.noticed()

    def noticed(self) -> None:
        """Notices came that everybody should have soon."""
        if self._relay is None:
            self._relay = asyncio.get_running_loop().call_later(self._rng.uniform(0, RELAY_S_MAX), self._pass_on)

    def told(self, name: str, heads: Sequence[Head]) -> bool:
        """The peer `name` has these heads, and they are new to it. Whether it will be asked for what is missing here."""
        asked = self._running.get(name)
        if name not in self._clients or not (self._is_well(name) or (asked is not None and asked.answered)):
            return False
        self._heard[name] = session.merged(self._heard.get(name, ()), heads)[: wire.HEADS_MAX]
        self._woken[name].set()
        return True

    def applied(self) -> None:
        """Something that waited was applied, so there is room for more."""
        self._applied.set()

    def server(self, charter: Optional[Charter] = None, body_s_max: float = wire.BODY_S_MAX) -> Server:
        """What answers the peers, with all that there is here. `charter`: where others may ask than are asked."""
        asked = (charter or self._charter, *self._here)
        return Server(*asked, body_s_max=body_s_max, verbs=self.verbs(), meters=self.meters, notices=self.door, on_called=self.called)

    def verbs(self) -> tuple[Verb, ...]:
        """What peers ask of the gossip, for the server."""
        told = Verb("tell", wire.HEADS_BYTES_MAX, self._answer_tell)
        notices = () if self.door is None else (Verb(VERB, NOTICES_BYTES_MAX, partial(_answer_notices, self.door)),)
        return (told, *notices, *(self._mender.verbs() if self._mender is not None else ()))

    async def _answer_tell(self, _: web.Request, caller: Instance, body: bytes) -> web.StreamResponse:
        return web.Response(body=wire.encode_tell_reply(self.told(caller.name, wire.decode_tell(body))))

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

    def called(self, name: str) -> None:
        """The peer has asked something of this instance: one that was silent is tried now."""
        before = self._states.get(name)
        if before is not None and before.called(monotonic_ms()) is not before:
            self._states[name] = before.called(monotonic_ms())
            self.reset(name)

    async def lacking(self) -> int:
        """How many ops of what the peers have told of are not here."""
        told = {head for meter in self.meters.values() for head in meter.heads or () if head.author in self._authors}
        missing = await self._log.unknown(told)
        return sum(session.missing_ops(await self._log.heads(), missing).values())

    @property
    def mends(self) -> bool:
        """Whether the next exchange with somebody repairs more."""
        return self._mender is not None and self._mender.goes_on

    def ahead_ms(self) -> Optional[int]:
        """How far the clock here is ahead of the median of the peers' (R3.7); None when none is known."""
        now_ms, now_wall_ms = monotonic_ms(), wall_ms()
        return ahead_ms(meter.offset_ms(now_ms, now_wall_ms) for meter in self.meters.values())

    def _pass_on(self) -> None:
        self._relay = None
        self._want(self._rng.sample(sorted(self._peers), min(RELAY_PEERS_MAX, len(self._peers))))

    def _want(self, names: Iterable[str]) -> None:
        """Have a whole exchange with these peers."""
        for name in names:
            self._whole.add(name)
            self._woken[name].set()

    def _is_well(self, name: str) -> bool:
        return not self._states[name].failures

    def _given_back(self) -> None:
        """Somebody was asked for a log: what that did not bring, others may be asked for."""
        self._given += 1
        left, self._left = self._left, {}
        for name, heads in left.items():
            self.told(name, heads)

    async def _room(self) -> bool:
        """Return when something was applied since the last time, and not at once; with False when nothing was, for long."""
        await asyncio.sleep(ROOM_S_MIN)
        found = await happens(self._applied, ROOM_S_MAX)
        self._applied.clear()
        return found

    async def _keep_asking(self) -> None:
        """Anti-entropy."""
        deck: list[str] = []
        while self._peers:
            await asyncio.sleep(self._interval_s * self._rng.uniform(0.5, 1.5))
            for _ in range(min(ASKED_PEERS_MAX, len(self._peers))):
                deck = deck or self._rng.sample(sorted(self._peers), len(self._peers))
                self._want([deck.pop()])

    @asynccontextmanager
    async def _over_http(self) -> AsyncIterator[Callable[[Instance], Peer]]:
        async with open_session(self._source_address) as http:
            yield lambda peer: PeerClient(http, self._charter, self._me, peer, self._signer, self.meters[peer.name])

    async def _keep_up(self, client: Peer) -> None:
        if self._is_large:
            await asyncio.sleep(self._rng.uniform(0, START_S_PER_PEER * len(self._peers)))
        self._whole.add(client.name)
        while True:
            await self._exchange(client)
            await self._due(client.name)

    async def _due(self, name: str) -> None:
        """Return when the back-off is over; for a healthy peer, when it is woken."""
        pause_ms = self._states[name].pause_ms(monotonic_ms())
        if pause_ms:
            await happens(self._reset[name], pause_ms / 1000)
            self._whole.add(name)
        else:
            await self._woken[name].wait()

    async def _exchange(self, client: Peer) -> SyncReport:
        """What is due: a whole exchange, or asking for what the peer has told."""
        name = client.name
        async with self._busy[name]:
            self._woken[name].clear()
            self._reset[name].clear()
            heard, given = [*self._heard.pop(name, ()), *self._left.pop(name, ())], self._given
            before = self.meters[name].heads
            exchange = Exchange(client, self._log, self._me.author, self._authors, self._pulls, self._room, before, self.door)
            self._running[name] = exchange
            whole = name in self._whole
            self._whole.discard(name)
            error, mends = "", False
            try:
                await (exchange.run() if whole else exchange.fetch(heard))
                if whole and self._mender is not None:
                    mends = await self._mender.run(client)
            except NsyncError as failure:
                error = str(failure)
            except Exception as failure:  # the log is a port: whatever it raises must not end the gossip
                logger.exception("exchange with %s failed here", client.name)
                error = f"{type(failure).__name__}: {failure}"
            self._note(name, exchange, error)
            if mends:
                self._want([name])
            elif error and self._mender is not None:
                self._mender.leave(name)
            if exchange.left:
                self._leave(name, exchange.left, given)
            self._unasked.discard(name)
            if not self._unasked:
                self.asked.set()
            return SyncReport(name, exchange.pulled, exchange.pushed, error)

    def _leave(self, name: str, heads: Sequence[Head], given: int) -> None:
        """Others are asked for what `name` has: it is asked when one of them was, or takes too long."""
        self._left[name] = heads
        if self._given != given:
            self._given_back()
        elif self._again is None or self._again.when() < asyncio.get_running_loop().time():
            self._again = asyncio.get_running_loop().call_later(LEASE_MS / 1000, self._given_back)

    def _note(self, name: str, exchange: Exchange, error: str) -> None:
        now_ms, before = monotonic_ms(), self._states[name]
        del self._running[name]
        if exchange.theirs is not None:
            self.meters[name].saw(exchange.theirs, now_ms)
        state = before.answered(now_ms) if exchange.answered else before
        if error:
            state = state.failed(now_ms, error, self._rng, silent=not exchange.answered)
        elif exchange.answered:
            state = state.succeeded(now_ms)
        self._states[name] = state
        if error and not before.failures:
            logger.warning("peer %s: %s (%s; tried again until it works)", name, error, _last_answer(before, now_ms))
        elif error:
            logger.debug("peer %s: %s (next try in %d ms)", name, error, state.pause_ms(now_ms))
        elif before.since_ms is not None and exchange.answered:
            logger.info("peer %s: in order again after %d failures in %d s", name, before.failures, (now_ms - before.since_ms) // 1000)
        for author in sorted(exchange.forked - self._forked):
            logger.warning(
                "author %s has signed two histories, and both are kept here: what most members had seen before counts (R4.5); "
                "its instance needs a new incarnation in the charter",
                Authority(self._charter).name(author),
            )
        self._forked |= exchange.forked


async def _answer_notices(door: NoticeDoor, _: web.Request, caller: Instance, body: bytes) -> web.StreamResponse:
    return web.Response(body=encode(await door.answer(decode(body), caller.name)))


def _last_answer(state: PeerState, now_ms: int) -> str:
    if state.last_contact_ms is None:
        return "no answer since this node started"
    return f"its last answer came {(now_ms - state.last_contact_ms) // 1000} s ago"
