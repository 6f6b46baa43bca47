"""How a peer fares: when it last answered, why it fails, and when it may be tried again.

After each failure in a row the ceiling of the pause doubles, from BACKOFF_MS_FIRST to BACKOFF_MS_MAX; the pause is drawn
evenly below it (full jitter), so that the peers of one that was down do not all come back at the same moment. A success
ends it at once.

    event         failures   since        next try       reason
    answered      –          –            –              –          (last contact is noted)
    succeeded     0          none         now            ""
    failed        + 1        kept or now  now + pause    as given

Pure: `now_ms` (of a clock that never jumps) and `rng` are passed in.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Optional

BACKOFF_MS_MIN = 100
"""Never at once: a peer that refuses connections must not be asked in a loop."""

BACKOFF_MS_FIRST = 1_000
BACKOFF_MS_MAX = 60_000
"""A peer that is back is found within a minute, also when it cannot reach us."""


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

    def answered(self, now_ms: int) -> PeerState:
        return replace(self, last_contact_ms=now_ms)

    def succeeded(self, now_ms: int) -> PeerState:
        return replace(self, failures=0, since_ms=None, next_try_ms=now_ms, reason="")

    def failed(self, now_ms: int, reason: str, rng: random.Random) -> PeerState:
        ceiling_ms = min(BACKOFF_MS_MAX, BACKOFF_MS_FIRST << min(self.failures, 16))
        return replace(
            self,
            failures=self.failures + 1,
            since_ms=now_ms if self.since_ms is None else self.since_ms,
            next_try_ms=now_ms + rng.randint(BACKOFF_MS_MIN, ceiling_ms),
            reason=reason,
        )

    def pause_ms(self, now_ms: int) -> int:
        """How long not to try it."""
        return max(0, self.next_try_ms - now_ms)
