"""The floors of the bridge: exactly the rows of dids, contents and replicas that Materialise wrote, with nothing else to do.

They go into the same tables with their indexes and foreign keys, in one transaction, committed, in a database equal to that of the
receiver but without nsync's triggers. They lie ready: in temporary tables for INSERT … SELECT, as the bytes of a binary COPY, as bound
tuples for executemany.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from benchmarks.instances import DATASET, TABLES, settle_disk, timed
from benchmarks.rows import Spent

Rows = Mapping[str, Any]
"""By table: tuples on SQLite, the bytes of COPY on PostgreSQL."""

INSERT_SELECT, COPY, EXECUTEMANY = "INSERT … SELECT", "COPY", "executemany"
WAYS = {"sqlite": (EXECUTEMANY, INSERT_SELECT), "postgresql": (COPY, INSERT_SELECT)}


def exported(instance: Any) -> Rows:
    """What was written of the dataset."""
    found: dict[str, Any] = {}
    with closing(instance.engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
        for table in TABLES:
            query = f"SELECT * FROM {table} WHERE {_of_dataset(table)}"
            if instance.engine.dialect.name == "sqlite":
                found[table] = cursor.execute(query).fetchall()
                continue
            with cursor.copy(f"COPY ({query}) TO STDOUT (FORMAT BINARY)") as copy:
                found[table] = b"".join(map(bytes, copy))
    return found


def _of_dataset(table: str) -> str:
    return f"name = '{DATASET}'" if table == "contents" else "name NOT LIKE 'seed%'"


def bare(instance: Any) -> None:
    """Without nsync's triggers."""
    from nsync.rucio_bridge import triggers
    from nsync.store.database import writing

    with writing(instance.engine) as connection:
        triggers.remove(connection)


def write(instance: Any, rows: Rows, way: str) -> Spent:
    """The rows into the tables, in the way `way`."""
    fill = _copy if instance.engine.dialect.name == "postgresql" else _executemany
    with closing(instance.engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
        for table in TABLES if way == INSERT_SELECT else ():
            cursor.execute(f"CREATE TEMPORARY TABLE staged_{table} AS SELECT * FROM {table} LIMIT 0")
            fill(cursor, f"staged_{table}", rows[table])
            cursor.execute(f"ANALYZE staged_{table}")
        connection.commit()
        settle_disk(instance)

        def work() -> None:
            for table in TABLES:
                if way == INSERT_SELECT:
                    cursor.execute(f"INSERT INTO {table} SELECT * FROM staged_{table}")
                else:
                    fill(cursor, table, rows[table])
            connection.commit()

        return timed(instance, work)


def _copy(cursor: Any, table: str, rows: bytes) -> None:
    with cursor.copy(f"COPY {table} FROM STDIN (FORMAT BINARY)") as copy:
        copy.write(rows)


def _executemany(cursor: Any, table: str, rows: list[tuple[Any, ...]]) -> None:
    cursor.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
