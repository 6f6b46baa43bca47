"""The transport's two clocks: wall time for what peers compare, the event loop's for what this process waits for."""

from __future__ import annotations

import asyncio
import time


def wall_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> int:
    """Milliseconds of the clock by which the running event loop sleeps: one that never jumps, or a simulation's."""
    return int(asyncio.get_running_loop().time() * 1000)
