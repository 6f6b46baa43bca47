"""Rows on their way into Rucio's tables: they are staged in temporary tables and move on with one statement for all of them.

So what Rucio copies from other rows is copied by the database, and constants are not sent a million times. A staged table is filled
anew for each part of a changeset; what is gathered stays until the transaction ends.
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
    Enum,
    Integer,
    MetaData,
    String,
    Table,
    and_,
    cast,
    delete,
    func,
    literal,
    select,
    tuple_,
)
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateTable

from nsync.rucio_bridge.metadata import COLUMNS, DIDS, FLAGS
from nsync.store.bulk import bulk_insert

_METADATA = MetaData()


def _staged(name: str, *columns: Column[Any]) -> Table:
    return Table(f"nsync_stage_{name}", _METADATA, *columns, prefixes=["TEMPORARY"], postgresql_on_commit="DELETE ROWS")


def _text(*names: str) -> list[Column[Any]]:
    """Text; also of what Rucio holds as an enumeration or a GUID, which are cast."""
    return [Column(name, String) for name in names]


def _number(*names: str) -> list[Column[Any]]:
    return [Column(name, BigInteger) for name in names]


def _metadata(name: str) -> Column[Any]:
    kind = DIDS.c[name].type
    return Column(name, Boolean if isinstance(kind, Boolean) else BigInteger if isinstance(kind, Integer) else String)


NEW_DIDS = _staged(
    "new_dids",
    *_text("scope", "name", "account", "did_type", "adler32", "md5"),
    *_number("bytes"),
    *map(_metadata, (*FLAGS, *COLUMNS)),
)
NAMES = _staged("names", *_text("scope", "name"))
EDGES = _staged("edges", *_text("scope", "name", "child_scope", "child_name"))
PLACES = _staged("places", *_text("scope", "name", "rse_id", "path", "state"))
REEVALUATED = _staged("reevaluated", *_text("scope", "name", "action"))
"""Gathered: collections whose content changed, with the letter of what their rules are to be evaluated for."""
RESIZED = _staged("resized", *_text("scope", "name"))
"""Gathered: collections whose sizes may have changed."""
SIZES = _staged("sizes", *_text("scope", "name"), *_number("length", "bytes", "events"))


class Stage:
    """The staged tables of one transaction; each is made when it is used first."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._made: set[str] = set()

    def put(self, table: Table, rows: Sequence[tuple[Any, ...]], columns: Sequence[str] = ()) -> Table:
        """Fill `table` with `rows`, of `columns` or all, and nothing else; returns it."""
        if self._is_used(table):
            self._empty(table)
        bulk_insert(self.session.connection(), table.name, columns or [column.name for column in table.columns], rows)
        return table

    def gather(self, table: Table, rows: Any) -> None:
        """Add the rows of the SELECT `rows` to `table`, but those that are there."""
        self._is_used(table)
        names = [column.name for column in table.columns]
        self.session.execute(table.insert().from_select(names, rows.except_(select(*table.columns))))

    def gathered(self, table: Table) -> Table:
        """`table`, also when nothing came into it."""
        self._is_used(table)
        return table

    def _is_used(self, table: Table) -> bool:
        """Whether this transaction made `table` ready before; it is now. Tables stay with their connection, and so may their rows."""
        if table.name in self._made:
            return True
        self._made.add(table.name)
        self.session.execute(CreateTable(table, if_not_exists=True))
        self.session.execute(delete(table))
        return False

    def _empty(self, table: Table) -> None:
        connection = self.session.connection()
        connection.exec_driver_sql(f"{'DELETE FROM' if connection.dialect.name == 'sqlite' else 'TRUNCATE'} {table.name}")


def same(table: Any, stage: Any, *names: str) -> ColumnElement[bool]:
    """The condition that a row of `table` is the one that is staged, by the columns `names`.

    GUIDs are compared as text, so that no index on them alone is used: PostgreSQL would read all replicas of an RSE for each of them."""
    return and_(*(_as_staged(table.c[name]) == stage.c[name] for name in names))


def _as_staged(column: Any) -> Any:
    return func.replace(cast(column, String), "-", "") if type(column.type).__name__ == "GUID" else column


def as_in(column: Any, value: Any) -> Any:
    """`value`, text in a staged table or of another enumeration, as `column` holds it."""
    if isinstance(column.type, Enum):
        return cast(cast(value, String), column.type)
    return cast(value, column.type) if type(column.type).__name__ == "GUID" else value


def known(session: Session, table: Table, stage: Table, *names: str) -> int:
    """How many of the staged rows `table` has."""
    query = select(func.count()).select_from(stage).join(table, same(table, stage, *names))
    return int(session.execute(query).scalar_one())


def leave_known(session: Session, table: Table, stage: Table, *names: str) -> None:
    """Take from the stage what `table` has."""
    there = select(literal(1)).where(same(table, stage, *names)).correlate(stage).exists()
    session.execute(delete(stage).where(there))


def delete_staged(session: Session, table: Table, stage: Table, names: Sequence[str], *conditions: ColumnElement[bool]) -> int:
    """Delete the rows of `table` that are staged; returns how many those were."""
    if session.connection().dialect.name == "sqlite":
        keys = select(*(stage.c[name] for name in names))
        within: ColumnElement[bool] = tuple_(*(table.c[name] for name in names)).in_(keys)
    else:
        within = same(table, stage, *names)
    return int(session.execute(delete(table).where(within, *conditions)).rowcount)  # type: ignore[attr-defined]


@contextmanager
def probing(connection: Connection) -> Iterator[None]:
    """Within, PostgreSQL finds the rows for what is staged by their keys, one by one, however little it knows of the stage: a join that
    reads a table of Rucio's from end to end may take an hour. And it checks foreign keys by plans that it keeps: with new ones for
    each row, as transactions that write have them else (store.database), a check takes four times as long."""
    if connection.dialect.name != "postgresql":
        yield
        return
    connection.exec_driver_sql(_PROBE)
    yield
    connection.exec_driver_sql(_AS_BEFORE)


_METHODS = ("enable_hashjoin", "enable_mergejoin", "enable_seqscan")
_PROBE = "; ".join([*(f"SET LOCAL {name} = off" for name in _METHODS), "SET LOCAL plan_cache_mode = auto"])
_AS_BEFORE = "; ".join([*(f"SET LOCAL {name} TO DEFAULT" for name in _METHODS), "SET LOCAL plan_cache_mode = force_custom_plan"])
