"""What one peer may cost this instance, so that the others are served beside it. Pure: the time is passed in.

    budget      a second   at once   what it is charged
    requests          60       300   each authenticated request
    signatures      2000     20000   segments that brought nothing: refused, or known already; all signatures of notices
    cpu_ms           250      2000   time of threads that work for it
    body_bytes    16 MiB    64 MiB   bodies, as sent

A new segment is what peers are for: it costs no signatures, and no time of threads either. Notices are few, and are charged before
they are looked at, new or not. A budget is asked before a request is
answered, and charged when its cost is known: one exchange, bounded by the limits of `wire`, can overdraw it, and the peer
waits until the debt is paid.

    room        per peer   in all    is held
    bytes         24 MiB   48 MiB    by what has come of a body until it is answered, and by the segments in it until they are durable
    segments       32768             by segments until they are durable

Room is held by what came, not by what was announced: who sends little takes little. A request has its first 64 KiB whatever all others
hold, so that big pushes keep no small request out.

Accounts exist for the names given at the start only, so nothing here grows with what strangers do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Optional, Protocol

from nsync.errors import TransportError

REQUESTS, SIGNATURES, CPU_MS, BODY_BYTES = "requests", "signatures", "cpu_ms", "body_bytes"
BYTES, SEGMENTS = "bytes", "segments"

PEER_BYTES_MAX = 24 << 20
"""Two pushes of one batch that does not compress, each as sent and as inflated."""
BYTES_MAX = 48 << 20
SMALL_BYTES = 64 << 10
PEER_SEGMENTS_MAX = 32_768
RETRY_S_MAX = 60

BODY_GRACE_S = 5.0
BODY_BYTES_PER_S_MIN = 16 << 10
"""A body that comes more slowly, after the grace, is not waited for: 128 kbit/s carry any federation's news."""


class Budget(NamedTuple):
    """How fast an allowance comes back, and how much of it can be saved up."""

    per_s: float
    burst: float


PEER_BUDGETS = {
    REQUESTS: Budget(60, 300),
    SIGNATURES: Budget(2000, 20_000),
    CPU_MS: Budget(250, 2000),
    BODY_BYTES: Budget(16 << 20, 64 << 20),
}

REFUSALS_TOLD = Budget(0.2, 20)
"""Lines in the log about requests that were refused: strangers can make any number of those."""


class Exhausted(TransportError):
    """A limit is reached; the same may be tried after `retry_s`."""

    def __init__(self, text: str, limit: str, retry_s: int = 1) -> None:
        super().__init__(text)
        self.limit = limit
        self.retry_s = retry_s


class Take(Protocol):
    """Takes room for a request, piece by piece. Raises Exhausted."""

    def __call__(self, size: int, segments: int = 0) -> None: ...


class Bucket:
    """An allowance that comes back with time."""

    def __init__(self, budget: Budget, now_ms: int) -> None:
        self._budget = budget
        self._left = budget.burst
        self._at_ms = now_ms

    def wait_ms(self, now_ms: int) -> int:
        """How long until something is left again; 0 if there is."""
        self._refill(now_ms)
        return 0 if self._left > 0 else math.floor(-self._left * 1000 / self._budget.per_s) + 1

    def charge(self, amount: float, now_ms: int) -> None:
        """Take `amount`, also what is not there."""
        self._refill(now_ms)
        self._left -= amount

    def _refill(self, now_ms: int) -> None:
        passed_ms = max(0, now_ms - self._at_ms)  # a clock that was set back gives nothing
        self._left = min(self._budget.burst, self._left + passed_ms * self._budget.per_s / 1000)
        self._at_ms = now_ms


class Budgets:
    """The accounts of all peers."""

    def __init__(self, names: Iterable[str], now_ms: int, budgets: Optional[Mapping[str, Budget]] = None) -> None:
        given = (budgets or PEER_BUDGETS).items()
        self._buckets = {name: {limit: Bucket(budget, now_ms) for limit, budget in given} for name in names}
        self._held: dict[str, Counter[str]] = {name: Counter() for name in self._buckets}

    def admit(self, name: str, now_ms: int) -> None:
        """Begin one request of the peer `name`. Raises Exhausted while one of its budgets is overdrawn."""
        for limit, bucket in self._buckets[name].items():
            wait_ms = bucket.wait_ms(now_ms)
            if wait_ms:
                retry_s = min(RETRY_S_MAX, math.ceil(wait_ms / 1000))
                raise Exhausted(f"{name} has used up its {limit}; it may come back in {retry_s} s", limit, retry_s)
        self.charge(name, REQUESTS, 1, now_ms)

    def charge(self, name: str, limit: str, amount: float, now_ms: int) -> None:
        self._buckets[name][limit].charge(amount, now_ms)

    @contextmanager
    def room(self, name: str) -> Iterator[Take]:
        """For one request of the peer `name`: call it for so many bytes, and segments in them, as come. Raises Exhausted, then, when
        there is no room for them. All of it is given back at the end."""
        mine, taken = self._held[name], Counter[str]()

        def take(size: int, segments: int = 0) -> None:
            if mine[BYTES] + size > PEER_BYTES_MAX:
                raise Exhausted(f"{name} has {mine[BYTES]} bytes under way; {PEER_BYTES_MAX} is the limit", BYTES)
            if mine[SEGMENTS] + segments > PEER_SEGMENTS_MAX:
                raise Exhausted(f"{name} has {mine[SEGMENTS] + segments} segments under way; {PEER_SEGMENTS_MAX} is the limit", SEGMENTS)
            if self.held + size > BYTES_MAX and taken[BYTES] + size > SMALL_BYTES:
                raise Exhausted(f"busy with {self.held} bytes of all peers; {BYTES_MAX} is the limit", BYTES)
            for account in (mine, taken):
                account.update({BYTES: size, SEGMENTS: segments})

        try:
            yield take
        finally:
            mine.subtract(taken)

    @property
    def held(self) -> int:
        """Bytes under way, of all peers."""
        return sum(held[BYTES] for held in self._held.values())


def body_s_max(received: int, s_max: float) -> float:
    """How long after its first byte was awaited a body of which `received` bytes are here may still be worth waiting for."""
    return min(s_max, BODY_GRACE_S + received / BODY_BYTES_PER_S_MIN)
