"""Transactions: leaving without an error commits, anything else rolls back.

On SQLite a transaction that will write says so at its start (BEGIN IMMEDIATE): one that began by reading could not wait for another
writer, whatever the time-out (docs/adr/0003).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Connection, Engine

from nsync.store import schema

CHUNK = 400
"""Keys asked for in one statement: below every back-end's limit of bound parameters."""

T = TypeVar("T")


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A connection in a transaction that may write."""
    with engine.begin() as connection:
        begin_writing(connection)
        yield connection


def begin_writing(connection: Connection) -> None:
    """Take the write lock now, where the back-end has one for the whole database."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def create_tables(engine: Engine) -> None:
    """Make the nsync tables in a stand-alone database. Beside Rucio, migrations do (store.migrations)."""
    schema.metadata.create_all(engine)


def chunks(items: Collection[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    """`items` in runs of at most `size`."""
    ordered = list(items)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]
