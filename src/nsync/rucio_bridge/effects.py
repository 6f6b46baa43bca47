"""What the transactions of the bridge are made of: publishing what was captured, applying what came, writing its rows (DESIGN 7).

All happens within a transaction that `bridge` begins and ends: log, slots, catalogue, head and Rucio's rows move together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from nsync.authority.charter import Instance, Verify
from nsync.authority.effective import Authority
from nsync.errors import ConfigError
from nsync.failpoints import failpoint
from nsync.log.segment import Sign, changesets
from nsync.namespace.ops import ACKNOWLEDGE
from nsync.rucio_bridge import audit, poll, scopes, triggers
from nsync.rucio_bridge.capture import Capture
from nsync.rucio_bridge.guard import unknown_schema
from nsync.rucio_bridge.inbox import Inbox
from nsync.rucio_bridge.materialise import Materialise
from nsync.rucio_bridge.rows import Rows
from nsync.store.database import Unseen, begin_writing, one_moment
from nsync.store.log import Applied, SqlLog
from nsync.store.notary import Opened

LOG = logging.getLogger(__name__)

HOLD_MS_MAX = 100
"""How long a run of changesets may hold SQLite's one write lock; a single larger changeset may hold it longer."""

PASSED_OVER_MS = 60_000
"""How long an author is left alone whose changeset failed for no reason that this instance knows."""


class Effects(Inbox):
    """The steps; `bridge.Bridge` has the transactions."""

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
        self._passed_over: dict[bytes, int] = {}
        """Authors whose next changeset failed here, and until when (ms) they are left alone."""
        self._clashed: set[str] = set()
        """Batches whose rows met what was committed beside the transaction, which is begun anew."""

    @contextmanager
    def _beside_rucio(self, adopts: bool = False) -> Iterator[Session]:
        """A session, for what reads Rucio's rows and writes them: no transaction of Rucio is seen in part, and none is overwritten.

        `adopts`: it goes over to another charter."""
        with self.engine.connect() as connection, one_moment(connection), self._sessions(bind=connection) as session, session.begin():
            begin_writing(session.connection())
            if not adopts:
                self._require_charter(session.connection())
            with scopes.in_force(session.connection()):
                yield session
        self._clashed.clear()

    @contextmanager
    def _in_known_rucio(self, otherwise: str) -> Iterator[Session]:
        """The same, for an operator who waits for what it does. Raises ConfigError, with `otherwise`, where Rucio's schema is unknown."""
        with self._beside_rucio() as session:
            if not self._is_known_rucio(session):
                raise ConfigError(f"{otherwise}: {self._warned}")
            yield session

    @contextmanager
    def opened(self, now_ms: int) -> Iterator[Opened]:
        """A transaction of the notary's (store.notary.Ground)."""
        with self._beside_rucio() as session:
            log = SqlLog(session.connection(), self.authority)
            yield Opened(log, self._is_known_rucio(session), lambda by: self._materialise(session, log, by, now_ms))

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
        except (OperationalError, Unseen):
            raise  # the database failed, or is newer: not the changeset
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
        """Write the rows of what changed, of which the triggers are to see nothing: it would be an echo (R7.1).

        Raises Unseen, once, where rows that Rucio committed since this transaction began may be in their way."""
        with triggers.unheard(session.connection()):
            try:
                writer = Materialise(session, log.state, self._rows(session), self.me.name, self._is_new, batch in self._clashed)
                return writer.run(batch, now_ms)
            except Unseen:
                self._clashed.add(batch)
                raise

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
