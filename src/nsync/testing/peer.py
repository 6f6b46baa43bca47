"""One simulated instance's database, and the calls that its node makes on it.

The only place in the simulation that knows the store. The database is SQLite in memory; `kill` forgets what is not
committed, as a power cut would, and `image` and `restore` are backup and recovery. Each method is one transaction, passes the
failpoints of the store, and some of its own at the steps between.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Callable, NamedTuple, Optional

from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import StaticPool

from nsync.auth.keys import verify
from nsync.authority.charter import AuthorId, Instance
from nsync.authority.effective import Authority
from nsync.catalogue.entries import Conflict, Entry
from nsync.failpoints import failpoint
from nsync.log.floor import Floor, Vote
from nsync.log.segment import NO_HASH, Dep, Header, Segment, Sign, decode_frame, decode_header
from nsync.log.stored import Head, Receipt
from nsync.namespace.keys import Did, Fact
from nsync.namespace.ops import ACKNOWLEDGE
from nsync.store import kept, schema
from nsync.store.asked import Asked
from nsync.store.database import create_tables, writing
from nsync.store.keyed import keys_in
from nsync.store.log import Applied, SqlLog, decode_batch
from nsync.store.notary import Opened
from nsync.transport import session

_PLACED = "JOIN nsync_branch b ON b.id = t.branch JOIN nsync_segment s ON s.branch = t.branch AND t.seq BETWEEN s.first AND s.last"
SHARED = {
    "nsync_segment": "SELECT b.author, t.first, t.last, t.hash, t.commits, t.header, t.signature FROM nsync_segment t "
    "JOIN nsync_branch b ON b.id = t.branch",
    "nsync_branch": "SELECT author, applied, applied_hash, applied_stamp_ms, applied_stamp_logical FROM nsync_branch "
    "WHERE applied_hash IS NOT NULL",
    "nsync_op": "SELECT t.branch, t.seq, b.author, t.seq, s.hash, t.stamp_ms, t.stamp_logical, t.raw FROM nsync_op t PLACED",
    "nsync_guest": "SELECT t.branch, t.seq, t.home, b.author, t.seq, s.hash FROM nsync_guest t PLACED",
    "nsync_grant": "SELECT t.branch, t.seq, b.author, t.seq, s.hash FROM nsync_grant t PLACED",
    "nsync_revocation": "SELECT t.branch, t.seq, b.author, t.seq, s.hash, t.grant_author, t.grant_seq FROM nsync_revocation t PLACED",
    "nsync_fork": "SELECT t.author, t.first FROM nsync_fork t WHERE 1 < (SELECT count(DISTINCT s.hash) FROM nsync_segment s "
    "JOIN nsync_branch b ON b.id = s.branch WHERE b.author = t.author AND s.first = t.first)",
    "nsync_entry": "SELECT key, whole, kind, scope, name, entry FROM nsync_entry",
    "nsync_conflict": "SELECT key, whole, rule, winner, loser, resolve, stamps FROM nsync_conflict",
}
"""Of each table what must be the same at all instances. A branch has another number and another parent where another one came first,
so an op is told by the hash of its segment, after its place, which is left out. Left out, too: what lies below a
floor on a branch that does not stand, of which a peer may have left out any; proofs of forks whose other branch was refused; the index,
whose hash has a key of its own in each database; pasts, which are written down branch by branch; votes beyond those that a floor needs;
and what is an instance's own."""

_CHARTER, FIRST_VERSION = "simulated charter", 1

ALL_BYTES = 1 << 30
"""More than any story stores."""

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
    is_applied: bool
    header: Header


class Peer(Asked):
    """The database of one instance. It outlives the process that works on it."""

    def __init__(self, authority: Authority, author: AuthorId, sign: Sign) -> None:
        self.authority = authority
        self.author = author
        self._sign = sign
        self._charters = {authority.charter.version: authority}
        self._raw, self.engine = _SPARE.pop() if _SPARE else _database()
        self._heads: Optional[tuple[int, list[Head]]] = None
        self._rows: Optional[tuple[int, list[Row]]] = None
        self.restore(_empty())

    # ---- what peers ask (transport's SegmentLog)

    def heads(self) -> list[Head]:
        """The end of each stored log; read anew when a row has changed since."""
        if self._heads is None or self._heads[0] != self._raw.total_changes:
            with self.engine.connect() as connection:
                self._heads = self._raw.total_changes, SqlLog(connection, self.authority).stored_heads()
        return list(self._heads[1])

    def receive(self, frames: Sequence[bytes], sender: str) -> Receipt:
        """Verify `frames` and store what is new; it is durable when this returns."""
        segments, rejected = decode_batch(frames, self.authority, verify)
        failpoint("receive-verified")
        stored = Receipt(0, ())
        if segments:
            with writing(self.engine) as connection:
                log = SqlLog(connection, self.authority)
                log.heard(self.author, [Head(s.header.author, s.header.last, s.hash) for s in segments])
                stored = log.store(segments)
                failpoint("receive-before-commit")
            failpoint("receive-after-commit")
        return Receipt(stored.stored, (*rejected, *stored.rejected))

    # ---- what the node does

    def work(self, now_ms: int, ops: Sequence[bytes] = (), changesets_max: int = 1, acknowledges: bool = True) -> Worked:
        """Publish `ops`, apply at most `changesets_max` of what others sent, and acknowledge what waits for this home: one transaction.

        An instance whose own log has more elsewhere, or is not applied here, publishes nothing.
        """
        with writing(self.engine) as connection:
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
        may = log.read_only(self.author) is None and log.is_applied(self.author)
        return [log.publish(ops, self.author, self._sign, now_ms)] if may else []

    def go_by(self, authority: Authority, author: AuthorId) -> None:
        """Start on another version of the charter: what the database does not go by yet is brought up to date (R5.1)."""
        self._charters[authority.charter.version] = authority
        with writing(self.engine) as connection:
            held = self._charters[int(kept.read(connection, _CHARTER) or FIRST_VERSION)]
            if held.charter.version != authority.charter.version:
                SqlLog(connection, held).adopt(authority.charter)
                kept.write(connection, _CHARTER, b"%d" % authority.charter.version)
        self.authority, self.author = authority, author

    @property
    def me(self) -> Instance:
        found = self.authority.charter.by_author(self.author)
        assert found is not None, self.author.hex()
        return found

    @contextmanager
    def opened(self, now_ms: int) -> Iterator[Opened]:
        """A transaction of the notary's (store.notary.Ground)."""
        with writing(self.engine) as connection:
            yield Opened(SqlLog(connection, self.authority), True, lambda by: None)

    def is_compact(self) -> bool:
        """Whether nothing is left to collect below the newest floor."""
        with self.engine.connect() as connection:
            return SqlLog(connection, self.authority).is_compact()

    def compact(self) -> None:
        """Collect below the newest floor."""
        with writing(self.engine) as connection:
            SqlLog(connection, self.authority).compact()
            failpoint("compacted-before-commit")

    # ---- crash, backup and recovery

    def kill(self) -> None:
        """The process ends here: what is not committed never was."""
        self._raw.rollback()
        self._heads = self._rows = None

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
        _SPARE.append((self._raw, self.engine))

    # ---- what oracles look at

    def read_only(self) -> Optional[str]:
        """Why this instance signs nothing more, or None."""
        with self.engine.connect() as connection:
            return SqlLog(connection, self.authority).read_only(self.author)

    def floors(self) -> list[Floor]:
        """Those that are decided."""
        with self.engine.connect() as connection:
            return list(SqlLog(connection, self.authority).lines.usable_floors)

    def is_whole(self) -> bool:
        """Whether all is here that is live below the newest floor."""
        with self.engine.connect() as connection:
            return SqlLog(connection, self.authority).is_whole()

    def live(self) -> bytes:
        """The digest of what is live here below the newest floor."""
        with self.engine.connect() as connection:
            log = SqlLog(connection, self.authority)
            return log.live_of({head.author: head.seq for head in log.lines.usable_floors[-1].heads})

    def votes(self) -> list[Vote]:
        """Every vote that is kept."""
        with self.engine.connect() as connection:
            return SqlLog(connection, self.authority).lines.votes()

    def rows(self) -> list[Row]:
        """Every stored segment, by author and place; read anew when a row has changed since."""
        if self._rows is None or self._rows[0] != self._raw.total_changes:
            headers = {hash_: _header(raw) for hash_, raw in self._raw.execute("SELECT hash, header FROM nsync_segment")}
            applied = self._applied(headers)
            rows = [Row(h.author, h.first, h.last, hash_, hash_ in applied, h) for hash_, h in headers.items()]
            self._rows = self._raw.total_changes, sorted(rows)
        return self._rows[1]

    def _applied(self, headers: Mapping[bytes, Header]) -> set[bytes]:
        """The hashes of the applied segments: each applied head, and what it continues."""
        found: set[bytes] = set()
        for (hash_,) in self._raw.execute("SELECT applied_hash FROM nsync_branch WHERE applied_hash IS NOT NULL"):
            while hash_ != NO_HASH and hash_ not in found:
                found.add(hash_)
                hash_ = headers[hash_].prev
        return found

    def segments(self) -> list[Segment]:
        """Every stored segment, each after what it continues."""
        have: session.Have = {head.author: [] for head in self.heads()}
        found: dict[bytes, Segment] = {}
        while batch := self.segments_after(have, ALL_BYTES):
            have = session.advance(have, batch)
            found.update((stored.hash, decode_frame(stored.frame)) for stored in batch)
        return list(found.values())

    def applied_heads(self) -> list[Dep]:
        """The end of what is applied of each branch of each log."""
        with self.engine.connect() as connection:
            heads = (branch.head for branch in SqlLog(connection, self.authority).heads().values())
            return sorted(head for head in heads if head is not None)

    def applied_segments(self) -> list[Segment]:
        """Every applied segment."""
        applied = {row.hash for row in self.rows() if row.is_applied}
        return [segment for segment in self.segments() if segment.hash in applied]

    def catalogue(self) -> tuple[dict[Fact, Entry], dict[Fact, list[Conflict]]]:
        """What is shown, and the conflicts."""
        with self.engine.connect() as connection:
            state = SqlLog(connection, self.authority).state
            shown = keys_in(connection, schema.entry)
            clashing = keys_in(connection, schema.conflict)
            return state.entries(shown), state.conflicts(clashing)  # type: ignore[arg-type]

    def hanging_on(self, did: Did) -> set[Fact]:
        """What the store finds for the catalogue to hang on `did`."""
        with self.engine.connect() as connection:
            return set(SqlLog(connection, self.authority).state.hanging_on([did]))

    def tables(self) -> dict[str, list[tuple[Any, ...]]]:
        """What must be the same at all instances, table by table."""
        found, counts = {}, self._counts()
        for table, query in SHARED.items():
            rows = self._raw.execute(query.replace("PLACED", _PLACED))
            found[table] = {row[2:] for row in rows if counts(*row[:2])} if "PLACED" in query else set(rows)
        return {"floors": list(self.floors()), **{table: sorted(rows, key=repr) for table, rows in found.items()}}

    def _counts(self) -> Callable[[int, int], bool]:
        """Whether what stands in this place of a branch counts, or may count some day."""
        with self.engine.connect() as connection:
            lines = SqlLog(connection, self.authority).lines
            floor = lines.floors()[-1] if lines.floors() else {}
            below = {branch.id: floor.get(branch.author, 0) for branch in lines.branches.values()}
            stands = {part.branch: part.seq for author in floor for part in lines.line(author)}
        return lambda branch, seq: seq > below[branch] or seq <= stands.get(branch, 0)


@lru_cache(maxsize=4096)
def _header(raw: bytes) -> Header:
    """A stored header, decoded once for all peers."""
    return decode_header(raw)


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
