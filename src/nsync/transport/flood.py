"""News for many peers: each node that gets something new tells a few others, and who lacks it comes and asks.

A node tells its successor in the sorted list of names, and TOLD_PEERS_MAX random others. The random ones reach nearly all of N
in log(N) steps, of a message of some 100 bytes each; the ring sees to it that nobody is left out as long as all are up. Who has it
already answers, and passes nothing on; so what everybody has is told no more.

What arrives within a moment is told at once, and one peer is told one thing at a time. A peer that cannot be told hears of it from others,
or by anti-entropy; that it fails is noticed there.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Callable

from nsync.errors import NsyncError
from nsync.log.stored import Head
from nsync.transport import session, wire
from nsync.transport.exchange import Peer
from nsync.transport.ports import LogDoor

logger = logging.getLogger("nsync.transport.flood")

TOLD_PEERS_MAX = 4
PAUSE_S = 0.1
"""Between two rounds of telling."""
GATHER_S_MAX = 0.03
"""How long to wait for more of the same."""


class Flood:
    """Tells peers which heads are new here."""

    def __init__(self, me: str, log: LogDoor, rng: random.Random, is_well: Callable[[str], bool]) -> None:
        self._me = me
        self._log = log
        self._rng = rng
        self._is_well = is_well
        self._news = asyncio.Event()
        self._told: Sequence[Head] = ()
        self._telling: dict[str, asyncio.Task[None]] = {}

    def news(self) -> None:
        """Something new was stored here."""
        self._news.set()

    async def run(self, clients: Mapping[str, Peer]) -> None:
        """Tell `clients`, until cancelled."""
        self._told = await self._heads()
        try:
            while True:
                await self._news.wait()
                await asyncio.sleep(self._rng.uniform(0, GATHER_S_MAX))
                self._news.clear()
                self._spread(clients, await self._heads())
                await asyncio.sleep(PAUSE_S)
        finally:
            for task in self._telling.values():
                task.cancel()
            await asyncio.gather(*self._telling.values(), return_exceptions=True)

    async def _heads(self) -> Sequence[Head]:
        try:
            return await self._log.heads()
        except Exception:  # the log is a port: whatever it raises must not end the gossip
            logger.exception("peers are not told what is new")
            return self._told

    def _spread(self, clients: Mapping[str, Peer], heads: Sequence[Head]) -> None:
        fresh = session.changed(self._told, heads)
        self._told = heads
        if not fresh:
            return
        for name in self.targets(clients):
            if name not in self._telling:
                task = self._telling[name] = asyncio.ensure_future(_tell(clients[name], fresh[: wire.HEADS_MAX]))
                task.add_done_callback(lambda _, name=name: self._telling.pop(name, None))  # type: ignore[misc]

    def targets(self, names: Mapping[str, object]) -> list[str]:
        """Whom to tell this time: the next one in the ring, and some others."""
        well = sorted(filter(self._is_well, names))
        following = next((name for name in well if name > self._me), well[0] if well else None)
        others = [name for name in well if name != following]
        return ([following] if following else []) + self._rng.sample(others, min(TOLD_PEERS_MAX, len(others)))


async def _tell(client: Peer, heads: Sequence[Head]) -> None:
    with suppress(NsyncError):
        await client.tell(heads)
