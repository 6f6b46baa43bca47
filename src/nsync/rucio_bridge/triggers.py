"""The triggers that put the names of changed rows into the outbox, inside Rucio's own transaction (R7.1).

Row-level triggers for SQLite; the statement-level ones for PostgreSQL are written in `pg_triggers`. On SQLite a trigger cannot trap an
error: one that finds no outbox makes Rucio's own write fail, so triggers go before the tables.

A trigger is known by its text, so that an older nsync's is told from this one's. Whoever makes or renews one asks for a full audit in the
same transaction: what changed while it was not there is found by that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Optional

from sqlalchemy import Connection, Engine, delete, func, insert, select, text
from sqlalchemy.exc import OperationalError

from nsync.errors import ConfigError
from nsync.rucio_bridge import audit, pg_triggers
from nsync.rucio_bridge.captured import CAPTURED as CAPTURED
from nsync.rucio_bridge.captured import Captured
from nsync.rucio_bridge.pg_triggers import Trigger
from nsync.store import schema
from nsync.store.database import writing

PREFIX = "nsync_capture_"

LOCK_WAIT_MS_MAX = 2000
"""How long a trigger that is made or dropped waits for its table on PostgreSQL: Rucio's own writers queue behind it meanwhile."""
TRIES_MAX = 30

_LOCKED = ("55P03", "40P01")
"""lock_not_available, deadlock_detected."""


def wanted(connection: Connection) -> list[Trigger]:
    """The triggers of this nsync for this database."""
    if _dialect(connection) == "postgresql":
        return list(pg_triggers.wanted(pg_triggers.schema_of(connection), PREFIX, CAPTURED))
    return [_trigger(one, event) for one in CAPTURED for event in one.events]


def _trigger(one: Captured, event: str) -> Trigger:
    row = "OLD" if event == "DELETE" else "NEW"
    when = one.shared.format(row=row, schema="")
    if event == "UPDATE":
        when = f"({' OR '.join(f'OLD.{c} IS NOT NEW.{c}' for c in one.columns)}) AND {when}"
    of = f" OF {', '.join(one.columns)}" if event == "UPDATE" else ""
    into = ", ".join("abcd"[: len(one.names)])
    values = ", ".join(f"{row}.{name}" for name in one.names)
    name = f"{PREFIX}{one.table}_{event.lower()}"
    sql = (
        f"CREATE TRIGGER {name} AFTER {event}{of} ON {one.table} WHEN {when} "
        f"BEGIN INSERT INTO nsync_outbox (kind, {into}) VALUES ('{one.kind}', {values}); END"
    )
    return Trigger(name, one.table, (sql,), sql)


# ---- what is there


def installed(connection: Connection) -> Mapping[str, str]:
    """nsync's triggers in this database: their texts by name."""
    if connection.dialect.name == "postgresql":
        return pg_triggers.installed(connection, PREFIX)
    query = text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name LIKE :prefix ORDER BY name")
    return {name: sql for name, sql in connection.execute(query, {"prefix": PREFIX + "%"})}


def missing(connection: Connection) -> list[str]:
    """The names of triggers that should be there and are not."""
    there = installed(connection)
    return sorted(one.name for one in wanted(connection) if one.name not in there)


def outdated(connection: Connection) -> list[str]:
    """The names of triggers that are there and are not as this nsync makes them, or are switched off."""
    texts = {one.name: one.text for one in wanted(connection)}
    return sorted(name for name, found in installed(connection).items() if texts.get(name) != found)


# ---- making and dropping them


def installation(connection: Connection, capturing: bool = True) -> dict[str, list[str]]:
    """The SQL that makes the triggers of each table as they should be, or drops them all where polls capture: nothing where they are."""
    there, made = installed(connection), wanted(connection) if capturing else []
    names = {one.name for one in made}
    sql = {"": [_drop(connection, name) for name in there if name not in names]}
    for one in made:
        if there.get(one.name) != one.text:
            sql.setdefault(one.table, []).extend([_drop(connection, one.name)] if one.name in there else [])
            sql[one.table].extend(one.statements)
    return {table: statements for table, statements in sql.items() if statements}


def removal(connection: Connection) -> list[str]:
    """The SQL that drops the triggers."""
    return [_drop(connection, name) for name in installed(connection)]


def install(connection: Connection) -> None:
    """Make the triggers as they should be, in one transaction, and let everything that may be shared be looked at once more.

    What is there already makes an op only where it differs from the catalogue, so this is right for a first installation, after a
    time without triggers, and for nothing at all.
    """
    for statements in installation(connection).values():
        _execute(connection, statements)
    audit.ask(connection, "triggers were installed")


def remove(connection: Connection) -> None:
    """Drop the triggers, in one transaction."""
    _execute(connection, removal(connection))


def install_beside(engine: Engine, capturing: bool = True) -> int:
    """`install` beside a Rucio that works: a short transaction for each table, so that nobody waits long and none for two of them.

    Returns how many tables got other triggers.
    """
    with engine.connect() as connection:
        tables = installation(connection, capturing)
    for statements in tables.values():
        _in_turn(engine, statements, "triggers were installed")
    return len(tables)


def remove_beside(engine: Engine) -> int:
    """`remove` in the same way; returns how many triggers there were."""
    with engine.connect() as connection:
        statements = removal(connection)
    for statement in statements:
        _in_turn(engine, [statement], None)
    return len(statements)


def _in_turn(engine: Engine, statements: Sequence[str], reason: Optional[str]) -> None:
    """Run `statements` in a transaction that gives way to Rucio's, and is begun anew then. Raises OperationalError."""
    for left in reversed(range(TRIES_MAX)):
        try:
            with writing(engine) as connection:
                if connection.dialect.name == "postgresql":
                    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_WAIT_MS_MAX}")
                _execute(connection, statements)
                if reason is not None:
                    audit.ask(connection, reason)
            return
        except OperationalError as error:
            if not left or getattr(error.orig, "sqlstate", None) not in _LOCKED:
                raise
            time.sleep(LOCK_WAIT_MS_MAX / 1000)


def _execute(connection: Connection, statements: Sequence[str]) -> None:
    for statement in statements:
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def _drop(connection: Connection, name: str) -> str:
    return pg_triggers.removal(connection, name) if connection.dialect.name == "postgresql" else f"DROP TRIGGER {name}"


# ---- what is heard


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
    """Make `scopes` the shared ones. What a newly shared scope holds already is looked at, and published."""
    held = set(connection.execute(select(schema.shared_scope.c.scope)).scalars())
    for scope in sorted(held - scopes):
        connection.execute(delete(schema.shared_scope).where(schema.shared_scope.c.scope == scope))
    for scope in sorted(scopes - held):
        connection.execute(insert(schema.shared_scope).values(scope=scope))
        audit.ask(connection, f"scope {scope} is shared", scope)


def qualified(connection: Connection, table: str) -> str:
    """How SQL that somebody else runs names a table of nsync's."""
    return f"{pg_triggers.schema_of(connection)}.{table}" if connection.dialect.name == "postgresql" else table


def _dialect(connection: Connection) -> str:
    if connection.dialect.name not in ("sqlite", "postgresql"):
        raise ConfigError(f"capture on {connection.dialect.name} is not there; nsync works beside Rucio on SQLite and PostgreSQL")
    return connection.dialect.name
