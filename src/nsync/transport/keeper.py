"""Keeps what is known of the peers where the commands can read it, and does what they ask for there.

It is put down when a peer begins to fail, fails for another reason, is in order again, or tells its heads for the first time;
else every KEEP_S. An operator's `nsync peer reset` is found within LOOK_S_MAX, or the gossip's interval where that is shorter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable
from concurrent.futures import Executor
from typing import Optional, Protocol

from nsync.log.stored import PeerRecord
from nsync.transport.gossip import Gossip

logger = logging.getLogger("nsync.transport.keeper")

KEEP_S = 30.0
LOOK_S_MIN = 0.5
LOOK_S_MAX = 30.0


class PeerTable(Protocol):
    """Where it is kept: `store.peers.PeerTable`. Every call is a transaction, and made off the event loop."""

    def load(self) -> list[PeerRecord]:
        """What was put down last."""

    def save(self, records: Iterable[PeerRecord]) -> None:
        """Put this down in the place of all that was there."""

    def resets(self) -> list[str]:
        """The peers that an operator wants to be tried now."""

    def done(self, names: Collection[str]) -> None:
        """These are tried."""


class Keeper:
    """Of one gossip. `reader` and `writer`: the executors on which the table is asked and written."""

    def __init__(self, gossip: Gossip, table: PeerTable, reader: Executor, writer: Executor, interval_s: float) -> None:
        self._gossip = gossip
        self._table = table
        self._reader = reader
        self._writer = writer
        self._look_s = max(LOOK_S_MIN, min(interval_s, LOOK_S_MAX))
        self._kept_s = float("-inf")
        self._kept: Optional[object] = None

    async def recall(self) -> None:
        """Let the gossip go on from what was put down last."""
        self._gossip.recall(await asyncio.get_running_loop().run_in_executor(self._reader, self._table.load))

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._look_s)
            try:
                await self.look()
            except Exception as error:  # the next look tries again; nothing that matters is lost
                logger.warning("what is known of the peers could not be kept: %s", error)

    async def look(self) -> None:
        """Do what is asked for, and keep what is new."""
        loop = asyncio.get_running_loop()
        names = await loop.run_in_executor(self._reader, self._table.resets)
        if names:
            for name in names:
                logger.info("peer %s: tried now, as an operator asks", name)
                self._gossip.reset(name)
            await loop.run_in_executor(self._writer, self._table.done, names)
        if self._health() != self._kept or loop.time() - self._kept_s >= KEEP_S:
            await self.keep()

    async def keep(self) -> None:
        """Put down what is known."""
        loop = asyncio.get_running_loop()
        health, now_s = self._health(), loop.time()
        await loop.run_in_executor(self._writer, self._table.save, self._gossip.records())
        self._kept, self._kept_s = health, now_s  # not before: what failed is tried again

    def _health(self) -> object:
        return [(record.name, record.reason, record.heads is None) for record in self._gossip.records()]
