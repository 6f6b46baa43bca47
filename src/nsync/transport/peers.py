"""How a peer fares: when it last answered, why it fails, and when it may be tried again; and what was measured of it.

After each failure in a row the ceiling of the pause doubles, from BACKOFF_MS_FIRST to BACKOFF_MS_MAX; the pause is drawn
evenly below it (full jitter), so that the peers of one that was down do not all come back at the same moment. A success
ends it at once.

    event         failures   since        next try       reason
    answered      –          –            –              –          (last contact is noted)
    succeeded     0          none         now            ""
    failed        + 1        kept or now  now + pause    as given
    called        kept       kept         now            kept

It is *called* when it asks something of this instance: it is there, so a back-off of silence ends, though not more often than every
CALLED_MS_MIN, since it may be that it can reach this instance and not the other way. One that spoke, and with whom an exchange failed
all the same, is not tried earlier for that.

A `Meter` gathers what exchanges with a peer measure: bytes, round trip, the peer's clock, its heads. The clock is the median
of the last answers, each with half its round trip as its error; and it is kept against a clock that never jumps, so that
one's own wall clock is known to be right again in the moment in which it is put right.

A peer's word about the time is no more than that: what follows from it needs more than half of all peers (`ahead_ms`, R3.7).

Pure: `now_ms` (of a clock that never jumps), `wall_ms` and `rng` are passed in.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median_high, median_low
from typing import Optional

from nsync.log.stored import Head, PeerRecord

BACKOFF_MS_MIN = 100
"""Never at once: a peer that refuses connections must not be asked in a loop."""

BACKOFF_MS_FIRST = 1_000
BACKOFF_MS_MAX = 60_000
"""A peer that is back is found within a minute, also when it cannot reach us."""

CALLED_MS_MIN = 10_000
"""Between two tries of a peer that calls and does not answer."""

SIGN_AHEAD_MS_MAX = 30_000
"""Nothing is signed while the clock here is further ahead of the median of the peers' (R3.7)."""

CLOCK_HEADER = "Nsync-Time"
"""In every answer: what the clock of who answers shows, in ms since 1970."""

SAMPLES = 5
"""Answers whose median is the peer's clock: one that was slow, or wrong, moves nothing."""

CLOCK_MS_MAX = 1 << 48
"""A time that a peer may name: as for stamps."""

CLOCK_AGE_MS_MAX = 600_000
"""What a peer's clock showed counts for ten minutes."""


@dataclass(frozen=True)
class PeerState:
    """What is known of one peer."""

    name: str
    last_contact_ms: Optional[int] = None
    failures: int = 0
    """In a row."""
    since_ms: Optional[int] = None
    """When this row of failures began."""
    next_try_ms: int = 0
    reason: str = ""
    """Of the last failure; empty for a healthy peer."""
    silent: bool = False
    """Whether it fails and said nothing when it was tried last."""
    called_ms: Optional[int] = None
    """When its call last ended a pause of this row of failures."""

    def answered(self, now_ms: int) -> PeerState:
        return replace(self, last_contact_ms=now_ms)

    def succeeded(self, now_ms: int) -> PeerState:
        return PeerState(self.name, last_contact_ms=self.last_contact_ms, next_try_ms=now_ms)

    def called(self, now_ms: int) -> PeerState:
        if not self.silent or (self.called_ms is not None and now_ms - self.called_ms < CALLED_MS_MIN):
            return self
        return replace(self, next_try_ms=now_ms, called_ms=now_ms)

    def failed(self, now_ms: int, reason: str, rng: random.Random, silent: bool = False) -> PeerState:
        ceiling_ms = min(BACKOFF_MS_MAX, BACKOFF_MS_FIRST << min(self.failures, 16))
        return replace(
            self,
            failures=self.failures + 1,
            since_ms=now_ms if self.since_ms is None else self.since_ms,
            next_try_ms=now_ms + rng.randint(BACKOFF_MS_MIN, ceiling_ms),
            reason=reason,
            silent=silent,
        )

    def pause_ms(self, now_ms: int) -> int:
        """How long not to try it."""
        return max(0, self.next_try_ms - now_ms)


class Meter:
    """What exchanges with one peer measure; from both sides, on one event loop."""

    def __init__(self) -> None:
        self.bytes_in = 0
        self.bytes_out = 0
        self.round_trip_ms: Optional[int] = None
        self.heads: Optional[tuple[Head, ...]] = None
        self._heads_ms = 0
        self._clock_ms = 0
        self._ahead: deque[int] = deque(maxlen=SAMPLES)
        """What the peer's wall clock showed, less what the steady clock here did."""

    def count(self, received: int, sent: int) -> None:
        """So many bytes came from the peer, and went to it."""
        self.bytes_in += received
        self.bytes_out += sent

    def answered(self, asked_ms: int, now_ms: int, clock: str) -> None:
        """A question of `asked_ms` is answered, and the peer says that its clock shows `clock`."""
        self.round_trip_ms = now_ms - asked_ms
        if clock.isdecimal() and len(clock) <= 15 and int(clock) <= CLOCK_MS_MAX:
            self._ahead.append(int(clock) - (asked_ms + now_ms) // 2)
            self._clock_ms = now_ms

    def saw(self, heads: Sequence[Head], now_ms: int) -> None:
        """The peer has told where its logs end."""
        self.heads = tuple(heads)
        self._heads_ms = now_ms

    def offset_ms(self, now_ms: int, wall_ms: int) -> Optional[int]:
        """How far the peer's clock is ahead of the one here; None when it has not told for long."""
        if not self._ahead or now_ms - self._clock_ms > CLOCK_AGE_MS_MAX:
            return None
        return median_low(self._ahead) - (wall_ms - now_ms)

    def record(self, state: PeerState, now_ms: int, wall_ms: int) -> PeerRecord:
        """All that is known of the peer that fares like `state`, to be kept and shown."""

        def wall(steady_ms: Optional[int]) -> Optional[int]:
            return None if steady_ms is None else steady_ms - now_ms + wall_ms

        return PeerRecord(
            name=state.name,
            written_ms=wall_ms,
            contact_ms=wall(state.last_contact_ms),
            round_trip_ms=self.round_trip_ms,
            offset_ms=self.offset_ms(now_ms, wall_ms),
            heads=self.heads,
            heads_ms=wall(self._heads_ms) if self.heads is not None else None,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            failures=state.failures,
            since_ms=wall(state.since_ms),
            next_try_ms=wall(state.next_try_ms) if state.failures else None,
            reason=state.reason,
        )

    def recall(self, record: PeerRecord, now_ms: int, wall_ms: int) -> PeerState:
        """Go on from what an earlier process put down; the clocks are asked for anew."""

        def steady(then_ms: Optional[int]) -> Optional[int]:
            return None if then_ms is None else min(then_ms - wall_ms, 0) + now_ms

        self.bytes_in, self.bytes_out = record.bytes_in, record.bytes_out
        self.round_trip_ms, self.heads = record.round_trip_ms, record.heads
        self._heads_ms = steady(record.heads_ms) or 0
        pause_ms = max(0, min((record.next_try_ms or 0) - wall_ms, BACKOFF_MS_MAX))
        return PeerState(
            record.name,
            last_contact_ms=steady(record.contact_ms),
            failures=record.failures,
            since_ms=steady(record.since_ms),
            next_try_ms=now_ms + pause_ms,
            reason=record.reason,
        )


def held_back(ahead: Optional[int]) -> Optional[str]:
    """Why nothing is signed here while the clock is so far ahead of the median of the peers' (R3.7), or None."""
    if ahead is None or ahead <= SIGN_AHEAD_MS_MAX:
        return None
    return (
        f"the clock here is more than {SIGN_AHEAD_MS_MAX // 1000} s ahead of the median of the peers'; "
        "it goes on once the clock is right ('nsync peer list' shows each peer's)"
    )


def held_back_by(records: Iterable[PeerRecord], now_ms: int) -> Optional[str]:
    """The same, by what the table of peers has of the last minutes."""
    return held_back(ahead_ms(record.offset_ms for record in records if now_ms - (record.contact_ms or 0) <= CLOCK_AGE_MS_MAX))


def ahead_ms(offsets_ms: Iterable[Optional[int]]) -> Optional[int]:
    """How far the clock here is ahead of the median of the peers', given how far each is ahead of it; None when none is known.

    Of two medians it is the one that is nearer to the clock here: with two peers, one that lies keeps nobody from signing.
    """
    known = [offset for offset in offsets_ms if offset is not None]
    return -median_high(known) if known else None
