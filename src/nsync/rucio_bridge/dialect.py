"""`sqlite+nsync`: the SQLite dialect with which several processes can share one Rucio database.

It promises that a transaction which writes waits for its turn instead of failing, and that what was acknowledged
survives a power cut. It knows nothing of Rucio; Rucio takes it through `[database] default = sqlite+nsync:////path`.

Why the stock dialect loses calls beside a second writer: `sqlite3` opens a *deferred* transaction at the first
write. Rucio's core fills temporary tables, so that its transactions begin with `DELETE FROM <temporary table>`, go on
to read the real tables, and write them last. At that write SQLite must turn a read lock into a write lock; when
another process wrote in between, no wait can help, so SQLite fails at once and ignores the busy timeout. Two stock
clients beside a writer lost 57 of 238 calls in that way, and neither a time-out nor WAL cured it; with this dialect
they lost none of 357. Its means:

- `BEGIN IMMEDIATE` takes the write lock when the transaction opens, where the busy timeout does apply. SQLAlchemy
  ignores `isolation_level` in a URL, hence a dialect.
- WAL lets readers go on while one process writes.
- `synchronous=FULL` syncs the WAL at every commit; the usual NORMAL may forget the last commits at a power cut, and
  peers would then hold segments that their author no longer knows (R4.6).
- `foreign_keys=ON`, which Rucio sets for its own engine only, holds for nsync's engines too.
"""

from __future__ import annotations

from typing import Callable

from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine.interfaces import ConnectArgsType, DBAPIConnection, IsolationLevel
from sqlalchemy.engine.url import URL

BUSY_TIMEOUT_S = 30.0
"""How long a transaction waits for the write lock: longer than any write of Rucio or nsync, shorter than HTTP time-outs."""

BEGIN = "IMMEDIATE"

PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")


class NsyncSQLiteDialect(SQLiteDialect_pysqlite):
    """The pysqlite dialect with BEGIN IMMEDIATE, a busy timeout, WAL, full syncs and foreign keys."""

    driver = "nsync"
    supports_statement_cache = True

    def create_connect_args(self, url: URL) -> ConnectArgsType:
        """The arguments of `sqlite3.connect` for `url`; `timeout` becomes SQLite's busy timeout."""
        arguments, options = super().create_connect_args(url)
        return arguments, {**options, "isolation_level": BEGIN, "timeout": BUSY_TIMEOUT_S}

    def on_connect(self) -> Callable[[DBAPIConnection], None]:
        """A function that prepares each new connection."""
        prepare = super().on_connect()

        def connect(connection: DBAPIConnection) -> None:
            prepare(connection)
            cursor = connection.cursor()
            for pragma in PRAGMAS:
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

        return connect

    def set_isolation_level(self, dbapi_connection: DBAPIConnection, level: IsolationLevel) -> None:
        """As pysqlite, which leaves deferred transactions behind when a connection returns from AUTOCOMMIT."""
        super().set_isolation_level(dbapi_connection, level)
        if level != "AUTOCOMMIT":
            dbapi_connection.isolation_level = BEGIN
