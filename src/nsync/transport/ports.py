"""The port to the segment log, and the one door through which the transport enters it.

The log is synchronous and slow (it commits to disk), so `LogDoor` calls it on an executor, never on the event loop.
A batch that stored something is announced to the node even when whoever sent it has gone away in the meantime: what is
durable must be applied, and a cancelled request must not hide it.

To the transport a frame is opaque. The log verifies it, so it makes no difference who passed it on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Sequence
from concurrent.futures import Executor
from typing import Callable, Optional, Protocol

from nsync.authority.charter import Place
from nsync.log.stored import Head, Receipt, StoredSegment
from nsync.transport.session import Have


class SegmentLog(Protocol):
    """All that the transport knows of the store. Called from the threads of one executor."""

    def heads(self) -> list[Head]:
        """The end of each branch of each log, in any order."""

    def unknown(self, theirs: Collection[Head]) -> list[Head]:
        """Those of a peer's heads that are not stored here."""

    def locator(self, author: bytes) -> list[Place]:
        """Places of `author`'s log here, the newest first, to ask from (store.serving)."""

    def segments_after(self, have: Have, bytes_max: int) -> list[StoredSegment]:
        """The next segments of the authors in `have` beyond the places given, each after what it continues, of at most `bytes_max`
        bytes in all or one; [] at the end. Places of which none is known here give nothing."""

    def receive(self, frames: Sequence[bytes], sender: str) -> Receipt:
        """Verify the frames that the instance `sender` passed on, and store what is new; returns after COMMIT.

        A frame that continues this instance's own log and is not here is proof that it may sign nothing more (R4.6)."""


OnReceived = Callable[[], None]
"""Called on the event loop after segments from elsewhere became durable. It must not block."""

Take = Callable[[Sequence[bytes]], Awaitable[bool]]
"""Is given the pulled frames, a batch at a time; the next ones are read when it has returned True."""


class LogDoor:
    """The segment log, for code on the event loop."""

    def __init__(self, log: SegmentLog, executor: Optional[Executor], on_received: OnReceived) -> None:
        self._log = log
        self._executor = executor
        self._on_received = on_received

    async def heads(self) -> list[Head]:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._log.heads)

    async def unknown(self, theirs: Collection[Head]) -> list[Head]:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._log.unknown, theirs)

    async def locators(self, authors: Collection[bytes]) -> dict[bytes, list[Place]]:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._locators, authors)

    async def segments_after(self, have: Have, bytes_max: int) -> list[StoredSegment]:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._log.segments_after, have, bytes_max)

    async def receive(self, frames: Sequence[bytes], sender: str) -> Receipt:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._receive, loop, frames, sender)

    def _locators(self, authors: Collection[bytes]) -> dict[bytes, list[Place]]:
        return {author: self._log.locator(author) for author in authors}

    def _receive(self, loop: asyncio.AbstractEventLoop, frames: Sequence[bytes], sender: str) -> Receipt:
        receipt = self._log.receive(frames, sender)
        if receipt.stored:
            loop.call_soon_threadsafe(self._on_received)
        return receipt
