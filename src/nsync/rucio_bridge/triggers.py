"""The triggers that put the names of changed rows into the outbox, inside Rucio's own transaction (R7.1).

Names only: the drain reads the rows again, so the order of changes does not matter, and a change that is undone before the drain is none.
Filtered by what is shared: scopes marked so, and DIDs that the catalogue shows already. Open-data entries are all
captured, since PUBLIC shares what was private; the drain decides. Updates count only where a shared column differs.

Row-level triggers for SQLite; the statement-level ones for PostgreSQL are written in `pg_triggers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection, delete, func, insert, select, text

from nsync.errors import ConfigError
from nsync.namespace import fields
from nsync.rucio_bridge import pg_triggers
from nsync.rucio_bridge.pg_triggers import Captured
from nsync.store import schema

PREFIX = "nsync_capture_"

DID, ATTACHMENT, REPLICA, RSE, SCOPE, CONSTITUENT = "did", "attachment", "replica", "rse", "scope", "constituent"
"""Kinds of outbox rows: (scope, name) · (scope, name, child scope, child name) · (scope, name, RSE id) · (RSE id) · (scope) ·
(archive's scope, name, child scope, child name). What hangs on a DID alone (its metadata, its open data) is told as the DID."""

_DID = ("scope", "name")
_EDGE = ("scope", "name", "child_scope", "child_name")
_IDENTITY = ("did_type", "is_open", "bytes", "adler32", "md5")
_FLAGS = (fields.MONOTONIC, fields.HIDDEN, fields.OBSOLETE)
_PROTOCOL = ("scheme", "hostname", "port", "prefix", "impl", "read_lan", "read_wan", "third_party_copy_read")

_IN_SHARED_SCOPE = "EXISTS (SELECT 1 FROM nsync_shared_scope s WHERE s.scope = {row}.scope)"
_SHARED = (
    f"({_IN_SHARED_SCOPE} OR EXISTS (SELECT 1 FROM nsync_entry e WHERE e.kind = 2 AND e.scope = {{row}}.scope AND e.name = {{row}}.name))"
)
_ALL = "1 = 1"

CAPTURED = (
    Captured("scopes", SCOPE, ("scope",), (), _IN_SHARED_SCOPE),
    Captured("dids", DID, _DID, (*_IDENTITY, *_FLAGS, *fields.METADATA), _SHARED),
    Captured("did_meta", DID, _DID, ("meta",), _SHARED),
    Captured("contents", ATTACHMENT, _EDGE, (), _SHARED),
    Captured("archive_contents", CONSTITUENT, _EDGE, (), _SHARED),
    Captured("replicas", REPLICA, (*_DID, "rse_id"), ("state", "path", "bytes"), _SHARED),
    Captured("dids_opendata", DID, _DID, ("state",), _ALL),
    Captured("dids_opendata_doi", DID, _DID, ("doi",), _ALL),
    Captured("dids_opendata_record", DID, _DID, ("record_id",), _ALL),
    Captured("dids_opendata_meta", DID, _DID, ("meta",), _ALL),
    Captured("rses", RSE, ("id",), ("rse", "deterministic", "deleted"), _ALL),
    Captured("rse_protocols", RSE, ("rse_id",), _PROTOCOL, _ALL),
    Captured("rse_attr_map", RSE, ("rse_id",), ("value",), _ALL),
)


def statements(dialect: str = "sqlite") -> list[str]:
    """The SQL that makes the triggers: what a database administrator may read before they allow it."""
    if dialect == "postgresql":
        return list(pg_triggers.statements(PREFIX, CAPTURED))
    return [
        _trigger(table, kind, names, event, columns, shared)
        for table, kind, names, columns, shared in CAPTURED
        for event in ("INSERT", "DELETE", *(["UPDATE"] if columns else []))
    ]


def _trigger(table: str, kind: str, names: Sequence[str], event: str, columns: Sequence[str], shared: str) -> str:
    row = "OLD" if event == "DELETE" else "NEW"
    when = shared.format(row=row)
    if event == "UPDATE":
        when = f"({' OR '.join(f'OLD.{c} IS NOT NEW.{c}' for c in columns)}) AND {when}"
    of = f" OF {', '.join(columns)}" if event == "UPDATE" else ""
    into = ", ".join("abcd"[: len(names)])
    values = ", ".join(f"{row}.{name}" for name in names)
    return (
        f"CREATE TRIGGER {PREFIX}{table}_{event.lower()} AFTER {event}{of} ON {table} WHEN {when} "
        f"BEGIN INSERT INTO nsync_outbox (kind, {into}) VALUES ('{kind}', {values}); END"
    )


def install(connection: Connection) -> None:
    """Make the triggers, anew if there are older ones, and let everything that may be shared be looked at once more.

    What is there already makes an op only where it differs from the catalogue, so this is right for a first installation, after a
    time without triggers, and for nothing at all.
    """
    remove(connection)
    for statement in statements(connection.dialect.name):
        connection.exec_driver_sql(statement)
    connection.execute(text("INSERT INTO nsync_outbox (kind, a, b) SELECT 'did', scope, name FROM dids_opendata"))
    for scope in connection.execute(select(schema.shared_scope.c.scope)).scalars().all():
        _look_at(connection, scope)


def remove(connection: Connection) -> None:
    """Drop the triggers. They go before the tables: one that finds no outbox would abort Rucio's own writes."""
    if _dialect(connection) == "postgresql":
        pg_triggers.remove(connection, PREFIX)
        return
    for name in installed(connection):
        connection.execute(text(f"DROP TRIGGER {name}"))


def installed(connection: Connection) -> list[str]:
    """The names of nsync's triggers in this database."""
    if connection.dialect.name == "postgresql":
        return pg_triggers.installed(connection, PREFIX)
    query = text("SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE :prefix ORDER BY name")
    return list(connection.execute(query, {"prefix": PREFIX + "%"}).scalars())


def missing(connection: Connection) -> list[str]:
    """The names of triggers that should be there and are not."""
    made = (statement.split() for statement in statements(_dialect(connection)))
    wanted = [words[2] for words in made if words[1] == "TRIGGER"]
    return sorted(set(wanted) - set(installed(connection)))


@contextmanager
def unheard(connection: Connection) -> Iterator[None]:
    """What this connection writes within is not captured. On SQLite nobody else writes in between."""
    if connection.dialect.name == "postgresql":
        with pg_triggers.unheard(connection):
            yield
        return
    last = connection.execute(select(func.max(schema.outbox.c.id))).scalar() or 0
    yield
    connection.execute(delete(schema.outbox).where(schema.outbox.c.id > last))


def share(connection: Connection, scopes: set[str]) -> None:
    """Make `scopes` the shared ones. What a newly shared scope holds already goes into the outbox, to be published."""
    held = set(connection.execute(select(schema.shared_scope.c.scope)).scalars())
    for scope in sorted(held - scopes):
        connection.execute(delete(schema.shared_scope).where(schema.shared_scope.c.scope == scope))
    for scope in sorted(scopes - held):
        connection.execute(insert(schema.shared_scope).values(scope=scope))
        _look_at(connection, scope)


def _look_at(connection: Connection, scope: str) -> None:
    """Put everything in `scope` into the outbox."""
    for statement in (
        "INSERT INTO nsync_outbox (kind, a) SELECT 'scope', scope FROM scopes WHERE scope = :scope",
        "INSERT INTO nsync_outbox (kind, a, b) SELECT 'did', scope, name FROM dids WHERE scope = :scope",
        "INSERT INTO nsync_outbox (kind, a, b, c, d) "
        "SELECT 'attachment', scope, name, child_scope, child_name FROM contents WHERE scope = :scope",
        "INSERT INTO nsync_outbox (kind, a, b, c, d) "
        "SELECT 'constituent', scope, name, child_scope, child_name FROM archive_contents WHERE scope = :scope",
        "INSERT INTO nsync_outbox (kind, a, b, c) "
        "SELECT 'replica', scope, name, replace(CAST(rse_id AS VARCHAR(36)), '-', '') FROM replicas WHERE scope = :scope",
    ):
        connection.execute(text(statement), {"scope": scope})


def _dialect(connection: Connection) -> str:
    if connection.dialect.name not in ("sqlite", "postgresql"):
        raise ConfigError(f"capture on {connection.dialect.name} is not there; nsync works beside Rucio on SQLite")
    return connection.dialect.name
