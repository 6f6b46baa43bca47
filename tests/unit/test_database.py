"""Databases and transactions: one writes at a time, also among processes; what is committed is durable."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError

from nsync.errors import ConfigError
from nsync.store import database
from nsync.store.database import begin_writing, create_tables, lock_key, one_moment, open_store, writing

OPEN = "import sys; from nsync.store.database import open_store; open_store(sys.argv[1], only_writer=True); print('open')"


@pytest.fixture
def engine(store_url: str) -> Iterator[Engine]:
    engine = open_store(store_url)
    with writing(engine) as connection:
        connection.execute(text("CREATE TABLE counter (n BIGINT)"))
        connection.execute(text("INSERT INTO counter VALUES (0)"))
    yield engine
    engine.dispose()


def count_up(engine: Engine) -> None:
    """Read, think, write: two of them at once would lose one."""
    with writing(engine) as connection:
        n = connection.execute(text("SELECT n FROM counter")).scalar_one()
        time.sleep(0.002)
        connection.execute(text("UPDATE counter SET n = :n"), {"n": n + 1})


def value(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT n FROM counter")).scalar_one())


def at_once(*calls: threading.Thread) -> None:
    for call in calls:
        call.start()
    for call in calls:
        call.join()


def test_what_writes_is_one_after_the_other_and_sees_what_came_before(engine: Engine, store_url: str) -> None:
    other = open_store(store_url)
    at_once(*(threading.Thread(target=lambda e=e: [count_up(e) for _ in range(10)]) for e in (engine, engine, other, other)))
    other.dispose()
    assert value(engine) == 40


def test_an_error_rolls_back_and_gives_the_turn_to_the_next(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError), writing(engine) as connection:
        connection.execute(text("UPDATE counter SET n = 99"))
        raise ZeroDivisionError
    count_up(engine)
    assert value(engine) == 1


def test_reading_goes_on_while_one_writes(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(text("UPDATE counter SET n = 99"))
        assert value(engine) == 0
    assert value(engine) == 99


# ---- PostgreSQL


@pytest.mark.postgres
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_level_in_which_a_writer_would_miss_another_is_refused(postgres_url: str, level: str) -> None:
    engine = create_engine(postgres_url, isolation_level=level)
    with pytest.raises(ConfigError, match=f"{level}.*READ COMMITTED"), writing(engine):
        pass
    engine.dispose()


@pytest.mark.postgres
def test_commits_that_a_crash_may_lose_are_refused(postgres_url: str) -> None:
    engine = create_engine(postgres_url, connect_args={"options": "-c synchronous_commit=off"})
    with pytest.raises(ConfigError, match="synchronous_commit"), writing(engine):
        pass
    engine.dispose()


@pytest.mark.postgres
def test_schemas_have_locks_of_their_own(postgres_url: str) -> None:
    one = open_store(postgres_url)
    with one.begin() as connection:
        connection.execute(text("CREATE SCHEMA other"))
    other = create_engine(postgres_url, connect_args={"options": "-c search_path=other"})
    with writing(one) as connection, writing(other) as beside:
        assert lock_key(connection) != lock_key(beside)
    for engine in (one, other):
        engine.dispose()


@pytest.mark.postgres
def test_what_sees_one_moment_sees_the_one_when_its_turn_came(postgres_url: str) -> None:
    """Half of the writers see one moment; each adds one to what it found."""
    engines = [open_store(postgres_url) for _ in range(4)]
    create_tables(engines[0])
    with writing(engines[0]) as connection:
        connection.execute(text("CREATE TABLE counter (n BIGINT)"))
        connection.execute(text("INSERT INTO counter VALUES (0)"))

    def count_in_one_moment(engine: Engine) -> None:
        with engine.connect() as connection, one_moment(connection), connection.begin():
            begin_writing(connection)
            n = connection.execute(text("SELECT n FROM counter")).scalar_one()
            time.sleep(0.002)
            connection.execute(text("UPDATE counter SET n = :n"), {"n": n + 1})

    steps = (count_up, count_in_one_moment, count_in_one_moment, count_up)
    at_once(*(threading.Thread(target=lambda s=s, e=e: [s(e) for _ in range(10)]) for s, e in zip(steps, engines)))
    assert value(engines[0]) == 40
    with engines[1].connect() as connection:
        assert connection.execute(text("SHOW transaction_isolation")).scalar() == "read committed", "the pool has it back as it was"
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' OR mode = 'ShareRowExclusiveLock'"
        assert connection.execute(text(held)).scalar() == 0, "no lock outlasts its transaction"
    for engine in engines:
        engine.dispose()


@pytest.mark.postgres
def test_waiting_for_the_turn_has_an_end(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WRITE_LOCK_WAIT_S_MAX", 0.05)
    engine = open_store(postgres_url)
    with writing(engine), pytest.raises(OperationalError, match="lock timeout"), writing(engine):
        pass
    engine.dispose()


# ---- SQLite


def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'nsync.db'}"


def open_elsewhere(url: str) -> str:
    """What another process says that opens the database as its only writer."""
    done = subprocess.run([sys.executable, "-c", OPEN, url], capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("only_writer", [False, True])
def test_a_file_of_sqlite_is_opened_durably(tmp_path: Path, only_writer: bool) -> None:
    engine = open_store(sqlite_url(tmp_path), only_writer=only_writer)
    with engine.connect() as one, engine.connect() as two:
        for connection in (one, two):
            found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous", "busy_timeout")]
            assert found == ["wal", 2, int(database.WRITE_LOCK_WAIT_S_MAX * 1000)]
    engine.dispose()


def test_a_second_process_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path)
    one, two = (open_store(url, only_writer=True) for _ in range(2))
    for engine in (one, two):
        answer = open_elsewhere(url)
        assert "ConfigError" in answer and str(tmp_path / "nsync.db") in answer and "3.51.3" in answer and "PostgreSQL" in answer
        engine.dispose()
    assert open_elsewhere(url) == "open"
    with one.connect():  # an engine opens anew when it is used again, and takes the lock again
        assert "ConfigError" in open_elsewhere(url)
    one.dispose()


def test_a_connection_that_is_closed_gives_its_lock_up_while_something_still_refers_to_it(tmp_path: Path) -> None:
    engine = open_store(sqlite_url(tmp_path), only_writer=True)
    with engine.connect() as connection:
        driver = connection.connection.dbapi_connection
    engine.dispose()
    assert open_elsewhere(sqlite_url(tmp_path)) == "open"
    assert driver is not None


def test_a_name_that_leads_to_the_same_file_is_the_same_lock(tmp_path: Path) -> None:
    engine = open_store(sqlite_url(tmp_path), only_writer=True)
    (tmp_path / "alias.db").symlink_to(tmp_path / "nsync.db")
    assert "ConfigError" in open_elsewhere(f"sqlite:///{tmp_path / 'alias.db'}")
    engine.dispose()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path)
    hold = OPEN.replace("open_store(sys", "engine = open_store(sys") + "; sys.stdout.flush(); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        with pytest.raises(ConfigError, match=r"another process has .*nsync\.db open"):
            open_store(url, only_writer=True)
        other.kill()
    open_store(url, only_writer=True).dispose()


def test_threads_take_turns_until_after_the_commit_where_a_checkpoint_beside_it_could_corrupt(tmp_path: Path) -> None:
    engine = open_store(sqlite_url(tmp_path), only_writer=True)
    commits: list[str] = []

    def slow_commit(connection: object) -> None:
        commits.append("begins")
        time.sleep(0.05)
        commits.append("ends")

    with writing(engine) as connection:
        connection.execute(text("CREATE TABLE counter (n BIGINT)"))
    event.listen(engine, "commit", slow_commit)
    event.listen(engine, "begin", lambda connection: commits.append("opens"))

    def write() -> None:
        with writing(engine) as connection:
            connection.execute(text("INSERT INTO counter VALUES (1)"))

    at_once(*(threading.Thread(target=write) for _ in range(3)))
    engine.dispose()
    assert commits == ["opens", "begins", "ends"] * 3


def test_a_database_in_memory_is_one_for_the_whole_engine() -> None:
    engine = open_store("sqlite://")
    create_tables(engine)
    with writing(engine) as connection:
        connection.execute(text("INSERT INTO nsync_shared_scope VALUES ('atlas')"))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT scope FROM nsync_shared_scope")).scalars().all() == ["atlas"]
    engine.dispose()


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "nsync.db").write_text("a text, not a database" * 100)
    with pytest.raises(ConfigError, match=r"nsync\.db cannot be opened.*not a database"):
        open_store(sqlite_url(tmp_path), only_writer=True)


@pytest.mark.parametrize(
    ("url", "text_of_error"),
    [
        ("nonsense", "cannot be read"),
        ("mysql://host/db", "'mysql'"),
        ("postgresql://host/db", r"postgresql\+psycopg"),
        ("sqlite+nodriver://", "is not installed"),
        ("sqlite:////nowhere/at/all.db", "cannot be opened"),
    ],
)
def test_a_url_that_cannot_be_used_is_told(url: str, text_of_error: str) -> None:
    with pytest.raises(ConfigError, match=text_of_error):
        open_store(url)
