"""Databases to measure in: SQLite as nsync opens it, and a private PostgreSQL on a unix socket."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

SQLITE_CACHE_KIB = 64 << 10
Row = tuple[Any, ...]


class Database(Protocol):
    """What a layout needs."""

    def dialect(self, statement: str) -> str: ...
    def execute(self, statement: str) -> None: ...
    def query(self, statement: str) -> list[Row]: ...
    def look_up(self, statement: str, keys: Sequence[Any]) -> list[Row]: ...
    def insert(self, table: str, rows: Sequence[Row]) -> None: ...
    def upsert_slots(self, rows: Sequence[Row]) -> None: ...
    def transaction(self) -> Any: ...
    def cpu_s(self) -> float: ...
    def size(self) -> int: ...
    def __enter__(self) -> Database: ...
    def __exit__(self, *error: object) -> None: ...


_UPSERT = "ON CONFLICT (key, author) DO UPDATE SET seq = excluded.seq, n = excluded.n, value = excluded.value WHERE excluded.seq > slot.seq"


class Sqlite:
    """A file with a write-ahead log, flushed at every commit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", f"cache_size = -{SQLITE_CACHE_KIB}"):
            self.connection.execute(f"PRAGMA {pragma}")

    def dialect(self, statement: str) -> str:
        return statement.format(blob="BLOB", int64="INTEGER", clustered="WITHOUT ROWID")

    def execute(self, statement: str) -> None:
        self.connection.execute(statement)

    def query(self, statement: str) -> list[Row]:
        return self.connection.execute(statement).fetchall()

    def look_up(self, statement: str, keys: Sequence[Any]) -> list[Row]:
        return self.connection.execute(statement.format(keys=",".join("?" * len(keys))), keys).fetchall()

    def insert(self, table: str, rows: Sequence[Row], clause: str = "") -> None:
        self.connection.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * len(rows[0]))}) {clause}", rows)

    def upsert_slots(self, rows: Sequence[Row]) -> None:
        self.insert("slot", rows, _UPSERT)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        yield
        self.connection.execute("COMMIT")

    def cpu_s(self) -> float:
        return time.process_time()

    def size(self) -> int:
        """Bytes in use; the write-ahead log, whose size has a bound, is left out."""
        (pages,), (free,), (page,) = (
            self.connection.execute(f"PRAGMA {p}").fetchone() for p in ("page_count", "freelist_count", "page_size")
        )
        return int(page) * (int(pages) - int(free))

    def __enter__(self) -> Sqlite:
        return self

    def __exit__(self, *error: object) -> None:
        self.connection.close()


class Postgres:
    """A schema of its own in a server; rows come by COPY."""

    def __init__(self, url: str, schema: str) -> None:
        import psycopg

        self.connection = psycopg.connect(url.replace("+psycopg", ""), autocommit=True)
        self.connection.execute(f"CREATE SCHEMA {schema}")
        self.connection.execute(f"SET search_path = {schema}, pg_temp")
        self.schema = schema
        self.backend = self.connection.info.backend_pid

    def dialect(self, statement: str) -> str:
        return statement.format(blob="BYTEA", int64="BIGINT", clustered="")

    def execute(self, statement: str) -> None:
        self.connection.execute(statement)

    def query(self, statement: str) -> list[Row]:
        return self.connection.execute(statement).fetchall()

    def look_up(self, statement: str, keys: Sequence[Any]) -> list[Row]:
        return self.connection.execute(statement.replace("IN ({keys})", "= ANY(%s)"), (list(keys),)).fetchall()

    def insert(self, table: str, rows: Sequence[Row]) -> None:
        types = self._types(table)
        with self.connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(types)
            for row in rows:
                copy.write_row(row)

    def _types(self, table: str) -> list[str]:
        names = "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum"
        return [name for (name,) in self.connection.execute(names, (table,))]

    def upsert_slots(self, rows: Sequence[Row]) -> None:
        self.execute("CREATE TEMP TABLE IF NOT EXISTS incoming (LIKE slot)")
        self.insert("incoming", rows)
        self.execute(f"INSERT INTO slot SELECT * FROM incoming {_UPSERT}")
        self.execute("TRUNCATE incoming")

    def transaction(self) -> Any:
        return self.connection.transaction()

    def cpu_s(self) -> float:
        """Of this process and of the backend that serves it."""
        fields = Path(f"/proc/{self.backend}/stat").read_text().rpartition(")")[2].split()
        return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def size(self) -> int:
        query = "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c WHERE relkind = 'r' AND relnamespace = %s::regnamespace"
        row = self.connection.execute(query, (self.schema,)).fetchone()
        assert row is not None
        self.connection.execute("ANALYZE")
        return int(row[0])

    def __enter__(self) -> Postgres:
        return self

    def __exit__(self, *error: object) -> None:
        self.connection.close()


@contextmanager
def postgres_server() -> Iterator[str]:
    """The URL of a server that is gone afterwards: durable, with 64 MiB of shared buffers, else as PostgreSQL comes."""
    from tests.support.postgres import serve

    with serve(durable=True, settings={"max_wal_size": "4GB"}) as server:
        yield server.url()
