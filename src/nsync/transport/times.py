"""The transport's two clocks: wall time for what peers compare, the event loop's for what this process waits for.

And what keeps the event loop free: what may take longer than some milliseconds is done `aside`.
"""

from __future__ import annotations

import asyncio
import time
from typing import Callable, TypeVar

from nsync.transport.metering import metered

ASIDE_BYTES_MIN = 1 << 16
"""Bodies from here on are worked on aside: to compress, hash or decode less takes below a millisecond."""

T = TypeVar("T")


def wall_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> int:
    """Milliseconds of the clock by which the running event loop sleeps: one that never jumps, or a simulation's."""
    return int(asyncio.get_running_loop().time() * 1000)


async def happens(event: asyncio.Event, s_max: float) -> bool:
    """Whether `event` is set within this time.

    Not asyncio.wait_for: before Python 3.12 it loses a cancellation that comes in the moment in which the event is set, and what
    should have ended goes on.
    """
    waiting = asyncio.ensure_future(event.wait())
    try:
        came, _ = await asyncio.wait({waiting}, timeout=s_max)
        return bool(came)
    finally:
        waiting.cancel()


async def aside(size: int, work: Callable[[], T]) -> T:
    """What `work` returns; in a thread when it is about so many bytes that the event loop would notice."""
    if size < ASIDE_BYTES_MIN:
        return work()
    return await asyncio.get_running_loop().run_in_executor(None, metered(work))
