"""One simulated instance's database, and the calls that its node makes on it.

The only place in the simulation that knows the store. The database is SQLite in memory; `kill` forgets what is not
committed, as a power cut would, and `image` and `restore` are backup and recovery. Each method is one transaction, passes the
failpoints of the store, and some of its own at the steps between.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Optional

from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import StaticPool

from nsync.auth.keys import verify
from nsync.authority.charter import AuthorId, Place
from nsync.authority.effective import Authority
from nsync.catalogue.entries import Conflict, Entry
from nsync.failpoints import failpoint
from nsync.log.segment import Segment, Sign, decode_frame
from nsync.log.stored import Head, Receipt, StoredSegment
from nsync.namespace.keys import Fact
from nsync.namespace.ops import ACKNOWLEDGE
from nsync.store import schema
from nsync.store.database import create_tables, writing
from nsync.store.keyed import keys_in
from nsync.store.log import Applied, SqlLog, decode_batch
from nsync.store.state import SqlState

STORES_FORKS = False
"""Whether both branches of a fork are stored, so that everybody converges (R4.4). Today the second one is refused where the first is."""

RESTORED_IS_READ_ONLY = False
"""Whether a restored instance signs nothing until its next incarnation (R4.6). Today it waits for its own log, and signs too early
where it has not heard of it."""

LOCAL_TABLES = ("nsync_outbox", "nsync_shared_scope", "nsync_parked")
LOCAL_COLUMNS = ("arrival", "id", "state", "reason")
"""What may differ between instances: the bridge's own tables, the order in which things came, and whether what follows a refused
changeset is refused or waits. How much of each log is applied is in `nsync_head` too."""

Image = sqlite3.Connection
"""A copy of a database, in memory."""


Worked = tuple[Applied, ...]
"""What one transaction of `work` applied, in this order; what it published is among it."""


class Row(NamedTuple):
    """A stored segment."""

    author: bytes
    first: int
    last: int
    hash: bytes
    commits: bool
    state: str
    frame: bytes

    @property
    def is_applied(self) -> bool:
        return self.state == schema.APPLIED


class Peer:
    """The database of one instance. It outlives the process that works on it."""

    def __init__(self, authority: Authority, author: AuthorId, sign: Sign) -> None:
        self.authority = authority
        self.author = author
        self._sign = sign
        self._raw, self._engine = _SPARE.pop() if _SPARE else _database()
        self._heads: Optional[tuple[int, list[Head]]] = None
        self.restore(_empty())

    # ---- what peers ask (transport's SegmentLog)

    def heads(self) -> list[Head]:
        """The end of each stored log; read anew when a row has changed since."""
        if self._heads is None or self._heads[0] != self._raw.total_changes:
            with self._engine.connect() as connection:
                self._heads = self._raw.total_changes, SqlLog(connection, self.authority).stored_heads()
        return list(self._heads[1])

    def unknown(self, theirs: Collection[Head]) -> list[Head]:
        """Those of a peer's heads that are not stored here."""
        with self._engine.connect() as connection:
            return SqlLog(connection, self.authority).unknown(theirs)

    def locator(self, author: bytes) -> list[Place]:
        """Places of `author`'s log here, to ask peers from."""
        with self._engine.connect() as connection:
            return SqlLog(connection, self.authority).locator(author)

    def segments_after(self, have: Mapping[bytes, Sequence[Place]], bytes_max: int) -> list[StoredSegment]:
        """The next stored segments of the authors in `have` beyond the places given."""
        with self._engine.connect() as connection:
            return SqlLog(connection, self.authority).segments_after(have, bytes_max)

    def receive(self, frames: Sequence[bytes], sender: str) -> Receipt:
        """Verify `frames` and store what is new; it is durable when this returns."""
        segments, rejected = decode_batch(frames, self.authority, verify)
        failpoint("receive-verified")
        stored = Receipt(0, ())
        if segments:
            with writing(self._engine) as connection:
                log = SqlLog(connection, self.authority)
                log.heard(self.author, [Head(s.header.author, s.header.last, s.hash) for s in segments])
                stored = log.store(segments)
                failpoint("receive-before-commit")
            failpoint("receive-after-commit")
        return Receipt(stored.stored, (*rejected, *stored.rejected))

    # ---- what the node does

    def work(self, now_ms: int, ops: Sequence[bytes] = (), changesets_max: int = 1, acknowledges: bool = True) -> Worked:
        """Publish `ops`, apply at most `changesets_max` of what others sent, and acknowledge what waits for this home: one transaction.

        A restored instance whose own log is not applied here publishes nothing.
        """
        with writing(self._engine) as connection:
            failpoint("work-locked")
            worked = self._publish(connection, ops, now_ms) if ops else []
            for _ in range(changesets_max):
                applied = SqlLog(connection, self.authority).apply_next(now_ms)
                if applied is None:
                    break
                worked.append(applied)
                failpoint("work-state-moved")
            if acknowledges and SqlLog(connection, self.authority).state.owes_acknowledgement(self.author):
                worked += self._publish(connection, [ACKNOWLEDGE], now_ms)
            failpoint("work-before-commit")
        failpoint("work-after-commit")
        return tuple(worked)

    def _publish(self, connection: Any, ops: Sequence[bytes], now_ms: int) -> list[Applied]:
        log = SqlLog(connection, self.authority)
        return (
            [log.publish(ops, self.author, self._sign, now_ms)]
            if log.read_only(self.author) is None and log.is_applied(self.author)
            else []
        )

    # ---- crash, backup and recovery

    def kill(self) -> None:
        """The process ends here: what is not committed never was."""
        self._raw.rollback()
        self._heads = None

    def image(self) -> Image:
        """A backup."""
        return _copy(self._raw)

    def restore(self, image: Image) -> None:
        """Put the database back to what it was when `image` was made."""
        self.kill()
        image.backup(self._raw)

    def close(self) -> None:
        """The database is not needed any more. It is kept for another story: an engine's compiled statements are dear."""
        self.kill()
        _SPARE.append((self._raw, self._engine))

    # ---- what oracles look at

    def something_waits(self) -> bool:
        """Whether a stored segment is not applied yet."""
        return self._raw.execute("SELECT 1 FROM nsync_segment WHERE state = ? LIMIT 1", (schema.WAITING,)).fetchone() is not None

    def rows(self) -> list[Row]:
        """Every stored segment, by author and place."""
        columns = ", ".join(Row._fields)
        return [Row(*row) for row in self._raw.execute(f"SELECT {columns} FROM nsync_segment ORDER BY author, first")]  # noqa: S608

    def applied(self) -> dict[bytes, tuple[int, bytes]]:
        """The head of each applied log: seq and hash."""
        return {author: (seq, hash_) for author, seq, hash_ in self._raw.execute("SELECT author, seq, hash FROM nsync_head")}

    def applied_segments(self) -> list[Segment]:
        """Every applied segment, log by log."""
        return [decode_frame(row.frame) for row in self.rows() if row.is_applied]

    def frames(self, applied: Applied) -> list[bytes]:
        """The frames of an applied changeset."""
        query = "SELECT frame FROM nsync_segment WHERE author = ? AND first >= ? AND last <= ? AND state = ? ORDER BY first"
        return [frame for (frame,) in self._raw.execute(query, (*applied[:3], schema.APPLIED))]

    def catalogue(self) -> tuple[dict[Fact, Entry], dict[Fact, list[Conflict]]]:
        """What is shown, and the conflicts."""
        with self._engine.connect() as connection:
            state = SqlState(connection, self.authority)
            shown = keys_in(connection, schema.entry)
            clashing = keys_in(connection, schema.conflict)
            return state.entries(shown), state.conflicts(clashing)  # type: ignore[arg-type]

    def tables(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of every table that must be the same at all instances, without local numbers."""
        return {table: self._table(table, columns) for table, columns in _shared_columns()}

    def _table(self, table: str, columns: str) -> list[tuple[Any, ...]]:
        return sorted(self._raw.execute(f"SELECT {columns} FROM {table}").fetchall(), key=repr)  # noqa: S608 - names from the schema


@lru_cache
def _shared_columns() -> tuple[tuple[str, str], ...]:
    tables = [table for table in schema.metadata.sorted_tables if table.name not in LOCAL_TABLES]
    return tuple((table.name, ", ".join(c.name for c in table.columns if c.name not in LOCAL_COLUMNS)) for table in tables)


_SPARE: list[tuple[Image, Engine]] = []


def _database() -> tuple[Image, Engine]:
    raw = sqlite3.connect(":memory:")
    return raw, create_engine("sqlite://", creator=lambda: raw, poolclass=StaticPool)


def _copy(image: Image) -> Image:
    copy = sqlite3.connect(":memory:")
    image.backup(copy)
    return copy


@lru_cache
def _empty() -> Image:
    """A database with nsync's tables and nothing in them."""
    raw, engine = _database()
    create_tables(engine)
    return raw
