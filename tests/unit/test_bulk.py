"""Many rows at once, on each back-end: all of them, once, or none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from nsync.store import bulk
from nsync.store.bulk import bulk_insert
from nsync.store.database import open_store, writing

COLUMNS = ("log", "seq", "raw", "note")
SIZES = (0, 1, bulk.PARAMETERS_MAX // len(COLUMNS), 2 * bulk.FEW + 7)
"""None, one, exactly one statement of SQLite's, and more than what PostgreSQL takes statement by statement."""


@pytest.fixture
def engine(store_url: str) -> Iterator[Engine]:
    engine = open_store(store_url)
    blob = "BYTEA" if engine.name == "postgresql" else "BLOB"
    with writing(engine) as connection:
        connection.execute(text(f"CREATE TABLE ops (log BIGINT, seq BIGINT, raw {blob}, note TEXT, PRIMARY KEY (log, seq))"))
    yield engine
    engine.dispose()


def rows(count: int) -> list[bulk.Row]:
    return [(1, seq if seq % 2 else seq << 40, bytes([seq % 256]) * (seq % 5), None if seq % 3 else "\t\\N'é") for seq in range(count)]


def stored(engine: Engine) -> list[bulk.Row]:
    with engine.connect() as connection:
        return sorted((*row[:2], bytes(row[2]), row[3]) for row in connection.execute(text("SELECT log, seq, raw, note FROM ops")))


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("skip_known", [False, True])
def test_what_is_inserted_is_what_was_given(engine: Engine, count: int, skip_known: bool) -> None:
    with writing(engine) as connection:
        assert bulk_insert(connection, "ops", COLUMNS, rows(count), skip_known=skip_known) == count
    assert stored(engine) == sorted(rows(count))


@pytest.mark.parametrize("count", SIZES[1:])
def test_known_rows_are_skipped_and_the_others_counted(engine: Engine, count: int) -> None:
    known = [(log, seq, b"old", None) for log, seq, _, _ in rows(count)[::2]]
    with writing(engine) as connection:
        bulk_insert(connection, "ops", COLUMNS, known)
        for expected in (count - len(known), 0):
            assert bulk_insert(connection, "ops", COLUMNS, rows(count), skip_known=True) == expected
    assert stored(engine) == sorted([*known, *rows(count)[1::2]])


@pytest.mark.parametrize("count", SIZES[1:])
def test_a_row_that_is_there_already_is_an_error_and_nothing_is_left_of_the_batch(engine: Engine, count: int) -> None:
    batch = rows(count)
    with pytest.raises(IntegrityError), writing(engine) as connection:
        bulk_insert(connection, "ops", COLUMNS, [*batch, batch[-1]])
    assert stored(engine) == []
