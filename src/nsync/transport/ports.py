"""The port to the segment log, and the one door through which the transport enters it.

The log is synchronous and slow (it commits to disk), so `LogDoor` calls it on an executor, never on the event loop.
A batch that stored something is announced to the node even when whoever sent it has gone away in the meantime: what is
durable must be applied, and a cancelled request must not hide it.

To the transport a frame is opaque. The log verifies it, so it makes no difference who passed it on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Callable, Optional, Protocol

from nsync.log.stored import Head, Receipt, StoredSegment


class SegmentLog(Protocol):
    """All that the transport knows of the store. Called from the threads of one executor."""

    def heads(self) -> list[Head]:
        """One head per author, in any order."""

    def segments_after(self, have: Mapping[bytes, int], bytes_max: int) -> list[StoredSegment]:
        """The next segments beyond `have[author]` (absent: 0), in causal order, of at most `bytes_max` bytes; [] at the end."""

    def receive(self, frames: Sequence[bytes], sender: str) -> Receipt:
        """Verify the frames that the instance `sender` passed on, and store what is new; returns after COMMIT."""


OnReceived = Callable[[], None]
"""Called on the event loop after segments from elsewhere became durable. It must not block."""

Take = Callable[[Sequence[bytes]], Awaitable[None]]
"""Is given the pulled frames, a batch at a time; the next ones are read when it has returned."""


class LogDoor:
    """The segment log, for code on the event loop."""

    def __init__(self, log: SegmentLog, executor: Optional[Executor], on_received: OnReceived) -> None:
        self._log = log
        self._executor = executor
        self._on_received = on_received

    async def heads(self) -> list[Head]:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._log.heads)

    async def segments_after(self, have: Mapping[bytes, int], bytes_max: int) -> list[StoredSegment]:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._log.segments_after, dict(have), bytes_max)

    async def receive(self, frames: Sequence[bytes], sender: str) -> Receipt:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._receive, loop, frames, sender)

    def _receive(self, loop: asyncio.AbstractEventLoop, frames: Sequence[bytes], sender: str) -> Receipt:
        receipt = self._log.receive(frames, sender)
        if receipt.stored:
            loop.call_soon_threadsafe(self._on_received)
        return receipt
