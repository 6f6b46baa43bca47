"""Tells the node that Rucio has put something into the outbox, so that a change does not wait for the next poll.

SQLite tells nobody that another process has committed. A connection that is kept open is asked every LOOK_S for
`PRAGMA data_version`, which changes with the first commit of another connection and takes microseconds (it reads some bytes of
shared memory). Only then the outbox is looked at, and only if it holds something the node is woken: what the node itself commits
empties it most often.

A watch is no promise: it fails, says so once, and is opened again, while the node's poll goes on. What was committed while
nobody watched is found by the first look after it, since what counts then is the outbox.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from contextlib import suppress
from typing import Callable, Optional, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from nsync.errors import ConfigError

LOG = logging.getLogger(__name__)

LOOK_S = 0.2
"""Between two looks. What is committed within it goes into one changeset, so a busy Rucio makes five a second at most."""

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
        if self._engine.dialect.name != "sqlite":
            raise ConfigError(f"nobody watches a database of {self._engine.dialect.name} yet")
        while True:
            looker = Looker(self._engine)
            try:
                await self._look(looker, wake)
            except Exception as error:  # the poll goes on, and finds what is captured in the meantime
                if not self._failing:
                    LOG.warning("changes of Rucio wake nobody, and are found by the poll, until this is over: %s", error)
                self._failing = True
            finally:
                await self._aside(looker.close)
            await asyncio.sleep(self._retry_s)

    async def _look(self, looker: Looker, wake: Wake) -> None:
        while True:
            if await self._aside(looker.look):
                wake()
            if self._failing:
                LOG.info("changes of Rucio wake the node again")
                self._failing = False
            await asyncio.sleep(LOOK_S)

    async def _aside(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, job)


class Looker:
    """A kept connection to a database of SQLite, outside the pool. Every method is for one and the same thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Optional[Connection] = None
        self._version = -1

    def look(self) -> bool:
        """Whether somebody else has committed since the last look, and something is in the outbox."""
        if self._connection is None:
            self._connection = self._engine.connect()
            self._connection.detach()
        version = self._number("PRAGMA data_version")
        if version == self._version:
            return False
        is_full = self._number("SELECT EXISTS (SELECT 1 FROM nsync_outbox)")
        self._version = version  # not before: a look that failed is made again
        return bool(is_full)

    def close(self) -> None:
        with suppress(DBAPIError):
            if self._connection is not None:
                self._connection.close()

    def _number(self, sql: str) -> int:
        assert self._connection is not None, "it is open"
        with self._connection.begin():
            return int(self._connection.exec_driver_sql(sql).scalar_one())
