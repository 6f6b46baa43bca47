"""The `nsync_*` tables: own metadata, so that Rucio's migration chain never sees them.

Keys are canonical bytes (namespace.keys), authors 16 bytes, values canonical msgpack. The layout is the plain one, by natural
keys; no other has been measured yet.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, String, Table, Text

metadata = MetaData()

ID = LargeBinary(16)
SERIAL = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only an INTEGER primary key

WAITING, APPLIED, REFUSED = "W", "A", "R"

segment = Table(
    "nsync_segment",
    metadata,
    Column("arrival", SERIAL, primary_key=True),
    Column("author", ID, nullable=False),
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("hash", ID, nullable=False),
    Column("stamp_ms", BigInteger, nullable=False),
    Column("stamp_logical", BigInteger, nullable=False),
    Column("commits", Boolean, nullable=False),
    Column("state", String(1), nullable=False),
    Column("reason", Text),
    Column("frame", LargeBinary, nullable=False),
    Index("nsync_segment_log", "author", "first", unique=True),
    Index("nsync_segment_state", "state", "author", "first"),
)
"""Every segment, as it was signed. `arrival` is the order in which they came, causal but for what waits."""

head = Table(
    "nsync_head",
    metadata,
    Column("author", ID, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("hash", ID, nullable=False),
    Column("stamp_ms", BigInteger, nullable=False),
    Column("stamp_logical", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""The end of what is applied of each log: it advances in the transaction that applies a changeset (R4.4)."""

step = Table(
    "nsync_step",
    metadata,
    Column("author", ID, primary_key=True),
    Column("other", ID, primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""Pasts, as the steps by which they grow (crdt.past)."""


def _statement_columns() -> list[Column[Any]]:
    return [
        Column("seq", BigInteger, nullable=False),
        Column("stamp_ms", BigInteger, nullable=False),
        Column("stamp_logical", BigInteger, nullable=False),
        Column("retract", Boolean, nullable=False),
        Column("value", LargeBinary),
    ]


slot = Table(
    "nsync_slot",
    metadata,
    Column("key", LargeBinary, primary_key=True),
    Column("author", ID, primary_key=True),
    *_statement_columns(),
    Index("nsync_slot_dot", "author", "seq"),
    sqlite_with_rowid=False,
)

claim = Table(
    "nsync_claim",
    metadata,
    Column("key", LargeBinary, primary_key=True),
    Column("author", ID, primary_key=True),
    *_statement_columns(),
    Index("nsync_claim_dot", "author", "seq"),
    sqlite_with_rowid=False,
)
"""Each author's first effective claim of a DID's identity: never dropped (R3.6)."""

waiting = Table(
    "nsync_waiting",
    metadata,
    Column("id", SERIAL, primary_key=True),
    Column("key", LargeBinary, nullable=False),
    Column("author", ID, nullable=False),
    *_statement_columns(),
    Index("nsync_waiting_dot", "author", "seq"),
)
"""Guests' destructive and publishing statements that their home has not acknowledged yet (R5.6)."""

link = Table(
    "nsync_link",
    metadata,
    Column("node", LargeBinary, primary_key=True),
    Column("key", LargeBinary, primary_key=True),
    sqlite_with_rowid=False,
)
"""From a DID or RSE to the attachments and replicas that hang on it, and from a DOI to who asked for it."""

entry = Table(
    "nsync_entry",
    metadata,
    Column("key", LargeBinary, primary_key=True),
    Column("kind", Integer, nullable=False),
    Column("scope", String(255)),
    Column("name", String(1024)),
    Column("entry", LargeBinary, nullable=False),
    Index("nsync_entry_did", "kind", "scope", "name"),
    sqlite_with_rowid=False,
)
"""The catalogue: what is shown. `scope` and `name` are those of scopes and DIDs, for joins with Rucio's tables."""

conflict = Table(
    "nsync_conflict",
    metadata,
    Column("id", SERIAL, primary_key=True),
    Column("key", LargeBinary, nullable=False),
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

parked = Table(
    "nsync_parked",
    metadata,
    Column("key", LargeBinary, primary_key=True),
    Column("batch", String(64), nullable=False),
    Column("reason", Text, nullable=False),
    Column("since_ms", BigInteger, nullable=False),
    Index("nsync_parked_batch", "batch"),
    sqlite_with_rowid=False,
)
"""Facts whose entries cannot be materialised here; those of one batch wait together (R7.6)."""

TABLES = tuple(metadata.tables)
