"""The bridge: one Rucio database, its nsync tables, and the transactions that join them (DESIGN 7).

Every effect is one transaction on the Rucio database: what was captured is published and applied, or a changeset is applied and
its rows are written, with log, slots, catalogue and head. Nothing is kept in memory between transactions, so a process
may die anywhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Optional

from sqlalchemy import Engine, delete, func, select
from sqlalchemy.orm import Session, sessionmaker

from nsync.authority.charter import Instance, Verify
from nsync.authority.effective import Authority
from nsync.failpoints import failpoint
from nsync.log.segment import Sign
from nsync.log.stored import Head, Receipt, StoredSegment
from nsync.namespace.keys import Fact
from nsync.namespace.ops import ACKNOWLEDGE
from nsync.rucio_bridge import parked, triggers
from nsync.rucio_bridge.capture import Capture, outbox_is_empty
from nsync.rucio_bridge.guard import unknown_schema
from nsync.rucio_bridge.materialise import Materialise
from nsync.rucio_bridge.rows import Rows
from nsync.store import schema
from nsync.store.database import begin_writing
from nsync.store.log import Applied, SqlLog, decode_batch

LOG = logging.getLogger(__name__)

HOLD_MS_MAX = 100
"""How long a run of changesets may hold SQLite's one write lock; a single larger changeset may hold it longer."""


class Worked(NamedTuple):
    """What one transaction did: ops published, changesets applied, and how long it held the write lock."""

    published: int
    applied: tuple[Applied, ...]
    held_ms: float

    @property
    def idle(self) -> bool:
        """Whether there was nothing to do."""
        return self.published == 0 and not self.applied


class Bridge:
    """One instance's database. Every method is synchronous and one transaction; call them off the event loop."""

    def __init__(self, engine: Engine, authority: Authority, me: Instance, sign: Sign, verify: Verify, rse_expression: str) -> None:
        self.engine = engine
        self.authority = authority
        self.me = me
        self._sign = sign
        self._verify = verify
        self._rse_expression = rse_expression
        self._sessions = sessionmaker(bind=engine)
        self._warned: Optional[str] = None

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        """A session in a transaction that may write; leaving with an error rolls it back."""
        with self._sessions.begin() as session:
            begin_writing(session.connection())
            yield session

    def install(self, shared_scopes: Sequence[str]) -> None:
        """Make the triggers, and share exactly `shared_scopes`. The tables come from `nsync.store.migrations`."""
        with self._writing() as session:
            triggers.install(session.connection())
            triggers.share(session.connection(), set(shared_scopes))

    # ---- what peers ask (transport's SegmentLog)

    def heads(self) -> list[Head]:
        """The end of each stored log."""
        with self.engine.connect() as connection:
            return SqlLog(connection, self.authority).stored_heads()

    def segments_after(self, have: Mapping[bytes, int], bytes_max: int) -> list[StoredSegment]:
        """The next stored segments beyond `have`."""
        with self.engine.connect() as connection:
            return SqlLog(connection, self.authority).segments_after(have, bytes_max)

    def receive(self, frames: Sequence[bytes], sender: str) -> Receipt:
        """Verify `frames` and store what is new; it is durable when this returns."""
        segments, rejected = decode_batch(frames, self.authority, self._verify)
        failpoint("receive-verified")
        received = Receipt(0, ())
        if segments:
            with self._writing() as session:
                received = SqlLog(session.connection(), self.authority).store(segments)
                failpoint("receive-before-commit")
            failpoint("receive-after-commit")
        rejected += received.rejected
        for text in rejected:
            LOG.warning("refused a segment that %s brought: %s", sender, text)
        return Receipt(received.stored, tuple(rejected))

    # ---- the two effects

    def work(self, now_ms: int) -> Worked:
        """Publish what was captured, then apply what waits and write its rows.

        It holds the write lock for HOLD_MS_MAX at most, unless one changeset takes longer.
        """
        if self._nothing_to_do():
            return Worked(0, (), 0.0)
        with self._writing() as session:
            if not self._is_known_rucio(session):
                return Worked(0, (), 0.0)
            began = time.monotonic()
            failpoint("work-locked")
            published = self._publish(session, now_ms)
            applied = [] if published is None else [published]
            while (time.monotonic() - began) * 1000 < HOLD_MS_MAX:
                found = self._apply_one(session, now_ms)
                if found is None:
                    break
                applied.append(found)
            acknowledged = self._acknowledge(session, now_ms)
            mine = [one for one in (published, acknowledged) if one is not None]
            applied += [acknowledged] if acknowledged is not None else []
            failpoint("work-before-commit")
        failpoint("work-after-commit")
        return Worked(sum(one.last - one.first + 1 for one in mine), tuple(applied), (time.monotonic() - began) * 1000)

    def retry_parked(self, now_ms: int) -> int:
        """Try again what is parked, batch by batch; returns how many batches could be written."""
        with self._sessions() as session:
            names = sorted(parked.batches(session))
        written = 0
        for name in names:
            with self._writing() as session:
                facts = parked.batches(session).get(name)
                if facts and self._is_known_rucio(session):
                    self._publish(session, now_ms)
                    written += self._materialise(session, SqlLog(session.connection(), self.authority), facts, name, now_ms)
        return written

    def _nothing_to_do(self) -> bool:
        with self._sessions() as session:
            waiting = select(schema.segment.c.arrival).where(schema.segment.c.state == schema.WAITING).limit(1)
            return outbox_is_empty(session) and session.execute(waiting).first() is None

    def _publish(self, session: Session, now_ms: int) -> Optional[Applied]:
        """Drain the outbox into a changeset of this instance's log, which has seen what was applied before this transaction (R7.1)."""
        log = SqlLog(session.connection(), self.authority)
        if not log.is_applied(self.me.author):
            return None  # a restored database gets its own log back from its peers: first that, then what is new
        capture = Capture(session, log.state, self._rows(session), self.me)
        drained = capture.drain()
        failpoint("publish-drained")
        if drained is None:
            return None
        published = log.publish(drained.ops, self.me.author, self._sign, now_ms) if drained.ops else None
        capture.forget(drained.until)
        failpoint("publish-logged")
        if published is not None:
            self._materialise(session, log, published.changed, _batch(published), now_ms)
        return published

    def _acknowledge(self, session: Session, now_ms: int) -> Optional[Applied]:
        """Let guests' statements that wait for this home take effect: a segment that has them in its past (R5.6)."""
        log = SqlLog(session.connection(), self.authority)
        if not log.state.owes_acknowledgement(self.me.author) or not log.is_applied(self.me.author):
            return None
        acknowledged = log.publish([ACKNOWLEDGE], self.me.author, self._sign, now_ms)
        self._materialise(session, log, acknowledged.changed, _batch(acknowledged), now_ms)
        return acknowledged

    def _apply_one(self, session: Session, now_ms: int) -> Optional[Applied]:
        log = SqlLog(session.connection(), self.authority)
        applied = log.apply_next(now_ms)
        if applied is None:
            return None
        failpoint("apply-state-moved")
        if applied.void:
            LOG.warning("%s: %d statements are void: the charter does not let their author make them", _batch(applied), applied.void)
        self._materialise(session, log, applied.changed, _batch(applied), now_ms)
        failpoint("apply-rows-written")
        return applied

    def _materialise(self, session: Session, log: SqlLog, facts: frozenset[Fact] | set[Fact], batch: str, now_ms: int) -> bool:
        """Write rows, and forget what the triggers saw of it: an echo (R7.1). On SQLite nobody else writes in between."""
        last = session.execute(select(func.max(schema.outbox.c.id))).scalar() or 0
        written = Materialise(session, log.state, self._rows(session), self.me.name).run(facts, batch, now_ms)
        session.execute(delete(schema.outbox).where(schema.outbox.c.id > last))
        return written

    def _rows(self, session: Session) -> Rows:
        return Rows(session, self.me.name, self._rse_expression)

    def _is_known_rucio(self, session: Session) -> bool:
        reason = unknown_schema(session.connection())
        if reason is not None and reason != self._warned:
            LOG.error("%s", reason)
        self._warned = reason
        return reason is None


def _batch(applied: Applied) -> str:
    """How texts and the parked table name a changeset."""
    return f"{applied.author.hex()[:12]} {applied.first}-{applied.last}"
