"""One instance's notices, each step a transaction: what peers ask and bring, its own signed heads, and its votes for floors.

What is signed is committed before anybody can see it: a vote that was seen and then forgotten could be given twice. The dear part of a
vote, the digest of what is live, is computed without the write lock, and what it was computed for is checked again under it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import Callable, NamedTuple, Optional, Protocol

from sqlalchemy import Engine

from nsync.authority.charter import AuthorId, Instance, Verify
from nsync.authority.effective import Authority
from nsync.errors import RejectedSegment
from nsync.failpoints import failpoint
from nsync.log import lease, notices
from nsync.log.floor import Floor
from nsync.log.lease import Lack, Watch
from nsync.log.notices import FLOOR, Notice, Stand, Told, Votes
from nsync.log.segment import Sign
from nsync.log.stored import Head, refusals
from nsync.store import kept
from nsync.store.database import unless_changed
from nsync.store.log import SqlLog
from nsync.store.notices import NOTHING, SqlNotices, Taken

ALARMS = "alarms"
"""What the node has put down of them: `nsync_kept`."""
LEASE_MS = 900_000
FLOOR_INTERVAL_MS = 86_400_000
LOOK_SHARE = 20
"""Of the time it takes to see whether a proposal is right: it is looked at again after so many times that."""


class Opened(NamedTuple):
    """A transaction that writes."""

    log: SqlLog
    shows: bool
    """Whether readings may change here: not in a Rucio whose schema is unknown."""
    show: Callable[[str], object]
    """Write the rows of what changed (`SqlState.changes`); the text says by what."""


class Ground(Protocol):
    """The database that an instance works on."""

    @property
    def engine(self) -> Engine: ...

    @property
    def authority(self) -> Authority: ...

    @property
    def me(self) -> Instance: ...

    def opened(self, now_ms: int) -> AbstractContextManager[Opened]:
        """A transaction that writes; leaving with an error rolls it back."""


class Tended(NamedTuple):
    """What an instance did about its own notices."""

    signed: bool
    """Whether it said how far its log has come."""
    voted: Optional[Floor]
    said: tuple[str, ...]

    @property
    def fresh(self) -> bool:
        """Whether there is something to tell."""
        return self.signed or self.voted is not None


class Alarms(NamedTuple):
    """What is not as it should be."""

    overdue: dict[str, int]
    """By instance: how old the last that was heard of it is, in ms."""
    withheld: dict[tuple[str, str], Lack]
    """By peer and the instance whose log it does not come after."""

    def texts(self) -> tuple[str, ...]:
        """In words, the same as long as they last."""
        silent = (
            f"{name}: it has not said for longer than the lease how far its log has come; it is down, or cut off from here, or somebody "
            "holds its word back"
            for name in sorted(self.overdue)
        )
        held = (
            f"peer {peer}: it has the log of {name} up to {lack.has}, though {name} was at {lack.should} more than a lease ago; it "
            "withholds what follows, or cannot take it"
            for (peer, name), lack in sorted(self.withheld.items())
        )
        return (*silent, *held)


class Notary:
    """Make one per process. Every method is synchronous: call them off the event loop."""

    def __init__(
        self,
        ground: Ground,
        sign: Sign,
        verify: Verify,
        now_ms: Callable[[], int],
        tell: Callable[[Taken, str], None],
        lease_ms: int = LEASE_MS,
        floor_interval_ms: int = FLOOR_INTERVAL_MS,
        timer_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tell`: is told what came of a peer's notices, and whose they were; on the thread that took them. `timer_s` measures work."""
        self._ground, self._sign, self._verify, self._now_ms, self._tell = ground, sign, verify, now_ms, tell
        self._lease_ms, self._interval_ms = lease_ms, floor_interval_ms
        self._watch = Watch(lease_ms)
        self._lacks: dict[str, dict[AuthorId, Lack]] = {}
        self._timer_s = timer_s
        self._look_again_s = 0.0

    # ---- what peers ask and bring (transport.notices.NoticeLog)

    def stand(self) -> Stand:
        """What there is to tell."""
        with self._ground.engine.connect() as connection:
            return SqlNotices(SqlLog(connection, self._ground.authority)).stand()

    def lacked(self, theirs: Stand, bytes_max: int) -> list[Notice]:
        """What somebody with `theirs` lacks, up to `bytes_max`."""
        with self._ground.engine.connect() as connection:
            return SqlNotices(SqlLog(connection, self._ground.authority)).lacked(theirs, bytes_max)

    def take(self, sent: Sequence[Notice], sender: str) -> int:
        """Verify what `sender` passed on and keep what is new; it is durable when this returns. How much of it is urgent (Taken)."""
        told: list[Told] = []
        rejected = []
        decided = self._decided() if any(notice.kind == FLOOR for notice in sent) else 0
        for notice in sent:
            if not notices.is_in_turn(notice, decided):
                continue
            try:
                told.append(notices.check(notice, self._ground.authority.charter, self._verify))
                decided += notice.kind == FLOOR
            except RejectedSegment as error:
                rejected.append(str(error))
        refused = refusals(rejected, "a notice", sender)
        taken = unless_changed(lambda: self._keep(told)) if told else NOTHING
        if told or refused:
            self._tell(taken._replace(said=(*refused, *taken.said)), sender)
        return taken.urgent

    def _keep(self, told: Sequence[Told]) -> Taken:
        now_ms = self._now_ms()
        with self._ground.opened(now_ms) as (log, shows, show):
            worth = [one for one in told if shows or not isinstance(one, Votes)]
            taken = SqlNotices(log).take(worth, self._ground.me.author, now_ms)
            if taken.changed:
                show("a floor")
            failpoint("notices-before-commit")
        failpoint("notices-after-commit")
        return taken

    def _decided(self) -> int:
        """How many floors are decided here."""
        with self._ground.engine.connect() as connection:
            return len(SqlLog(connection, self._ground.authority).lines.decided_floors)

    # ---- one's own

    def tend(self) -> Tended:
        """Sign one's own head when that is due, and vote when there is something to vote for."""
        now_ms, signed = self._now_ms(), self.renew()
        chosen = self._choose(now_ms)
        taken = None if chosen is None else unless_changed(lambda: self._vote(chosen, now_ms))
        if chosen is None or taken is None:
            return Tended(signed, None, ())
        return Tended(signed, chosen, (f"voted for floor {chosen.number}", *taken.said))

    def _vote(self, chosen: Floor, now_ms: int) -> Optional[Taken]:
        """Vote for `chosen`, unless it is not, or no more, what is to be voted for."""
        with self._ground.opened(now_ms) as (log, shows, show):
            found = SqlNotices(log)
            if not shows or found.choose(self._ground.me, self._interval_ms, now_ms, chosen) != chosen:
                return None
            taken = found.vote(self._ground.me, chosen, self._sign)
            if taken.changed:
                show(f"floor {chosen.number}")
        failpoint("notices-voted")
        return taken

    def renew(self) -> bool:
        """Sign one's own head if that is due; tells whether it was."""
        now_ms = self._now_ms()
        with self._ground.engine.connect() as connection:
            found = SqlNotices(SqlLog(connection, self._ground.authority))
            if not found.is_head_due(self._ground.me.author, self._lease_ms, now_ms):
                return False
        with self._ground.opened(now_ms) as (log, _, _):
            return SqlNotices(log).sign_head(self._ground.me.author, self._sign, self._lease_ms, now_ms)

    def _choose(self, now_ms: int) -> Optional[Floor]:
        """What to vote for, the digest of what is live computed here. What takes long is not tried again at once."""
        began_s = self._timer_s()
        if began_s < self._look_again_s:
            return None
        with self._ground.engine.connect() as connection:
            chosen = SqlNotices(SqlLog(connection, self._ground.authority)).choose(self._ground.me, self._interval_ms, now_ms)
        now_s = self._timer_s()
        self._look_again_s = now_s + LOOK_SHARE * (now_s - began_s) if chosen is None else 0.0
        return chosen

    # ---- alarms

    def alarms(self) -> Alarms:
        """Who is silent, and who withholds what (log.lease)."""
        now_ms = self._now_ms()
        with self._ground.engine.connect() as connection:
            heads = SqlNotices(SqlLog(connection, self._ground.authority)).heads()
        self._watch.learn(heads, now_ms)
        others = (head for head in heads if head.author != self._ground.me.author)
        overdue = lease.overdue(others, self._ground.authority.charter, self._lease_ms, now_ms)
        name = self._ground.authority.name
        withheld = {(peer, name(author)): lack for peer, lacks in list(self._lacks.items()) for author, lack in lacks.items()}
        return Alarms(overdue, withheld)

    def asked(self, peer: str, theirs: Collection[Head]) -> None:
        """`peer` has told its heads."""
        self._lacks[peer] = self._watch.asked(peer, theirs)

    def keep_alarms(self, texts: Sequence[str]) -> None:
        """Put down what `nsync status` is to show of them."""
        with self._ground.opened(self._now_ms()) as (log, _, _):
            kept.write(log.connection, ALARMS, "\n".join(texts).encode())
