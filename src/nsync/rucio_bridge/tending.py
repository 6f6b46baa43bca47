"""What a node does now and then about notices: sign its head, vote for floors, collect below them, tell who is silent or withholds.

To see what is live below a proposal can take long; it is done on a thread of its own, without the write lock. What is collected below
a floor holds that lock for HOLD_MS_MAX at a time, and leaves it alone as long as it was held.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Executor
from functools import partial
from typing import Callable, TypeVar

from sqlalchemy.exc import DBAPIError

from nsync import metrics
from nsync.authority.charter import Verify
from nsync.errors import CharterMoved
from nsync.log.segment import Sign
from nsync.rucio_bridge import measures
from nsync.rucio_bridge.bridge import Bridge
from nsync.rucio_bridge.effects import HOLD_MS_MAX
from nsync.store.notary import Alarms, Notary
from nsync.store.notices import Taken

LOG = logging.getLogger(__name__)

TEND_S = 1.0
"""Between two looks at votes and alarms."""
FAILED_PAUSE_S = 5.0

T = TypeVar("T")


class Tending:
    """One node's. `notary` is what its peers ask."""

    def __init__(
        self,
        bridge: Bridge,
        sign: Sign,
        verify: Verify,
        now_ms: Callable[[], int],
        lease_s: float,
        floor_interval_s: float,
        looker: Executor,
    ) -> None:
        """`looker`: one thread."""
        self._bridge, self._looker = bridge, looker
        self._alarms: tuple[str, ...] = ()
        self.notary = Notary(bridge, sign, verify, now_ms, self._heard, int(lease_s * 1000), int(floor_interval_s * 1000))

    async def run(self, wake: Callable[[], None]) -> None:
        """Until cancelled. `wake`: has all peers told."""
        while True:
            try:
                await self.once(wake)
                await self._collect()
            except CharterMoved:
                raise  # the whole node begins anew
            except Exception as error:  # rolled back; whatever it was, nothing else stops for it
                LOG.error("floors are looked at again in %g s: %s", FAILED_PAUSE_S, error, exc_info=not isinstance(error, DBAPIError))
                measures.FAILED_TRANSACTIONS.inc()
                await asyncio.sleep(FAILED_PAUSE_S)
            await asyncio.sleep(TEND_S)

    async def once(self, wake: Callable[[], None]) -> None:
        """Sign and vote, if there is something to sign or vote for, and the clock is right (R3.7)."""
        if self._bridge.held_back is None:
            tended = await self._look(self.notary.tend)
            for text in tended.said:
                LOG.info("%s", text)
            if tended.fresh:
                wake()
        metrics.FLOOR.set((await self._look(self.notary.stand)).decided)
        await self._raise(await self._look(self.notary.alarms))

    async def _collect(self) -> None:
        while not await self._look(self._bridge.is_compact):
            began = time.monotonic()
            taken = await self._look(partial(self._bridge.compact, HOLD_MS_MAX))
            if taken:
                LOG.info("%d ops are superseded below the newest floor, and gone", taken)
            await asyncio.sleep(time.monotonic() - began)

    async def _raise(self, alarms: Alarms) -> None:
        """Say what is new of them, and what is over."""
        for instance in self._bridge.authority.charter.instances:
            metrics.LEASE_OVERDUE_SECONDS.labels(instance.name).set(alarms.overdue.get(instance.name, 0) / 1000)
        metrics.WITHHELD.clear()
        for (peer, author), lack in alarms.withheld.items():
            metrics.WITHHELD.labels(peer, author).set(lack.should - lack.has)
        before, now = self._alarms, alarms.texts()
        if before != now:
            await self._look(partial(self.notary.keep_alarms, now))
            self._alarms = now
        for text in sorted(set(now) - set(before)):
            LOG.warning("%s", text)
        for text in sorted(set(before) - set(now)):
            LOG.info("no more: %s", text)

    def _heard(self, taken: Taken, sender: str) -> None:
        for text in taken.said:
            LOG.warning("%s", text)
        for author in taken.withheld:
            metrics.FORKS_HALF_HERE.labels(self._bridge.authority.name(author)).inc()

    async def _look(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._looker, job)
