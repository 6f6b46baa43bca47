"""The triggers of `triggers.py` for PostgreSQL: one for each statement and not for each row (R7.1).

A trigger for each statement sees what was changed as a table, so that a bulk load costs one INSERT … SELECT into the outbox. What the
bridge writes itself is left out by `SET LOCAL nsync.origin = 'bridge'`. Each function keeps the search_path of who installs it:
a name that is not found would abort Rucio's own write. Nothing notifies: it would cost Rucio's writers half their commits
(docs/adr/0015).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from sqlalchemy import Connection, text

_ORIGIN = "current_setting('nsync.origin', true) IS NOT DISTINCT FROM 'bridge'"
_UUIDS = ("id", "rse_id")
_JSON = ("meta",)
"""Columns of a type that has no equality."""


class Captured(NamedTuple):
    """What is captured of one of Rucio's tables."""

    table: str
    kind: str
    names: Sequence[str]
    """The columns that name the row."""
    columns: Sequence[str]
    """Those whose update counts."""
    shared: str
    """Which rows, of `{row}`."""


def statements(prefix: str, captured: Sequence[Captured]) -> Iterator[str]:
    """The SQL that makes functions and triggers."""
    for one in captured:
        for event in ("INSERT", "DELETE", *(["UPDATE"] if one.columns else [])):
            yield from _trigger(
                f"{prefix}{one.table}_{event.lower()}", event, one.table, f"IF {_ORIGIN} THEN RETURN NULL; END IF; {_into(one, event)}"
            )


def _trigger(name: str, event: str, table: str, body: str) -> Iterator[str]:
    tables = {"INSERT": "NEW TABLE AS changed", "DELETE": "OLD TABLE AS changed", "UPDATE": "OLD TABLE AS was NEW TABLE AS changed"}[event]
    yield (f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$ BEGIN {body} RETURN NULL; END $$")
    yield f"CREATE TRIGGER {name} AFTER {event} ON {table} REFERENCING {tables} FOR EACH STATEMENT EXECUTE FUNCTION {name}()"


def _into(one: Captured, event: str) -> str:
    """The INSERT into the outbox. Of an update those rows count that were not there before with the same shared columns."""
    values = ", ".join(f"replace(r.{name}::text, '-', '')" if name in _UUIDS else f"r.{name}" for name in one.names)
    into = f"INSERT INTO nsync_outbox (kind, {', '.join('abcd'[: len(one.names)])})"
    return f"{into} SELECT DISTINCT '{one.kind}', {values} FROM {_source(one, event)} r WHERE {one.shared.format(row='r')};"


def _source(one: Captured, event: str) -> str:
    if event != "UPDATE":
        return "changed"
    columns = ", ".join((*one.names, *(f"{c}::text" if c in _JSON else c for c in one.columns)))
    return f"(SELECT {columns} FROM changed EXCEPT SELECT {columns} FROM was)"


def installed(connection: Connection, prefix: str) -> list[str]:
    """The names of the triggers that begin with `prefix`, in the schemas that are searched."""
    query = text(
        "SELECT t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid "
        "WHERE NOT t.tgisinternal AND starts_with(t.tgname, :prefix) AND pg_table_is_visible(c.oid) ORDER BY 1"
    )
    return list(connection.execute(query, {"prefix": prefix}).scalars())


def remove(connection: Connection, prefix: str) -> None:
    """Drop them with their functions."""
    for name in installed(connection, prefix):
        connection.execute(text(f"DROP FUNCTION {name}() CASCADE"))


@contextmanager
def unheard(connection: Connection) -> Iterator[None]:
    """What this connection writes within is not captured; an error ends the transaction, and the setting with it."""
    connection.exec_driver_sql("SET LOCAL nsync.origin = 'bridge'")
    yield
    connection.exec_driver_sql("SET LOCAL nsync.origin = ''")
