"""An event loop on virtual time: whoever sleeps is woken at once, and the clock has moved.

What runs on it is as deterministic as itself: callbacks run in the order in which they were made ready, timers in the order of
their times, and work for an executor is done on the spot. Nothing here reads a clock, and there is nothing to wait for
but timers: a loop that runs out of them is a deadlock, and says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Callable, Optional, TypeVar

T = TypeVar("T")

RESOLUTION_S = 1e-9
"""Timers that lie closer together are woken in one go: what adding up floats may differ by."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Run one with `run`."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._clock_resolution = RESOLUTION_S
        self._selector = self

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now_s

    def select(self, timeout: Optional[float]) -> list[Any]:
        """Where another loop would wait for sockets, or for the next timer: here it is the next timer's time."""
        if timeout is None:
            raise RuntimeError("a deadlock: every task waits, and no timer is set")
        self._now_s += max(0.0, timeout)
        return []

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Do it now: a database's answer takes no virtual time."""
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except (Exception, asyncio.CancelledError) as error:
            done.set_exception(error)
        return done

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        """There is one thread."""
        return self.call_soon(callback, *args, context=context)

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no sockets."""

    def _write_to_self(self) -> None:
        """There is no other thread to wake it."""


def run(story: Coroutine[Any, Any, T]) -> T:
    """Run `story` on a loop of its own, to its end; what it left running is cancelled."""
    loop = VirtualLoop()
    try:
        try:
            return loop.run_until_complete(story)
        finally:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left))
    finally:
        loop.close()
