"""Whose work a thread does: its CPU time is told to whoever set METER for the request that asked for it; signatures go to CHECKS."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor, Future
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, Callable, Optional, TypeVar

METER: ContextVar[Optional[Callable[[float], None]]] = ContextVar("METER", default=None)
"""Is called on the event loop with milliseconds of CPU time. Each request is a task, and so has one of its own."""

CHECKS: ContextVar[Optional[Callable[[float], None]]] = ContextVar("CHECKS", default=None)
"""Is called on the event loop with a number of signatures, before they are checked for the request."""

T = TypeVar("T")


def metered(work: Callable[[], T]) -> Callable[[], T]:
    """`work`, for a thread, such that the present METER hears what it cost, whether anybody still waits for it or not."""
    tell = METER.get()
    if tell is None:
        return work
    loop = asyncio.get_running_loop()

    def run() -> T:
        begun = time.thread_time()
        try:
            return work()
        finally:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell, (time.thread_time() - begun) * 1000)

    return run


class Metered(Executor):
    """An executor whose jobs are metered. Closing it is left to the owner of the one within."""

    def __init__(self, within: Executor) -> None:
        self._within = within

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        return self._within.submit(metered(partial(fn, *args, **kwargs)))
