"""The bridge: one Rucio database, its nsync tables, and the transactions that join them (DESIGN 7).

Every effect is one transaction on the Rucio database: what was captured is published and applied, or a changeset is applied and
its rows are written, with log, slots, catalogue and head. Nothing is kept in memory between transactions, so a process
may die anywhere.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Callable, NamedTuple, Optional

from sqlalchemy import Connection, exists, func, select
from sqlalchemy.orm import Session

from nsync.authority.charter import Charter
from nsync.authority.effective import Authority
from nsync.errors import ConfigError
from nsync.failpoints import failpoint
from nsync.rucio_bridge import audit, charters, ground, mending, parked, poll, scopes, triggers
from nsync.rucio_bridge.capture import outbox_is_empty
from nsync.rucio_bridge.drift import Drift
from nsync.rucio_bridge.effects import Effects
from nsync.rucio_bridge.mending import Mended, Mending
from nsync.store import schema
from nsync.store.database import reading, unless_changed
from nsync.store.log import Applied, SqlLog
from nsync.store.state import SqlState

LOG = logging.getLogger(__name__)

STUCK_MS = 2000
"""How often to look again at segments that wait for their deps or for the clock, when nothing new has come."""


class Worked(NamedTuple):
    """What was done: ops published, changesets that took effect, how long the write lock was held, batches that are parked no more,
    and whether a part of an audit was looked at, or of a poll that goes on."""

    published: int
    applied: tuple[Applied, ...]
    held_ms: float
    released: int = 0
    audited: bool = False

    @property
    def idle(self) -> bool:
        """Whether there was nothing to do."""
        return self.published == 0 and not self.applied and not self.audited


class Accepted(NamedTuple):
    """How many facts of a batch are written once it is accepted partially, and which wait on."""

    written: int
    rest: tuple[parked.ParkedFact, ...]


Look = Callable[[Session, list[Applied], bool], None]


class _Undone(Exception):
    """Rolls back what was a rehearsal."""


class Bridge(Effects):
    """One instance's database. Every method is synchronous; call them off the event loop."""

    _retried = ""
    """The parked batch that was tried last."""
    _stuck = (0, 0)
    """The newest waiting segment when nothing could be applied, and until when (ms) not to look again for its sake."""

    def share(self, shared_scopes: Sequence[str]) -> None:
        """Share exactly `shared_scopes` and public open data. Tables and triggers come from 'nsync bridge install'."""
        with self._writing() as session:
            triggers.share(session.connection(), set(shared_scopes))

    def map_scopes(self, scope_map: Mapping[str, str]) -> None:
        """Show foreign scopes under the local names of `scope_map`. Raises ConfigError where rows stand in the way."""
        with self._writing() as session:
            ground.map_scopes(session, scope_map, self.authority.charter)

    def adopt(self, text: str, now_ms: int) -> None:
        """Go over to the charter of the file `text` and keep it (R5.1). Raises ConfigError unless it goes on from the one in force."""
        charter = unless_changed(lambda: self._adopt(text, now_ms))
        self._charter = (text.encode(), charter.hash)
        me = charter.by_name(self.me.name)
        assert me is not None, "an instance stays listed"
        self.authority, self.me = Authority(charter), me

    def _adopt(self, text: str, now_ms: int) -> Charter:
        with self._beside_rucio(adopts=True) as session:
            connection = session.connection()
            held, charter = charters.in_force(connection, self._verify), charters.following(connection, text, self._verify)
            if held is not None and held.hash != charter.hash:
                reason = charters.put_off(connection, text, self._verify)
                if reason is not None:
                    raise ConfigError(reason)
                log = SqlLog(connection, Authority(held))
                decided = len(log.lines.decided_floors)
                log.adopt(charter)
                self._materialise(session, log, f"charter version {charter.version}", now_ms)
                LOG.info("version %d of the charter is in force", charter.version)
                if len(log.lines.decided_floors) < decided:
                    LOG.warning("floors after %d are voted for anew, as the charter says", len(log.lines.decided_floors))
            charters.keep(connection, text)
        return charter

    def rebuild(self, now_ms: int) -> int:
        """Derive the catalogue anew, and write the rows of what is different then; returns how many facts that are.

        For a catalogue that was derived by the rules of another nsync. It takes the write lock for as long as it lasts.
        """
        return unless_changed(lambda: self._rebuild(now_ms))

    def _rebuild(self, now_ms: int) -> int:
        with self._in_known_rucio("nothing is rebuilt") as session:
            while self._poll is not None and self._poll.sweep(session.connection(), now_ms):
                self._publish(session, now_ms, catalogue=False)
            self._publish(session, now_ms, catalogue=False)  # what was changed here is said before rows are written (R7.1)
            log = SqlLog(session.connection(), self.authority)
            log.state.shown.set_aside()
            log.rebuild()
            failpoint("rebuild-derived")
            changes = log.state.changes
            changes.add_moved()
            log.state.shown.forget_aside()
            moved = len(changes)
            self._materialise(session, log, "rebuilt catalogue", now_ms)
        return moved

    def mend_drift(self, scope: Optional[str], now_ms: int) -> Mended:
        """Write the catalogue's entries back into the rows of other instances' data that drifted, in `scope` or everywhere (R7.5).

        It is looked for without the write lock, and signs nothing."""
        with reading(self.engine) as connection, scopes.in_force(connection), self._sessions(bind=connection) as session:
            finder = Drift(session, SqlLog(connection, self.authority).state, self._rows(session), self.me)
            found = mending.look(finder, scope)
        return unless_changed(lambda: self._mend_drift(found, now_ms))

    def _mend_drift(self, found: mending.Found, now_ms: int) -> Mended:
        with self._in_known_rucio("nothing is repaired") as session:

            def state() -> SqlState:
                return SqlLog(session.connection(), self.authority).state

            with triggers.unheard(session.connection()):
                return Mending(session, state, lambda: self._rows(session), self.me).run(found, now_ms)

    # ---- the two effects

    def work(self, now_ms: int, publish_only: bool = False) -> Worked:
        """Publish what was captured, then apply what waits and write its rows.

        It holds the write lock for HOLD_MS_MAX at most, unless what it publishes, or one changeset, takes longer. `publish_only`
        leaves what others sent alone: for a caller whose last attempt failed, so that a changeset which cannot be applied stops
        nobody here.
        """
        newest = self._newest_waiting()
        with self._sessions() as session:
            self._require_charter(session.connection())
            stuck = newest == 0 or (newest == self._stuck[0] and now_ms < self._stuck[1])
            if stuck and outbox_is_empty(session) and not self._is_due(session.connection(), now_ms):
                return Worked(0, (), 0.0)
        return unless_changed(lambda: self._work(now_ms, publish_only, newest))

    def _work(self, now_ms: int, publish_only: bool, newest: int) -> Worked:
        with self._beside_rucio() as session:
            if not self._is_known_rucio(session):
                return Worked(0, (), 0.0)
            began = time.monotonic()
            failpoint("work-locked")
            sweeps = self._poll is not None and self._poll.is_due(now_ms) and self._may_sign(SqlLog(session.connection(), self.authority))
            goes_on = self._poll is not None and sweeps and self._poll.sweep(session.connection(), now_ms)
            audited, unseen = self._audit(session, now_ms)
            mine = self._publish(session, now_ms)
            alone = publish_only or unseen
            theirs = [] if alone else self._apply(session, now_ms, began, mine)
            mine += self._acknowledge(session, now_ms)
            failpoint("work-before-commit")
        failpoint("work-after-commit")
        if self._poll is not None and sweeps:
            self._poll.swept(now_ms, goes_on)
        if not theirs and not alone:
            self._stuck = (newest, now_ms + STUCK_MS)
        held_ms = (time.monotonic() - began) * 1000
        return Worked(_count(mine), (*mine, *theirs), held_ms, audited=goes_on or audited)

    def _is_due(self, connection: Connection, now_ms: int) -> bool:
        """Whether rows are to be looked at that nobody told of."""
        if self._poll is not None and self._poll.is_due(now_ms):
            return True
        return audit.waits(connection, now_ms) is not None or audit.is_old(connection, now_ms, self._audit_interval_ms)

    def rehearse(self, shared_scopes: Sequence[str], scope_map: Mapping[str, str], now_ms: int, ms_max: float, look: Look) -> None:
        """Do what there is to do for about `ms_max`, let `look` see it and whether it is all, and undo it. Raises ConfigError."""
        unless_changed(lambda: self._rehearse(shared_scopes, scope_map, now_ms, ms_max, look))

    def _rehearse(self, shared_scopes: Sequence[str], scope_map: Mapping[str, str], now_ms: int, ms_max: float, look: Look) -> None:
        with suppress(_Undone), self._in_known_rucio("nothing can be tried") as session:
            connection = session.connection()
            triggers.share(connection, set(shared_scopes))
            ground.map_scopes(session, scope_map, self.authority.charter)
            done: list[Applied] = []
            began, is_all, sweeps = time.monotonic(), False, True
            with scopes.in_force(connection):
                while (time.monotonic() - began) * 1000 < ms_max:
                    before = len(done)
                    sweeps = sweeps and self._poll is not None and self._poll.sweep(connection, now_ms)
                    audited, _ = self._audit(session, now_ms)
                    done += [*self._publish(session, now_ms), *self._acknowledge(session, now_ms)]
                    applied = self._apply_one(session, now_ms, done)
                    done += [applied] if applied is not None else []
                    if not sweeps and not audited and len(done) == before:
                        is_all = audit.waits(connection, now_ms) is None
                        break
                look(session, done, is_all)
            raise _Undone

    def count_parked(self) -> int:
        """How many facts are."""
        with self._sessions() as session:
            return session.execute(select(func.count()).select_from(schema.parked)).scalar_one()

    def retry_parked(self, now_ms: int, ms_max: float = math.inf) -> Worked:
        """Try again what is parked, batch by batch, each after publishing what was captured.

        After `ms_max` it stops, and goes on from there the next time.
        """
        with self._sessions() as session:
            names = parked.batches(session)
        began, released = time.monotonic(), 0
        mine: list[Applied] = []
        for name in [*(n for n in names if n > self._retried), *(n for n in names if n <= self._retried)]:
            if (time.monotonic() - began) * 1000 > ms_max:
                break
            self._retried = name
            published, is_released = unless_changed(lambda: self._retry(name, now_ms))  # noqa: B023
            mine += published
            released += is_released
        return Worked(_count(mine), tuple(mine), (time.monotonic() - began) * 1000, released)

    def _retry(self, name: str, now_ms: int) -> tuple[Sequence[Applied], bool]:
        """What was published, and whether the batch is parked no more."""
        with self._beside_rucio() as session:
            if not self._is_known_rucio(session):
                return (), False
            log = SqlLog(session.connection(), self.authority)
            if self._poll is not None and self._may_sign(log) and parked.list_batch(session, name, log.state.changes):
                poll.tell(session.connection(), poll.names(session.connection(), log.state.changes, self.me.name))
            published = self._publish(session, now_ms)
            log = SqlLog(session.connection(), self.authority)
            if not parked.list_batch(session, name, log.state.changes):
                return published, True
            released = self._materialise(session, log, name, now_ms)
            failpoint("retry-before-commit")
        return published, released

    def accept(self, batch: str) -> None:
        """Let what waits in `batch` wait by itself, so that the next retry writes the rest (R7.6). Raises ConfigError when there is
        nothing to accept."""
        with self._writing() as session:
            parked.accept(session, batch)

    def would_accept(self, batch: str, now_ms: int) -> Accepted:
        """What accepting `batch` will do: it is done, and undone. Raises ConfigError."""
        return unless_changed(lambda: self._would_accept(batch, now_ms))

    def _would_accept(self, batch: str, now_ms: int) -> Accepted:
        with self._in_known_rucio("nothing can be written") as session:
            waits = parked.accept(session, batch)
            log, name = SqlLog(session.connection(), self.authority), f"{batch}{parked.REST}"
            before = parked.list_batch(session, name, log.state.changes)
            self._materialise(session, log, name, now_ms)
            rest = tuple(parked.listing(session, name))
            session.rollback()
        return Accepted(min(waits, before - len(rest)), rest)

    def _newest_waiting(self) -> int:
        """The arrival of the newest segment if there are any that are not applied, or 0."""
        with self._sessions() as session:
            waits = exists().where(schema.branch.c.applied < schema.branch.c.last, schema.branch.c.refused.is_(None))
            query = select(func.max(schema.segment.c.arrival)).where(waits)
            return session.execute(query).scalar() or 0


def _count(published: Sequence[Applied]) -> int:
    return sum(one.last - one.first + 1 for one in published)
