"""The rows that the store wrote, written again with nothing else to do: executemany into SQLite, COPY into PostgreSQL.

Same tables and indexes, about the order in which the rows came, in as many transactions, each as durable. Within a transaction
each table's rows come in the order of its primary key, the fastest there is. Reading and sorting count for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, Callable

from sqlalchemy import Connection, Engine, Table, func, select

from benchmarks.rows import Spent
from benchmarks.subject import METADATA

ARRIVAL = ("arrival", "seq", "first", "log", "author", "id")
"""Columns that tell the order in which rows came, where a table has them."""

Row = Sequence[Any]
Insert = Callable[[Connection, Table, Sequence[Row]], None]


def write_again(source: Engine, target: Engine, transactions: int) -> Spent:
    """Write the rows of `source` into the empty database `target`."""
    METADATA.create_all(target)
    insert = {"sqlite": insert_many, "postgresql": copy_in}[target.dialect.name]
    cpu = wall = 0.0
    with source.connect() as reading, target.connect() as writing:
        for turn in _turns(reading, transactions):
            cpu_began, wall_began = time.process_time(), time.perf_counter()
            with writing.begin():
                for table, rows in turn:
                    insert(writing, table, rows)
            cpu, wall = cpu + time.process_time() - cpu_began, wall + time.perf_counter() - wall_began
    return Spent(cpu, wall)


def _turns(reading: Connection, transactions: int) -> Iterator[list[tuple[Table, list[Row]]]]:
    """Each table's rows in `transactions` equal parts, in the order of arrival."""
    parts = []
    for table in METADATA.sorted_tables:
        size = reading.execute(select(func.count()).select_from(table)).scalar_one()
        if size:
            query = select(table).order_by(*(table.c[name] for name in ARRIVAL if name in table.c))
            rows = reading.execution_options(stream_results=True).execute(query)
            parts.append((table, rows, -(-size // transactions)))
    while parts:
        turn: list[tuple[Table, list[Row]]] = [(table, _sorted(table, rows.fetchmany(part))) for table, rows, part in parts]
        parts = [part for part, (_, rows) in zip(parts, turn) if rows]
        if parts:
            yield [(table, rows) for table, rows in turn if rows]


def _sorted(table: Table, rows: Iterable[Row]) -> list[Row]:
    order = [index for index, column in enumerate(table.columns) if column.primary_key]
    return sorted((tuple(row) for row in rows), key=lambda row: [row[index] for index in order])


def insert_many(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    sql = f"INSERT INTO {table.name} ({columns}) VALUES ({', '.join('?' * len(table.columns))})"
    with closing(connection.connection.cursor()) as cursor:
        cursor.executemany(sql, rows)


def copy_in(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    driver: Any = connection.connection.driver_connection
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    with driver.cursor() as cursor:
        oids = "SELECT atttypid::int FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
        types = [oid for (oid,) in cursor.execute(oids, (table.name,))]
        with cursor.copy(f"COPY {table.name} ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(types)
            for row in rows:
                copy.write_row(row)
