"""Databases and transactions: one process writes at a time, leaving without an error commits, anything else rolls back.

A transaction that will write takes its turn at its start (R7.3), before it reads anything that it builds on.

- SQLite: BEGIN IMMEDIATE. One that began by reading could not wait for another writer, whatever the time-out (docs/adr/0003).
- PostgreSQL: a lock of the transaction on one table, `nsync_kept`; before that table is there, an advisory lock of the transaction, one
  for each schema. Locks of a session would outlast a pooler's transaction, or a transaction them. It must be READ COMMITTED, and that
  is enough: all that write are one after the other, and each statement sees what was committed before it began, hence all that the
  writer before committed, since PostgreSQL shows a commit before it gives up the locks. One that must see one moment of what others
  write beside it, and be told when they change what it is about to write, is REPEATABLE READ (`one_moment`). Its snapshot is as old as
  its first query, so that must not be the wait: LOCK TABLE is no query, and PostgreSQL looks when it has ended.

What is committed is durable: `open_store` opens SQLite with `synchronous=FULL`; on PostgreSQL `synchronous_commit` must not be off.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import blake2b
from typing import Any, Callable, ClassVar, Optional, TypeVar
from weakref import WeakValueDictionary

from sqlalchemy import URL, ColumnElement, Connection, Engine, LargeBinary, any_, bindparam, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import StaticPool

from nsync.errors import ConfigError
from nsync.store import schema

CHUNK = 400
"""Keys asked for in one statement: below every back-end's limit of bound parameters."""

WRITE_LOCK_WAIT_S_MAX = 30.0
"""How long a transaction waits for its turn: longer than any write, shorter than HTTP time-outs."""

WAL_RESET_BUG = sqlite3.sqlite_version_info < (3, 51, 3)
"""Before this version two connections that write and checkpoint a file in WAL mode at the same moment can corrupt it."""

PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "cache_size=-65536")
"""64 MiB of pages for each connection: with SQLite's 2 MiB a million entries take a tenth more CPU, for reading pages again."""

_LOCK = "LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE"
"""Readers go on, triggers among them; those who take their turn, and nobody else, wait."""
_SETTINGS = "SET LOCAL lock_timeout = {wait_ms}; SET LOCAL jit = off; SET LOCAL plan_cache_mode = force_custom_plan"
"""Without JIT: of a table that was just filled PostgreSQL expects long work, and compiles 0.4 s for what then takes 2 ms. And with plans
for the keys that are asked for: one for any 400 keys compares each row with each of them (publishing 5000 files took 25 s so, then 5)."""
_IF_THERE = "DO $$ BEGIN IF to_regclass('{table}') IS NOT NULL THEN {lock}; END IF; END $$"
_ADVISORY = text(
    "SELECT pg_advisory_xact_lock(:key), current_setting('transaction_isolation') AS level, current_setting('synchronous_commit') AS syncs"
)
_ONE_MOMENT = "nsync one moment"
"""Of a connection whose transaction is to see one moment."""

CONFLICTS_MAX = 8
_CONFLICTS = ("40001", "40P01")
"""serialization_failure, deadlock_detected."""
_MET = ("23503", "23505")
"""foreign_key_violation, unique_violation."""

T = TypeVar("T")


# ---- transactions


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A connection in a transaction that may write."""
    with engine.connect() as connection, _turn(connection), connection.begin():
        begin_writing(connection)
        yield connection


def begin_writing(connection: Connection) -> None:
    """Wait for the turn to write. Raises OperationalError when it does not come, ConfigError where writing would not be safe."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    elif connection.dialect.name == "postgresql":
        _take_turn(connection)


def _take_turn(connection: Connection) -> None:
    one_moment = connection.info.get(_ONE_MOMENT, False)
    lock = _LOCK.format(table=_turn_table())
    settings = _SETTINGS.format(wait_ms=f"{WRITE_LOCK_WAIT_S_MAX * 1000:.0f}")
    connection.exec_driver_sql(f"{settings}; {lock if one_moment else _IF_THERE.format(table=_turn_table(), lock=lock)}")
    found = connection.execute(_ADVISORY, {"key": lock_key(connection)}).one()
    if found.level != "read committed" and not one_moment:
        raise ConfigError(
            f"transactions of this database are {found.level.upper()}, in which a writer misses what the one before it committed; "
            "make them READ COMMITTED: default_transaction_isolation of the role or database, or isolation_level of the engine"
        )
    if found.syncs == "off":
        raise ConfigError(
            "synchronous_commit of this database is off, and a crash would lose what peers were told is stored; "
            "set it to on (or local) for the role or the database"
        )


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection that sees one moment of the database, beside whoever writes. Nothing that is done through it stays."""
    with engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")
        else:
            connection.execution_options(isolation_level="REPEATABLE READ")
        try:
            yield connection
        finally:
            connection.rollback()


@contextmanager
def one_moment(connection: Connection) -> Iterator[None]:
    """Within, a transaction of `connection` that writes sees what was committed when its turn came, and nothing later.

    The connection is used for nothing else before it is closed. What others commit beside it and it would overwrite makes it fail; see
    `unless_changed`. SQLite is always so, and nobody writes beside it."""
    if connection.dialect.name != "postgresql":
        yield
        return
    connection.execution_options(isolation_level="REPEATABLE READ")  # until the pool has it back
    connection.info[_ONE_MOMENT] = True
    try:
        yield
    finally:
        connection.info.pop(_ONE_MOMENT, None)


def unless_changed(transaction: Callable[[], T]) -> T:
    """What `transaction` returns, begun anew when somebody beside it has changed what it was about to write. Raises OperationalError."""
    for left in reversed(range(CONFLICTS_MAX + 1)):
        try:
            return transaction()
        except Unseen:
            if not left:
                raise
        except OperationalError as error:
            if _sqlstate(error) not in _CONFLICTS:
                raise
            if not left:
                raise Overtaken(error.statement, error.params, error.orig or error) from error
    raise AssertionError("it returns or raises")


class Unseen(Exception):
    """What was committed since a transaction began may stand in its way: begun anew, it sees that."""


def met_others(error: Exception) -> bool:
    """Whether rows are in the way of what was to be written that the transaction, if it sees one moment, may not see."""
    return _sqlstate(error) in _MET


def _sqlstate(error: Exception) -> Optional[str]:
    return getattr(getattr(error, "orig", None), "sqlstate", None)


class Overtaken(OperationalError):
    """A transaction was begun anew CONFLICTS_MAX times, and never came to its end."""

    def __str__(self) -> str:
        return (
            f"a transaction was rolled back {CONFLICTS_MAX + 1} times, since others had changed the same rows meanwhile ({self.orig}); "
            "nothing of it is done, and it is tried again later. If that goes on, pg_stat_activity tells who changes the rows of "
            "shared DIDs without pause"
        )


def lock_key(connection: Connection) -> int:
    """The advisory lock of the schema that holds the nsync tables. Locks of another database are others anyway."""
    name = schema.metadata.schema or connection.dialect.default_schema_name or ""
    return int.from_bytes(blake2b(name.encode(), digest_size=8, person=b"nsync write lock").digest(), "big", signed=True)


def _turn_table() -> str:
    return ".".join(filter(None, (schema.metadata.schema, schema.kept.name)))


def _turn(connection: Connection) -> AbstractContextManager[Any]:
    """Among the threads of this process, until the checkpoint after the commit, where that matters; see `_OnlyWriter`."""
    driver = connection.connection.dbapi_connection
    return driver.lock.turn if isinstance(driver, _OnlyWriter) and driver.lock is not None else nullcontext()


# ---- stand-alone databases


def open_store(url: str, *, only_writer: bool = WAL_RESET_BUG) -> Engine:
    """The engine of a stand-alone database; beside Rucio it is Rucio's own (rucio_bridge.engine).

    `sqlite:///FILE`, `sqlite://` in memory, or `postgresql+psycopg://…`. A file of SQLite is opened so that what is committed
    survives a power cut. `only_writer`: no second process may open it; by default where this SQLite could corrupt it. Write
    through `writing`. Raises ConfigError.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError(f"the URL of the database cannot be read: {error}") from error
    if parsed.get_backend_name() != "sqlite" and parsed.drivername != "postgresql+psycopg":
        raise ConfigError(f"the URL of the database begins with {parsed.drivername!r}; nsync works on sqlite and postgresql+psycopg")
    try:
        engine = create_engine(parsed, **_options(parsed, only_writer))
        engine.connect().close()
    except (ImportError, NoSuchModuleError) as error:
        raise ConfigError(f"the driver of {parsed.drivername} is not installed: {error}") from error
    except DBAPIError as error:
        raise ConfigError(f"the database {parsed} cannot be opened: {error.orig}") from error
    return engine


def _options(url: URL, only_writer: bool) -> dict[str, Any]:
    if url.get_backend_name() != "sqlite":
        return {}
    if url.database in (None, "", ":memory:"):
        return {"poolclass": StaticPool}
    return {"connect_args": {"factory": _OnlyWriter if only_writer else _Durable, "timeout": WRITE_LOCK_WAIT_S_MAX}}


def create_tables(engine: Engine) -> None:
    """Make the nsync tables in a stand-alone database. Beside Rucio, migrations do (store.migrations)."""
    schema.metadata.create_all(engine)


class _Durable(sqlite3.Connection):
    """A connection whose commits survive a power cut, and with which readers go on while one writes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        try:
            self.lock = self._lock()
            for pragma in PRAGMAS:
                self.execute(f"PRAGMA {pragma}")
        except BaseException:
            self.close()
            raise

    def _lock(self) -> Optional[_FileLock]:
        return None


class _OnlyWriter(_Durable):
    """The same, and no other process has one to this file: those of this process hold a lock, which ends with the last of them.

    The bug needs a checkpoint beside a commit. A commit makes its checkpoint after it gave up SQLite's own lock, so the threads of
    this process take turns too.
    """

    def _lock(self) -> Optional[_FileLock]:
        ((_, _, path),) = self.execute("PRAGMA database_list")
        return _FileLock.of(path) if path else None

    def close(self) -> None:
        super().close()
        self.lock = None


class _FileLock:
    """The lock of this process on one database. It ends with the last reference to it."""

    _held: ClassVar[WeakValueDictionary[str, _FileLock]] = WeakValueDictionary()
    _guard: ClassVar = threading.Lock()

    def __init__(self, descriptor: int) -> None:
        self.turn = threading.RLock()
        self._descriptor = descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)

    @classmethod
    def of(cls, database: str) -> _FileLock:
        """The lock on `database`, taken now unless this process has it. Raises ConfigError when another process has it."""
        with cls._guard:
            held = cls._held.get(database)
            if held is None:
                held = cls(os.open(f"{database}-nsync.lock", os.O_RDONLY | os.O_CREAT, 0o600))
                held._take(database)
                cls._held[database] = held
            return held

    def _take(self, database: str) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process has {database} open and holds {database}-nsync.lock: SQLite {sqlite3.sqlite_version} can corrupt a "
                "database that several processes write. End the other process, or use SQLite 3.51.3 or newer, or PostgreSQL"
            ) from error


def is_among(connection: Connection, column: ColumnElement[Any], values: Sequence[Any]) -> ColumnElement[bool]:
    """Whether `column`, of bytes or whole numbers, has one of `values`.

    On PostgreSQL they are one text: its driver reads a statement of 400 parameters anew each time, and writes an array element by element,
    which takes longer than the rows.
    """
    if connection.dialect.name != "postgresql":
        return column.in_(values)
    if isinstance(column.type, LargeBinary):
        return column == any_(_BYTES.bindparams(bindparam("values", ",".join(map(bytes.hex, values)), unique=True)))
    return column == any_(_NUMBERS.bindparams(bindparam("values", ",".join(map(str, values)), unique=True)))


_BYTES = text("(ARRAY(SELECT decode(x, 'hex') FROM unnest(string_to_array(:values, ',')) x))")
_NUMBERS = text("(CAST(string_to_array(:values, ',') AS bigint[]))")


def chunks(items: Collection[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    """`items` in runs of at most `size`."""
    ordered = list(items)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]
