"""Hybrid logical time: stamps that order readings, and nothing else (R3.7).

A stamp is greater than every stamp its maker has seen, and follows wall time where wall time runs forward.
Time is always passed in (`now_ms`), so no test needs to patch a clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

AHEAD_MS_MAX = 60_000
"""A segment stamped further ahead of local time than this waits until time catches up (R3.7)."""


STAMP_MAX = 1 << 48
"""Of either part of a stamp: the year 10889, and more statements than a millisecond has seen."""


class Stamp(NamedTuple):
    """A point of hybrid time: wall clock in milliseconds since 1970, then a counter for what shares the millisecond."""

    ms: int
    logical: int


ZERO = Stamp(0, 0)


def next_stamp(now_ms: int, seen: Iterable[Stamp]) -> Stamp:
    """The least stamp that is at least `now_ms` and greater than every stamp in `seen`.

    A counter at its maximum goes over to the next millisecond: else one author who signs with it would keep all who see it from signing.
    """
    last = max(seen, default=ZERO)
    if now_ms > last.ms:
        return Stamp(now_ms, 0)
    return Stamp(last.ms, last.logical + 1) if last.logical < STAMP_MAX else Stamp(last.ms + 1, 0)
