"""Tells the node that Rucio has put something into the outbox, so that a change does not wait for the next poll.

Every LOOK_S a connection that is kept open asks whether something is in the outbox: on PostgreSQL the first entry of an index. SQLite is
asked before for `PRAGMA data_version`, which changes with the first commit of another connection and takes microseconds (it reads
some bytes of shared memory). What the node itself commits empties the outbox most often.

A watch is no promise: it fails, says so once, and is opened again, while the node's poll goes on. What was committed while
nobody watched is found when it begins again. Why it looks and is not notified: docs/adr/0015.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from contextlib import suppress
from typing import Callable, Optional, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

LOG = logging.getLogger(__name__)

LOOK_S = 0.2
"""Between two looks, and at least between two wake-ups. What is committed within it goes into one changeset, so a busy Rucio makes
five a second at most."""

RETRY_S = 5.0
"""After a failure of the watch."""

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
                await self._look(wake)
            except Exception as error:  # the poll goes on, and finds what is captured in the meantime
                if not self._failing:
                    LOG.warning("changes of Rucio wake nobody, and are found by the poll, until this is over: %s", error)
                self._failing = True
            await asyncio.sleep(self._retry_s)

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
        is_full = _number(connection, "SELECT CASE WHEN EXISTS (SELECT 1 FROM nsync_outbox) THEN 1 ELSE 0 END")
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
