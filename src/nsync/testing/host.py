"""One simulated instance: a database, which lasts, and a process on it, which comes and goes.

The process is what `node` puts together: the real gossip, here on the simulated network, and a loop that applies and acknowledges.
Every call on the database passes the failpoints, and at each of them the process may end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Callable, Optional, TypeVar

from nsync.authority.charter import Instance, Place
from nsync.failpoints import watched
from nsync.log.repair import Damage, Found, Mended
from nsync.log.stored import Head, Receipt, StoredSegment
from nsync.store.log import Applied
from nsync.store.repair import Repairs
from nsync.testing import network
from nsync.testing.federation import Federation
from nsync.testing.network import Answer, Client, Crash
from nsync.testing.notary import Notices
from nsync.testing.peer import Image, Peer, Worked
from nsync.testing.stage import Stage
from nsync.transport import session
from nsync.transport.exchange import Peer as RemotePeer
from nsync.transport.gossip import FEW_PEERS, Gossip
from nsync.transport.roster import Roster

BEGINNING_MS = 1_700_000_000_000
"""The wall time at which every story begins: in November 2023."""

INTERVAL_S = 5.0
WORK_S = 5.0
"""How often to look for work when there is no news: what waits for the clock."""
PAUSE_S = 0.05
CHANGESETS = (1, 1, 2, 5)
"""How many changesets of others one transaction applies."""
ARMED_S_MAX = 10.0
"""A process that has not come to the step at which it was to end, ends after this time where it then stands."""

PLACES = (
    *("receive-verified", "log-segment-stored", "receive-before-commit", "receive-after-commit"),
    *("intake-headers-written", "intake-ops-written", "publish-signed"),
    *("work-locked", "log-slots-joined", "log-head-advanced", "log-catalogue-shown", "work-state-moved"),
    *("work-before-commit", "work-after-commit"),
    *("notices-before-commit", "notices-after-commit", "notices-head-signed", "notices-vote-stored", "notices-voted"),
    "compacted-before-commit",
)
"""The failpoints that a process passes: between any two steps of the store, and around its transactions."""

T = TypeVar("T")


class Host:
    """An honest instance."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.name = name
        self.members = stage.federation
        """The charter of its configuration."""
        self.peer = Peer(self.members.authority, self.me.author, stage.ledger.signer(name))
        self.up = False
        self.gone = False
        self.idle = False
        """Whether there was nothing to do when it was last looked for."""
        self.life = 0
        self.lost_before = 0
        self.skew_ms = 0
        self.restored = False
        """Whether its database was ever replaced by an older one."""
        self.hasty = False
        """Whether its operator lets it sign after a restore before it has heard from its peers."""
        self._stage = stage
        self._repairs = Repairs(self.peer, self.now_ms)
        self._rng = stage.rng("host", name)
        self._armed = 0
        self._aim: Optional[str] = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def me(self) -> Instance:
        return self.members.instance(self.name)

    def now_ms(self) -> int:
        """What its clock shows."""
        return BEGINNING_MS + int(asyncio.get_running_loop().time() * 1000) + self.skew_ms

    # ---- its process

    def boot(self) -> None:
        """Start the process on what was committed."""
        self.life += 1
        self.up = True
        if self.life > 1:
            self._stage.ledger.restarted(self.name, self.peer)
        self.peer.go_by(self.members.authority, self.me.author)
        self._news = asyncio.Event()
        self._told = session.Told()
        self._roster = Roster(self.members.charter)
        self._notices = Notices(self, self._stage, self.members.keys[self.name].sign)
        self._gossip = Gossip(
            self.members.charter,
            self.me,
            self.members.keys[self.name],
            self,
            None,
            self._stage.rng("gossip", self.name, self.life),
            self._news.set,
            interval_s=INTERVAL_S,
            reach=self._reach,
            few_peers=self._stage.rng("flood").choice((FEW_PEERS, 0)),
            notices=self._notices,
            repairs=self,
        )
        self._tasks = [asyncio.ensure_future(self._gossip.run()), asyncio.ensure_future(self._keep_working())]
        for task in self._tasks:
            task.add_done_callback(self._stage.ended)

    def kill(self, place: str) -> None:
        """End the process: what it had not committed is lost."""
        self._stage.trace.say(f"{self.name} ends at {place}")
        if self._armed:
            self._stage.dice.counts["crash"] += 1
            self._stage.places[place] += 1
        self.up = self.idle = False
        self._armed = 0
        self.peer.kill()
        for task in self._tasks:
            task.cancel()

    def arm(self, steps: int, place: Optional[str] = None) -> None:
        """Let the process end when it has passed so many places, or `place` so often; or after a while, where it then stands."""
        self._armed, self._aim = steps, place
        asyncio.get_running_loop().call_later(ARMED_S_MAX, self._overdue, self.life)

    @property
    def is_armed(self) -> bool:
        return self._armed > 0

    def again(self, life: int) -> None:
        """Start the process again, unless that has happened, or it is gone for good."""
        if not self.up and not self.gone and self.life == life:
            self.checked(self.boot)

    def amend(self, members: Federation) -> None:
        """Its operator gives it another charter, and starts it again."""
        self.members = members
        if self.up:
            self.kill("a new charter")
            self.again(self.life)

    def depart(self) -> None:
        """Be gone for good."""
        self.gone = True
        self.kill("its departure")

    def heal(self) -> None:
        """Nothing is wrong with it any more."""
        self._armed = self.skew_ms = 0
        self.again(self.life)

    def restore(self, image: Image, others: Sequence[Host]) -> None:
        """End the process, and put an older database in the place of this one."""
        self.kill("a restore")
        self.restored = True
        self.peer.restore(image)
        self.lost_before = self.life + 1
        self._stage.ledger.restored(self.name, self.peer, [other.peer for other in others], not self.hasty)

    def publish(self, ops: Sequence[bytes]) -> Optional[Applied]:
        """Its users say something. None where they cannot: it is down, ends in the middle, or may not sign."""
        if not self.up:
            return None
        try:
            published = next((applied for applied in self._work(ops, 0) if applied.author == self.me.author), None)
        except Crash:
            return None
        self._gossip.wake()
        return published

    def settle(self) -> bool:
        """Do all the work that there is now; tells whether there was any."""
        worked = False
        while self._work((), 100):
            worked = True
            self._gossip.wake()
        return worked

    def collect(self) -> None:
        """Let go what is superseded below the newest floor; the ledger keeps it."""
        if not self.peer.is_compact():
            self.checked(lambda: self._stage.ledger.keep(self.peer.segments()))
            self.step(self.peer.compact)
            self._stage.trace.say(f"{self.name} collects below floor {len(self.peer.floors())}")

    def close(self) -> None:
        """The story is over."""
        for task in self._tasks:
            task.cancel()
        self.up = False
        self.peer.close()

    def wake(self) -> None:
        """Look for work."""
        self._news.set()

    def client(self, peer: str) -> Client:
        return Client(self._stage.network, self, peer)

    @asynccontextmanager
    async def _reach(self) -> AsyncIterator[Callable[[Instance], RemotePeer]]:
        yield lambda peer: self.client(peer.name)

    async def _keep_working(self) -> None:
        while True:
            self._news.clear()
            worked = self._work((), self._rng.choice(CHANGESETS))
            if any(applied.author == self.me.author for applied in worked):
                self._gossip.wake()
            self.idle = not worked
            if self._may_sign() and self._notices.tend().fresh:
                self._gossip.wake()
            self.collect()
            if worked:
                self._gossip.applied()
                await asyncio.sleep(PAUSE_S)
                continue
            timer = asyncio.get_running_loop().call_later(WORK_S, self._news.set)
            await self._news.wait()
            timer.cancel()

    def _work(self, ops: Sequence[bytes], changesets_max: int) -> Worked:
        now_ms, ledger, may_sign = self.now_ms(), self._stage.ledger, self._may_sign()
        worked = self.step(lambda: self.peer.work(now_ms, ops if may_sign else (), changesets_max, may_sign))
        for applied in worked:
            verb = "publishes" if applied.author == self.me.author else "applies"
            self._stage.trace.say(f"{self.name} {verb} {applied.author.hex()[:8]} {applied.first}-{applied.last}, void {applied.void}")
        self.checked(lambda: ledger.worked(self.name, self.peer, worked, now_ms))
        return worked

    def _may_sign(self) -> bool:
        """Whether its operator lets it sign. Once it knows that others have more of its log, it is for the store to refuse."""
        return self.me.author not in self._stage.ledger.silent or self.peer.read_only() is not None

    # ---- its log, as gossip and peers see it (transport's SegmentLog)

    def heads(self) -> list[Head]:
        return self.step(self.peer.heads)

    def unknown(self, theirs: Collection[Head]) -> list[Head]:
        return self.step(lambda: self.peer.unknown(theirs))

    def locator(self, author: bytes) -> list[Place]:
        return self.step(lambda: self.peer.locator(author))

    def segments_after(self, have: Mapping[bytes, Sequence[Place]], bytes_max: int) -> list[StoredSegment]:
        return self.step(lambda: self.peer.segments_after(have, min(bytes_max, network.BATCH_BYTES_MAX)))

    def receive(self, frames: Sequence[bytes], sender: str) -> Receipt:
        receipt = self.step(lambda: self.peer.receive(frames, sender))
        self.idle = self.idle and not receipt.stored
        if receipt.stored or receipt.rejected:
            self._stage.trace.say(f"{self.name} stores {receipt.stored} of {len(frames)} segments, refuses {len(receipt.rejected)}")
        self.checked(lambda: self._stage.ledger.received(self.name, self.peer, frames, receipt))
        return receipt

    # ---- what is live below a floor, as gossip and peers see it (transport's RepairLog)

    def damage(self) -> Optional[Damage]:
        return self.step(self._repairs.damage)

    def digests(self, floor: int) -> Optional[list[bytes]]:
        return self.step(lambda: self._repairs.digests(floor))

    def bitmaps(self, floor: int, blocks: Sequence[int]) -> Optional[list[bytes]]:
        return self.step(lambda: self._repairs.bitmaps(floor, blocks))

    def ops(self, floor: int, numbers: Sequence[int], bytes_max: int) -> Optional[list[bytes]]:
        return self.step(lambda: self._repairs.ops(floor, numbers, bytes_max))

    def mend(self, floor: int, numbers: Sequence[int], ops: Sequence[bytes], sender: str) -> Mended:
        mended = self.step(lambda: self._repairs.mend(floor, numbers, ops, sender))
        self._stage.trace.say(f"{self.name} puts {mended.taken} ops back below floor {floor}, refuses {len(mended.refused)}")
        return mended

    def repaired(self, floor: int, sender: str, found: Found) -> None:
        self.step(lambda: self._repairs.repaired(floor, sender, found))

    # ---- its door

    @property
    def roster(self) -> Roster:
        return self._roster

    def answer(self, caller: str, verb: str, body: bytes) -> Answer:
        """What the process answers to a request of the peer `caller` that has arrived."""
        return network.answer(network.Desk(self, self._gossip, self._told, self._roster, self._notices, self), caller, verb, body)

    # ---- steps

    def step(self, step: Callable[[], T]) -> T:
        """Call the database. Raises Crash where the process ends in the middle."""
        if not self.up:
            raise Crash(self.name)
        with watched(self._passed):
            return self.checked(step)

    def checked(self, step: Callable[[], T]) -> T:
        """Nothing fails here, or the story has: gossip would only log it and go on."""
        try:
            return step()
        except Exception as error:
            self._stage.fail(error)
            raise

    def _passed(self, place: str) -> None:
        if self._armed and self._aim in (None, place):
            if self._armed == 1:
                self._crash(place)
                raise Crash(self.name)
            self._armed -= 1

    def _overdue(self, life: int) -> None:
        if self._armed and self.life == life:
            self._crash("idle")

    def _crash(self, place: str) -> None:
        self.kill(place)
        down_s = self._rng.uniform(0.5, 15)
        asyncio.get_running_loop().call_later(down_s, self.again, self.life)


def is_quiet(hosts: Sequence[Host]) -> bool:
    """Whether all hold the same logs, nobody lacks below a floor what another has, and nobody finds anything to do."""
    first, floors = hosts[0].peer.heads(), hosts[0].peer.floors()
    agreed = all(host.up and host.idle and host.peer.heads() == first and host.peer.floors() == floors for host in hosts)
    return agreed and (all(host.peer.is_whole() for host in hosts) or len({host.peer.live() for host in hosts}) == 1)
