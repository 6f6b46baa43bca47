"""Tells the node that Rucio has put something into the outbox, so that a change does not wait for the next poll.

SQLite tells nobody that another process has committed. A connection that is kept open is asked every LOOK_S for
`PRAGMA data_version`, which changes with the first commit of another connection and takes microseconds (it reads some bytes of
shared memory). Only then the outbox is looked at, and only if it holds something the node is woken: what the node itself commits
empties it most often.

On PostgreSQL a connection of the watch's own listens to what a trigger notifies (`pg_triggers`). Where that trigger is not
installed, or another driver is in use, the outbox is looked at every LOOK_S.

A watch is no promise: it fails, says so once, and is opened again, while the node's poll goes on. What was committed while
nobody watched is found when it begins again, since it wakes then.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, Callable, Optional, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from nsync.rucio_bridge import pg_triggers, triggers

LOG = logging.getLogger(__name__)

LOOK_S = 0.2
"""Between two looks, and at least between two wake-ups. What is committed within it goes into one changeset, so a busy Rucio makes
five a second at most."""

RETRY_S = 5.0
"""After a failure of the watch."""

CONNECTED: dict[str, Any] = {"application_name": "nsync watch", "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
"""Of a connection that listens, unless the URL says otherwise: one that is lost without a word is noticed within a minute."""

Wake = Callable[[], None]
T = TypeVar("T")


class Watch:
    """Of one database. `executor`: one thread, which nobody else uses."""

    def __init__(self, engine: Engine, executor: Executor, retry_s: float = RETRY_S) -> None:
        self._engine = engine
        self._executor = executor
        self._retry_s = retry_s
        self._failing = False

    async def run(self, wake: Wake) -> None:
        """Call `wake` whenever something was captured, until cancelled."""
        while True:
            try:
                watch = self._listen if await self._aside(self._is_notified) else self._look
                await watch(wake)
            except Exception as error:  # the poll goes on, and finds what is captured in the meantime
                if not self._failing:
                    LOG.warning("changes of Rucio wake nobody, and are found by the poll, until this is over: %s", error)
                self._failing = True
            await asyncio.sleep(self._retry_s)

    def _is_notified(self) -> bool:
        if self._engine.dialect.name != "postgresql" or self._engine.dialect.driver != "psycopg":
            return False
        with self._engine.connect() as connection:
            return triggers.PREFIX + pg_triggers.NOTIFY in triggers.installed(connection)

    async def _look(self, wake: Wake) -> None:
        looker = Looker(self._engine)
        try:
            while True:
                if await self._aside(looker.look):
                    wake()
                self._works()
                await asyncio.sleep(LOOK_S)
        finally:
            await self._aside(looker.close)

    async def _listen(self, wake: Wake) -> None:
        from psycopg import AsyncConnection

        arguments, options = self._engine.dialect.create_connect_args(self._engine.url)
        paced = Paced(wake)
        async with await AsyncConnection.connect(*arguments, **{**CONNECTED, **options}, autocommit=True) as connection:
            await connection.execute(f"LISTEN {pg_triggers.CHANNEL}")
            paced()
            self._works()
            async for _ in connection.notifies():
                paced()

    def _works(self) -> None:
        if self._failing:
            LOG.info("changes of Rucio wake the node again")
        self._failing = False

    async def _aside(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, job)


class Looker:
    """A kept connection, outside the pool. Every method is for one and the same thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Optional[Connection] = None
        self._version = -1

    def look(self) -> bool:
        """Whether somebody else has committed since the last look, where that can be told, and something is in the outbox."""
        connection = self._connection = self._connection or self._connected()
        version = None
        if connection.dialect.name == "sqlite":
            version = _number(connection, "PRAGMA data_version")
            if version == self._version:
                return False
        is_full = _number(connection, "SELECT count(*) FROM (SELECT 1 FROM nsync_outbox LIMIT 1) AS waiting")
        self._version = -1 if version is None else version  # not before: a look that failed is made again
        return bool(is_full)

    def close(self) -> None:
        with suppress(DBAPIError):
            if self._connection is not None:
                self._connection.close()

    def _connected(self) -> Connection:
        connection = self._engine.connect()
        connection.detach()
        return connection


def _number(connection: Connection, sql: str) -> int:
    with connection.begin():
        return int(connection.exec_driver_sql(sql).scalar_one())


class Paced:
    """Calls `wake` at once, and after that at most every LOOK_S, however often it is called; the last call is never lost."""

    def __init__(self, wake: Wake) -> None:
        self._wake = wake
        self._next_s = 0.0
        self._timer: Optional[asyncio.TimerHandle] = None

    def __call__(self) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._timer = loop.call_at(max(self._next_s, loop.time()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._next_s = asyncio.get_running_loop().time() + LOOK_S
        self._wake()
