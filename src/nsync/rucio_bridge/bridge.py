"""The bridge: one Rucio database, its nsync tables, and the transactions that join them (DESIGN 7).

Every effect is one transaction on the Rucio database: what was captured is published and applied, or a changeset is applied and
its rows are written, with log, slots, catalogue and head. Nothing is kept in memory between transactions, so a process
may die anywhere.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Callable, NamedTuple, Optional

from sqlalchemy import Connection, Engine, exists, func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from nsync.authority.charter import Charter, Instance, Verify
from nsync.authority.effective import Authority
from nsync.errors import ConfigError
from nsync.failpoints import failpoint
from nsync.log.segment import Sign, changesets
from nsync.namespace.ops import ACKNOWLEDGE
from nsync.rucio_bridge import audit, charters, ground, mending, parked, poll, scopes, triggers
from nsync.rucio_bridge.capture import Capture, outbox_is_empty
from nsync.rucio_bridge.drift import Drift
from nsync.rucio_bridge.guard import unknown_schema
from nsync.rucio_bridge.inbox import Inbox
from nsync.rucio_bridge.materialise import Materialise
from nsync.rucio_bridge.mending import Mended, Mending
from nsync.rucio_bridge.rows import Rows
from nsync.store import schema
from nsync.store.database import begin_writing, one_moment, reading, unless_changed
from nsync.store.log import Applied, SqlLog
from nsync.store.notary import Opened
from nsync.store.state import SqlState

LOG = logging.getLogger(__name__)

HOLD_MS_MAX = 100
"""How long a run of changesets may hold SQLite's one write lock; a single larger changeset may hold it longer."""

PASSED_OVER_MS = 60_000
"""How long an author is left alone whose changeset failed for no reason that this instance knows."""

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


class Bridge(Inbox):
    """One instance's database. Every method is synchronous and one transaction; call them off the event loop."""

    def __init__(
        self,
        engine: Engine,
        authority: Authority,
        me: Instance,
        sign: Sign,
        verify: Verify,
        rse_expression: str,
        *,
        is_new: bool = False,
        bulk: int = audit.ROWS_MAX,
        polling: Optional[poll.Polling] = None,
        audit_interval_s: float = 0,
    ) -> None:
        """`is_new`: whether foreign collections are new to Rucio's transmogrifier, so that local subscriptions match them. `bulk`: how
        many rows a full audit looks at in one transaction. `polling`: in place of triggers. `audit_interval_s`: between two full
        audits that nobody asks for; 0 for none."""
        super().__init__(engine, authority, me, verify)
        self._poll = None if polling is None else poll.Poll(polling)
        self._audit_interval_ms = int(audit_interval_s * 1000)
        self._sign = sign
        self._rse_expression = rse_expression
        self._is_new = is_new
        self._bulk = bulk
        self._warned: Optional[str] = None
        self.held_back: Optional[str] = None
        """Why nothing is signed here for now; the node says so (R3.7)."""
        self._read_only: Optional[str] = None
        """Why nothing is signed here, as it was told last."""
        self._retried = ""
        """The parked batch that was tried last."""
        self._passed_over: dict[bytes, int] = {}
        """Authors whose next changeset failed here, and until when (ms) they are left alone."""
        self._stuck = (0, 0)
        """The newest waiting segment when nothing could be applied, and until when (ms) not to look again for its sake."""

    @contextmanager
    def _beside_rucio(self, adopts: bool = False) -> Iterator[Session]:
        """The same, for what reads Rucio's rows and writes them: no transaction of Rucio is seen in part, and none is overwritten.

        `adopts`: it goes over to another charter."""
        with self.engine.connect() as connection, one_moment(connection), self._sessions(bind=connection) as session, session.begin():
            begin_writing(session.connection())
            if not adopts:
                self._require_charter(session.connection())
            with scopes.in_force(session.connection()):
                yield session

    @contextmanager
    def opened(self, now_ms: int) -> Iterator[Opened]:
        """A transaction of the notary's (store.notary.Ground)."""
        with self._beside_rucio() as session:
            log = SqlLog(session.connection(), self.authority)
            yield Opened(log, self._is_known_rucio(session), lambda by: self._materialise(session, log, by, now_ms))

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
        with self._beside_rucio() as session:
            if not self._is_known_rucio(session):
                raise ConfigError(f"nothing is rebuilt: {self._warned}")
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
        with self._beside_rucio() as session:
            if not self._is_known_rucio(session):
                raise ConfigError(f"nothing is repaired: {self._warned}")

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

    def _audit(self, session: Session, now_ms: int) -> tuple[bool, bool]:
        """Let the next part of an audit be published, if one is to be made and may begin; tells whether that was done, and whether users
        may have changed something unseen, which is said before it is overwritten."""
        connection, charter = session.connection(), self.authority.charter
        audit.ask_if_old(connection, now_ms, self._audit_interval_ms)
        reason = audit.waits(connection, now_ms)
        if reason is None or not self._may_sign(SqlLog(connection, self.authority)):
            return False, False
        done = audit.fill(connection, self.me.name, lambda scope: charter.may_write(self.me, scope), now_ms, self._bulk)
        return done, reason not in (audit.PERIODIC, audit.PUBLISHED)

    def _apply(self, session: Session, now_ms: int, began: float, mine: list[Applied]) -> list[Applied]:
        """Apply changesets until there is none, or the lock was held long enough; one in any case, however long publishing took.

        What is published in between, where there are no triggers, is added to `mine`.
        """
        applied: list[Applied] = []
        while (found := self._apply_one(session, now_ms, mine)) is not None:
            applied.append(found)
            if (time.monotonic() - began) * 1000 >= HOLD_MS_MAX:
                break
        return applied

    def rehearse(self, shared_scopes: Sequence[str], scope_map: Mapping[str, str], now_ms: int, ms_max: float, look: Look) -> None:
        """Do what there is to do for about `ms_max`, let `look` see it and whether it is all, and undo it. Raises ConfigError."""
        unless_changed(lambda: self._rehearse(shared_scopes, scope_map, now_ms, ms_max, look))

    def _rehearse(self, shared_scopes: Sequence[str], scope_map: Mapping[str, str], now_ms: int, ms_max: float, look: Look) -> None:
        with suppress(_Undone), self._beside_rucio() as session:
            if not self._is_known_rucio(session):
                raise ConfigError(f"nothing can be tried: {self._warned}")
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
        with self._beside_rucio() as session:
            if not self._is_known_rucio(session):
                raise ConfigError(f"nothing can be written: {self._warned}")
            waits = parked.accept(session, batch)
            log, name = SqlLog(session.connection(), self.authority), f"{batch}{parked.REST}"
            before = parked.list_batch(session, name, log.state.changes)
            self._materialise(session, log, name, now_ms)
            rest = parked.listing(session, name)
            session.rollback()
        return Accepted(min(waits, before - len(rest)), tuple(rest))

    def _newest_waiting(self) -> int:
        """The arrival of the newest segment if there are any that are not applied, or 0."""
        with self._sessions() as session:
            waits = exists().where(schema.branch.c.applied < schema.branch.c.last, schema.branch.c.refused.is_(None))
            query = select(func.max(schema.segment.c.arrival)).where(waits)
            return session.execute(query).scalar() or 0

    def _publish(self, session: Session, now_ms: int, catalogue: bool = True) -> list[Applied]:
        """Drain the outbox into a changeset of this instance's log, which has seen what was applied before this transaction (R7.1).

        Without `catalogue` what is said is not shown until a rebuild.
        """
        log = SqlLog(session.connection(), self.authority)
        if not self._may_sign(log):
            return []
        capture = Capture(session, log.state, self._rows(session), self.me)
        drained = capture.drain()
        failpoint("publish-drained")
        if drained is None:
            return []
        ops = changesets(drained.ops) if drained.ops else ()
        published = []
        for some in ops:
            applied = log.publish(some, self.me.author, self._sign, now_ms, catalogue)
            failpoint("publish-logged")
            self._materialise(session, log, self._batch(applied), now_ms)
            published.append(applied)
        capture.forget(drained.until)
        if published and self._poll is None and session.connection().dialect.name == "postgresql":
            audit.look_again(session.connection(), capture.opened_unseen)
        return published

    def _may_sign(self, log: SqlLog) -> bool:
        """Whether this instance's log goes on here; not once it was found further, or other, elsewhere (R4.6)."""
        reason = log.read_only(self.me.author) or self.held_back
        if reason is not None and reason != self._read_only:
            LOG.error("nothing more is published here: %s", reason)
        elif reason is None and self._read_only is not None:
            LOG.info("what users do is published again")
        self._read_only = reason
        return reason is None and log.is_applied(self.me.author)

    def _acknowledge(self, session: Session, now_ms: int) -> list[Applied]:
        """Let guests' statements that wait for this home take effect: a segment that has them in its past (R5.6)."""
        log = SqlLog(session.connection(), self.authority)
        if not log.state.owes_acknowledgement(self.me.author) or not self._may_sign(log):
            return []
        acknowledged = log.publish([ACKNOWLEDGE], self.me.author, self._sign, now_ms)
        self._materialise(session, log, self._batch(acknowledged), now_ms)
        return [acknowledged]

    def _apply_one(self, session: Session, now_ms: int, mine: list[Applied]) -> Optional[Applied]:
        log = SqlLog(session.connection(), self.authority)
        try:
            if self._poll is not None:
                mine += self._publish_unheard(session, log, now_ms)
                log = SqlLog(session.connection(), self.authority)
            return self._apply_next(session, log, now_ms)
        except OperationalError:
            raise  # the database failed, not the changeset
        except Exception:
            if log.applying is not None:  # whose changeset fails here is left alone for a while, and stops nobody else's
                self._passed_over[log.applying] = now_ms + PASSED_OVER_MS
            raise

    def _publish_unheard(self, session: Session, log: SqlLog, now_ms: int) -> list[Applied]:
        """Publish what users did to the rows that the next changeset is about, of which no trigger told (R7.1).

        It is applied for that, in vain: nobody else knows what it will change.
        """
        if not self._may_sign(log):
            return []
        connection = session.connection()
        with connection.begin_nested() as rehearsal:
            log.apply_next(now_ms, self._left_alone(now_ms))
            names = poll.names(connection, log.state.changes, self.me.name)
            rehearsal.rollback()
        poll.tell(connection, names)
        return self._publish(session, now_ms)

    def _left_alone(self, now_ms: int) -> list[bytes]:
        return [author for author, until in self._passed_over.items() if now_ms < until]

    def _apply_next(self, session: Session, log: SqlLog, now_ms: int) -> Optional[Applied]:
        applied = log.apply_next(now_ms, self._left_alone(now_ms))
        if applied is None:
            return None
        failpoint("apply-state-moved")
        if applied.void:
            LOG.warning("%s: %d statements are void: the charter does not let their author make them", self._batch(applied), applied.void)
        self._materialise(session, log, self._batch(applied), now_ms)
        failpoint("apply-rows-written")
        return applied

    def _materialise(self, session: Session, log: SqlLog, batch: str, now_ms: int) -> bool:
        """Write the rows of what changed, of which the triggers are to see nothing: it would be an echo (R7.1)."""
        with triggers.unheard(session.connection()):
            return Materialise(session, log.state, self._rows(session), self.me.name, self._is_new).run(batch, now_ms)

    def _rows(self, session: Session) -> Rows:
        return Rows(session, self.me.name, self._rse_expression)

    def _batch(self, applied: Applied) -> str:
        """How texts and the parked table name a changeset."""
        return f"{self.authority.name(applied.author)} {applied.first}-{applied.last}"

    def _is_known_rucio(self, session: Session) -> bool:
        reason = unknown_schema(session.connection())
        if reason is not None and reason != self._warned:
            LOG.error("%s", reason)
        self._warned = reason
        return reason is None


def _count(published: Sequence[Applied]) -> int:
    return sum(one.last - one.first + 1 for one in published)
