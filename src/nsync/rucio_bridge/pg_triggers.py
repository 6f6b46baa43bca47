"""The triggers of `triggers.py` for PostgreSQL: one for each statement and not for each row (R7.1).

A trigger for each statement sees what was changed as a table, so that a bulk load costs one INSERT … SELECT into the outbox. What the
bridge writes itself is left out by `SET LOCAL nsync.origin = 'bridge'`. Nothing notifies: it would cost Rucio's writers half their
commits (docs/adr/0015).

A broken nsync never makes a write of Rucio's fail: each function traps its own errors, warns, and leaves a mark in nsync_audit, if it
can, so that a full audit finds what was not captured. Every name has its schema, and functions run with a search_path of
their own and the rights of who installed them, so that it does not matter who writes into Rucio's tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import NamedTuple

from sqlalchemy import Connection, text

from nsync.rucio_bridge.captured import Captured

_ORIGIN = "current_setting('nsync.origin', true) IS NOT DISTINCT FROM 'bridge'"
_UUIDS = ("id", "rse_id")
_JSON = ("meta",)
"""Columns of a type that has no equality."""

_TABLES = {"INSERT": "NEW TABLE AS changed", "DELETE": "OLD TABLE AS changed", "UPDATE": "OLD TABLE AS was NEW TABLE AS changed"}

_BODY = """
BEGIN
  IF {origin} THEN RETURN NULL; END IF;
  BEGIN
    {into};
  EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'nsync: a change of % was not captured: %', TG_RELID::regclass, SQLERRM
      USING HINT = 'nsync bridge check; a full audit will find the change';
    BEGIN
      INSERT INTO {schema}.nsync_audit (reason) VALUES (left(TG_NAME || ': ' || SQLERRM, 1000));
    EXCEPTION WHEN OTHERS THEN
      RAISE WARNING 'nsync: there is no mark for a full audit: %', SQLERRM USING HINT = 'run: nsync bridge install';
    END;
  END;
  RETURN NULL;
END"""


class Trigger(NamedTuple):
    """One trigger: the statements that make it, and the text by which the database knows it."""

    name: str
    table: str
    statements: Sequence[str]
    text: str


def schema_of(connection: Connection) -> str:
    """The schema in which the nsync tables and Rucio's are, as SQL writes it: the first one that this connection searches."""
    return str(connection.execute(text("SELECT quote_ident(current_schema())")).scalar_one())


def wanted(schema: str, prefix: str, captured: Sequence[Captured]) -> Iterator[Trigger]:
    """All triggers, each with its function. What is emptied by TRUNCATE is found by an audit."""
    for one in captured:
        for event in one.events:
            yield _trigger(schema, prefix, one, event, f" REFERENCING {_TABLES[event]}", _into(schema, one, event))
        emptied = f"INSERT INTO {schema}.nsync_audit (reason) VALUES ('{one.table} was emptied by TRUNCATE')"
        yield _trigger(schema, prefix, one, "TRUNCATE", "", emptied)


def _trigger(schema: str, prefix: str, one: Captured, event: str, referencing: str, into: str) -> Trigger:
    name = f"{prefix}{one.table}_{event.lower()}"
    make = f"CREATE TRIGGER {name} AFTER {event} ON {schema}.{one.table}{referencing} FOR EACH STATEMENT EXECUTE FUNCTION {schema}.{name}()"
    body = _BODY.format(schema=schema, origin=_ORIGIN, into=into)
    body += f"\n-- {blake2b((make + body).encode(), digest_size=8).hexdigest()}\n"  # one text for both: PostgreSQL keeps only this one
    function = (
        f"CREATE FUNCTION {schema}.{name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER "
        f"SET search_path = pg_catalog, pg_temp AS $nsync${body}$nsync$"
    )
    return Trigger(name, one.table, (function, make), body)


def _into(schema: str, one: Captured, event: str) -> str:
    """The INSERT into the outbox. Of an update those rows count that were not there before with the same shared columns."""
    values = ", ".join(f"replace(r.{name}::text, '-', '')" if name in _UUIDS else f"r.{name}" for name in one.names)
    into = f"INSERT INTO {schema}.nsync_outbox (kind, {', '.join('abcd'[: len(one.names)])})"
    where = one.shared.format(row="r", schema=f"{schema}.")
    return f"{into} SELECT DISTINCT '{one.kind}', {values} FROM {_source(one, event)} r WHERE {where}"


def _source(one: Captured, event: str) -> str:
    if event != "UPDATE":
        return "changed"
    columns = ", ".join((*one.names, *(f"{c}::text" if c in _JSON else c for c in one.columns)))
    return f"(SELECT {columns} FROM changed EXCEPT SELECT {columns} FROM was)"


def installed(connection: Connection, prefix: str) -> Mapping[str, str]:
    """The triggers that begin with `prefix`, by name, each with the text of its function; without one where it is switched off."""
    query = text(
        "SELECT t.tgname, CASE WHEN t.tgenabled IN ('O', 'A') THEN p.prosrc ELSE '' END "
        "FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
        "JOIN pg_proc p ON p.oid = t.tgfoid "
        "WHERE NOT t.tgisinternal AND starts_with(t.tgname, :prefix) AND n.nspname = current_schema() ORDER BY 1"
    )
    return {name: source for name, source in connection.execute(query, {"prefix": prefix})}


def removal(connection: Connection, name: str) -> str:
    """The SQL that drops a trigger with its function."""
    return f"DROP FUNCTION {schema_of(connection)}.{name}() CASCADE"


@contextmanager
def unheard(connection: Connection) -> Iterator[None]:
    """What this connection writes within is not captured; an error ends the transaction, and the setting with it."""
    connection.exec_driver_sql("SET LOCAL nsync.origin = 'bridge'")
    yield
    connection.exec_driver_sql("SET LOCAL nsync.origin = ''")
