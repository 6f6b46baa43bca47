"""Rows on their way into Rucio's tables: they are staged in temporary tables and move on with one statement for all of them.

So what Rucio copies from other rows is copied by the database, and constants are not sent a million times. A staged table is filled
anew for each part of a changeset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    MetaData,
    String,
    Table,
    Update,
    and_,
    delete,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateTable

from nsync.store.bulk import bulk_insert

_METADATA = MetaData()


def staged(name: str, *columns: Column[Any]) -> Table:
    """A table to stage rows in."""
    return Table(f"nsync_stage_{name}", _METADATA, *columns, prefixes=["TEMPORARY"], postgresql_on_commit="DELETE ROWS")


def text(name: str) -> Column[str]:
    """A column of text; also of what Rucio holds as an enumeration or a GUID, which are cast."""
    return Column(name, String)


def number(name: str) -> Column[int]:
    """A column of whole numbers."""
    return Column(name, BigInteger)


def flag(name: str) -> Column[bool]:
    """A column of true and false."""
    return Column(name, Boolean)


DID_NAMES = staged("dids", text("scope"), text("name"))
EDGES = staged("edges", text("scope"), text("name"), text("child_scope"), text("child_name"))
PLACES = staged("places", text("scope"), text("name"), text("rse_id"), text("path"), text("state"))
SIZES = staged("sizes", text("scope"), text("name"), number("length"), number("bytes"), number("events"))


class Stage:
    """The staged tables of one transaction."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._used: set[str] = set()

    def make(self) -> None:
        """Make all of them; they stay with the connection."""
        connection = self.session.connection()
        for table in _METADATA.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
            if connection.dialect.name == "sqlite":
                connection.execute(delete(table))

    def put(self, table: Table, rows: Sequence[tuple[Any, ...]]) -> Table:
        """Fill `table` with `rows` and nothing else; returns it."""
        connection = self.session.connection()
        if table.name in self._used:
            connection.exec_driver_sql(f"{'DELETE FROM' if connection.dialect.name == 'sqlite' else 'TRUNCATE'} {table.name}")
        self._used.add(table.name)
        bulk_insert(connection, table.name, [column.name for column in table.columns], rows)
        return table


def same(table: Table, stage: Table, *names: str) -> ColumnElement[bool]:
    """The condition that a row of `table` is the one that is staged, by the columns `names`."""
    return and_(*(table.c[name] == stage.c[name] for name in names))


def delete_staged(session: Session, table: Table, stage: Table, *names: str) -> int:
    """Delete the rows of `table` that are staged; returns how many those were."""
    if session.connection().dialect.name == "sqlite":
        within: ColumnElement[bool] = tuple_(*(table.c[name] for name in names)).in_(select(*(stage.c[name] for name in names)))
    else:
        within = same(table, stage, *names)
    return int(session.execute(delete(table).where(within)).rowcount)  # type: ignore[attr-defined]


def update_staged(table: Table, stage: Table, *names: str) -> Update:
    """An update of the rows of `table` that are staged."""
    return update(table).where(same(table, stage, *names))


@contextmanager
def probing(connection: Connection) -> Iterator[None]:
    """Within, PostgreSQL finds the rows for what is staged by their keys, one by one, however little it knows of the stage: a join that
    reads a table of Rucio's from end to end may take an hour."""
    if connection.dialect.name != "postgresql":
        yield
        return
    settings = ("enable_hashjoin", "enable_mergejoin", "enable_seqscan")
    connection.exec_driver_sql("; ".join(f"SET LOCAL {name} = off" for name in settings))
    yield
    connection.exec_driver_sql("; ".join(f"SET LOCAL {name} TO DEFAULT" for name in settings))
