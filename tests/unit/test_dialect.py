"""The dialect's promises: waiting instead of failing, durable commits, foreign keys, pysqlite's pool and URLs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import QueuePool


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "some.db"


@pytest.fixture
def engine(database: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite+nsync:///{database}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (n INTEGER)"))
    yield engine
    engine.dispose()


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 30_000)],
)
def test_every_connection_is_prepared(engine: Engine, pragma: str, value: object) -> None:
    with engine.connect() as first, engine.connect() as second:
        assert [c.execute(text(f"PRAGMA {pragma}")).scalar() for c in (first, second)] == [value, value]


def test_a_file_database_has_pysqlites_pool_and_path(engine: Engine, database: Path) -> None:
    assert isinstance(engine.pool, QueuePool)
    assert database.exists()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 'atlas' REGEXP '^at'")).scalar() == 1  # pysqlite's own functions are there


def _begin_mode(engine: Engine) -> object:
    connection = engine.raw_connection()
    try:
        return connection.dbapi_connection.isolation_level  # type: ignore[union-attr]
    finally:
        connection.close()


def test_a_connection_back_from_autocommit_still_begins_immediate(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("INSERT INTO t VALUES (1)"))
    assert _begin_mode(engine) == "IMMEDIATE"


def _write_read_write(engine: Engine, beside: Engine) -> None:
    """The shape of a Rucio call: write a temporary table, read a real one, write it; another writer comes in between."""

    def write_beside() -> None:
        with beside.begin() as connection:
            connection.execute(text("INSERT INTO t VALUES (1)"))

    with engine.connect() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE scratch (n INTEGER)"))
        connection.execute(text("DELETE FROM scratch"))
        connection.execute(text("SELECT count(*) FROM t")).all()
        other = threading.Thread(target=write_beside)
        other.start()
        time.sleep(0.2)
        try:
            connection.execute(text("INSERT INTO t VALUES (2)"))
            connection.commit()
        finally:
            connection.rollback()
            other.join()


def test_a_transaction_that_writes_last_does_not_fail_beside_another_writer(engine: Engine) -> None:
    _write_read_write(engine, beside=engine)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM t")).scalar() == 2


def test_planted_fault_the_stock_dialect_fails_there(engine: Engine, database: Path) -> None:
    stock = create_engine(f"sqlite:///{database}?timeout=30")
    try:
        with pytest.raises(OperationalError, match="database is locked"):
            _write_read_write(stock, beside=stock)
    finally:
        stock.dispose()
