"""Named places at which a test can end the process, as a power cut would.

`NSYNC_FAILPOINT=name` or `name:k` (the k-th time it is passed) kills the process there with SIGKILL. Without the variable a place
costs one dictionary look-up. The names stand where they are passed: `grep -rn failpoint src`.
"""

from __future__ import annotations

import os
import signal

_WANTED, _, _COUNT = os.environ.get("NSYNC_FAILPOINT", "").partition(":")
_left = int(_COUNT or "1")


def failpoint(name: str) -> None:
    """End the process here, if this is the place and the time that a test chose."""
    global _left
    if name == _WANTED:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
