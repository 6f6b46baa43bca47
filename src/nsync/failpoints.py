"""Named places at which a test can end the process, as a power cut would.

`NSYNC_FAILPOINT=name` or `name:k` (the k-th time it is passed) kills the process there with SIGKILL; `name:k:stop` stops it with SIGSTOP,
until somebody sends SIGCONT. Within `watched` a test in the same
process is told of each place, and ends the step there by raising. Otherwise a place costs two comparisons. The names stand
where they are passed: `grep -rn failpoint src`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable, Optional

_WANTED, _COUNT, _HOW = (*os.environ.get("NSYNC_FAILPOINT", "").split(":", 2), "", "")[:3]
_SIGNAL = signal.SIGSTOP if _HOW == "stop" else signal.SIGKILL
_left = int(_COUNT or "1")
_watch: Optional[Callable[[str], None]] = None


def failpoint(name: str) -> None:
    """End the process here, if this is the place and the time that a test chose."""
    global _left
    if _watch is not None:
        _watch(name)
    if name == _WANTED:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), _SIGNAL)


@contextmanager
def watched(watch: Callable[[str], None]) -> Iterator[None]:
    """Tell `watch` of each place that is passed within; what it raises comes out of the place. For one thread."""
    global _watch
    before, _watch = _watch, watch
    try:
        yield
    finally:
        _watch = before
