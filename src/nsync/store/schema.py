"""The `nsync_*` tables: own metadata, so that Rucio's migration chain never sees them.

The state is the log, indexed (docs/adr/0009): ops lie by dot as they came, `about` leads from a key to the ops that speak of it, and slots,
claims and rulings are read through it. So a revocation, a fork or an adopted incarnation changes no stored statement, only how
some are read. What the catalogue shows is kept, and maintained by what changes.

A *branch* is one line of one author's log; an author who never forked has one (log.forks). Ids and hashes are 16 bytes.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, String, Table, Text

metadata = MetaData()

ID = LargeBinary(16)
SERIAL = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only an INTEGER primary key

WAITING, APPLIED, REFUSED = "W", "A", "R"


def _dot() -> tuple[Column[int], Column[int]]:
    return (
        Column("branch", Integer, primary_key=True, autoincrement=False),
        Column("seq", BigInteger, primary_key=True, autoincrement=False),
    )


branch = Table(
    "nsync_branch",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("author", ID, nullable=False),
    Column("parent", Integer),
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("hash", ID, nullable=False),
    Column("stamp_ms", BigInteger, nullable=False),
    Column("stamp_logical", BigInteger, nullable=False),
    Column("open_segments", Integer, nullable=False),
    Column("applied", BigInteger, nullable=False),
    Column("applied_hash", ID),
    Column("applied_stamp_ms", BigInteger),
    Column("applied_stamp_logical", BigInteger),
    Column("refused", Text),
)
"""Each line of a log: where it leaves its parent (after `first` - 1), where it ends, and how far it is applied (R4.4)."""

segment = Table(
    "nsync_segment",
    metadata,
    Column("arrival", SERIAL, primary_key=True),
    Column("branch", Integer, nullable=False),
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("hash", ID, nullable=False),
    Column("commits", Boolean, nullable=False),
    Column("size", Integer, nullable=False),
    Column("header", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Index("nsync_segment_log", "branch", "first", unique=True),
)
"""Every segment, as it was signed. `arrival` is the order in which they came, causal but for what waits; `size` that of its ops."""

op = Table(
    "nsync_op",
    metadata,
    *_dot(),
    Column("stamp_ms", BigInteger, nullable=False),
    Column("stamp_logical", BigInteger, nullable=False),
    Column("raw", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""The ops, each as its author encoded it; in the place of one that compaction took, its hash (log.segment.gone)."""

about = Table(
    "nsync_about",
    metadata,
    Column("node", BigInteger, primary_key=True, autoincrement=False),
    Column("key", BigInteger, primary_key=True, autoincrement=False),
    *_dot(),
    sqlite_with_rowid=False,
)
"""From a key to the applied ops that speak of it (store.index)."""

guest = Table(
    "nsync_guest",
    metadata,
    *_dot(),
    Column("home", String(32), primary_key=True),
    sqlite_with_rowid=False,
)
"""Applied ops with a statement that another instance, `home`, decides about: all that acknowledgements and revocations can move."""

step = Table(
    "nsync_step",
    metadata,
    Column("branch", Integer, primary_key=True, autoincrement=False),
    Column("other", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Index("nsync_step_seen", "branch", "other", "seq"),
    sqlite_with_rowid=False,
)
"""Pasts, as the steps by which they grow (crdt.past): from `position` of `branch` on, `other` is seen up to `seq`."""

grant = Table("nsync_grant", metadata, *_dot(), sqlite_with_rowid=False)
"""Applied ops that are grants."""

revocation = Table(
    "nsync_revocation",
    metadata,
    *_dot(),
    Column("grant_author", ID, nullable=False),
    Column("grant_seq", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""Applied ops that are revocations, each with the dot of its grant."""

fork = Table(
    "nsync_fork",
    metadata,
    Column("author", ID, primary_key=True),
    Column("first", BigInteger, primary_key=True, autoincrement=False),
    Column("proof", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""Fork proofs (R4.5): kept for ever."""

vote = Table(
    "nsync_vote",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("author", ID, primary_key=True),
    Column("hash", ID, primary_key=True),
    Column("raw", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""Votes for floors (R4.8). An author has one a number and term; two are kept as the proof of what it did."""

floor = Table(
    "nsync_floor",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("raw", LargeBinary, nullable=False),
    Column("usable", Boolean, nullable=False),
)
"""The floors that the votes make by the charter in force, so that these are counted once. Usable: all below it is applied here."""

block = Table(
    "nsync_block",
    metadata,
    Column("author", ID, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", ID, nullable=False),
    sqlite_with_rowid=False,
)
"""The digests of whole blocks of what is compacted (store.live), each as long as nothing in its block changes."""

signed_head = Table(
    "nsync_signed_head",
    metadata,
    Column("author", ID, primary_key=True),
    Column("raw", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""The newest signed head of each author (log.lease)."""

kept = Table("nsync_kept", metadata, Column("name", String(32), primary_key=True), Column("value", LargeBinary, nullable=False))
"""Single values: the key of the index' hash, the charter in force, why this instance signs nothing."""

entry = Table(
    "nsync_entry",
    metadata,
    Column("key", LargeBinary, primary_key=True),
    Column("whole", LargeBinary),
    Column("kind", Integer, nullable=False),
    Column("scope", String(255)),
    Column("name", String(1024)),
    Column("entry", LargeBinary, nullable=False),
    Index("nsync_entry_did", "kind", "scope", "name"),
    sqlite_with_rowid=False,
)
"""The catalogue: what is shown, by key (store.keyed). `scope` and `name` are those of scopes and DIDs, for joins with Rucio's tables."""

conflict = Table(
    "nsync_conflict",
    metadata,
    Column("id", SERIAL, primary_key=True),
    Column("key", LargeBinary, nullable=False),
    Column("whole", LargeBinary),
    Column("rule", String(255), nullable=False),
    Column("winner", Text, nullable=False),
    Column("loser", Text, nullable=False),
    Column("resolve", Text, nullable=False),
    Column("stamps", Text, nullable=False),
    Index("nsync_conflict_key", "key"),
)
"""What a rule of the catalogue took away."""

outbox = Table(
    "nsync_outbox",
    metadata,
    Column("id", SERIAL, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("a", String(1024)),
    Column("b", String(1024)),
    Column("c", String(1024)),
    Column("d", String(1024)),
)
"""Rows of Rucio that changed and are not published yet, by their names; the triggers of the bridge fill it (R7.1)."""

shared_scope = Table("nsync_shared_scope", metadata, Column("scope", String(255), primary_key=True), sqlite_with_rowid=False)
"""The scopes that this instance shares; the triggers look here."""

audit = Table(
    "nsync_audit",
    metadata,
    Column("id", SERIAL, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("scope", String(255)),
    Column("roots", Text),
    Column("place", Text),
)
"""Why everything that may be shared, or all of one scope, or all below some DIDs (`roots`), must be looked at; `place`: how far that has
come (rucio_bridge.audit)."""

parked = Table(
    "nsync_parked",
    metadata,
    Column("key", LargeBinary, primary_key=True),
    Column("whole", LargeBinary),
    Column("batch", String(128), nullable=False),
    Column("reason", Text, nullable=False),
    Column("since_ms", BigInteger, nullable=False),
    Column("had_row", Boolean, nullable=False),
    Index("nsync_parked_batch", "batch"),
    sqlite_with_rowid=False,
)
"""Facts whose entries cannot be materialised here, by batch (R7.6, rucio_bridge.parked). `had_row`: what they show had its row."""

peer = Table(
    "nsync_peer",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("written_ms", BigInteger, nullable=False),
    Column("contact_ms", BigInteger),
    Column("round_trip_ms", BigInteger),
    Column("offset_ms", BigInteger),
    Column("heads", LargeBinary),
    Column("heads_ms", BigInteger),
    Column("bytes_in", BigInteger, nullable=False),
    Column("bytes_out", BigInteger, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("since_ms", BigInteger),
    Column("next_try_ms", BigInteger),
    Column("reason", Text, nullable=False),
    Column("reset_ms", BigInteger),
    sqlite_with_rowid=False,
)
"""How each peer fares, as the node puts it down now and then (log.stored.PeerRecord); `reset_ms`: an operator wants it tried now."""

TABLES = tuple(metadata.tables)
