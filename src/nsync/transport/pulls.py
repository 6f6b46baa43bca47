"""Which log is being pulled from whom: what the exchanges of one instance share, so that nothing is fetched twice.

An exchange claims authors before it asks for them, and gives them back when it has asked:

    little is missing      all that nobody else has claimed: one question brings it, in causal order
    much is missing        its share, which is the whole divided by the peers that are well; then the next ones
    nothing is unclaimed   nothing; the exchange ends, and its peer is asked again when something is given back

Authors that were claimed longest ago come first, so one whose log waits for another's does not keep it from being fetched.
One that has too much waiting to be applied rests for a while.
A claim on an author lasts while it brings something of it: whose lease has run out keeps it only until somebody else wants it.

Not thread-safe: it lives on the event loop. Pure: `now_ms` (of a clock that never jumps) is passed in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Callable

LEASE_MS = 10_000
"""For one batch to come and be stored: 64 KiB at 6 kB/s, or a segment of 1 MiB at 100 kB/s."""

SHARE_OPS_MIN = 4096
"""One full segment: less than that is not worth dividing, and one round trip brings it."""


REST_MS = 10_000
"""How long an author is not asked for when too much of its log waits here, and nothing was applied."""


@dataclass(frozen=True)
class _Claim:
    peer: str
    until_ms: int


class Pulls:
    """The register of claims."""

    def __init__(self, helpers: Callable[[], int], given_back: Callable[[], None]) -> None:
        """`helpers`: how many peers are well; `given_back`: called when an author may be claimed again."""
        self._helpers = helpers
        self._given_back = given_back
        self._claims: dict[bytes, _Claim] = {}
        self._resting: dict[bytes, int] = {}
        self._order: dict[bytes, int] = {}
        """When each author was claimed last, counted in claims."""
        self._count = 0

    def claim(self, peer: str, missing: Mapping[bytes, int], now_ms: int) -> set[bytes]:
        """Authors of `missing` (author → ops) that `peer`, and nobody else, is now asked for."""
        self._resting = {author: until_ms for author, until_ms in self._resting.items() if until_ms > now_ms}
        free = sorted((a for a in missing if self._is_free(a, peer, now_ms)), key=lambda author: (self._order.get(author, 0), author))
        share = max(SHARE_OPS_MIN, -(-sum(missing.values()) // max(1, self._helpers())))
        claimed: set[bytes] = set()
        ops = 0
        for author in free:
            if ops >= share:
                break
            claimed.add(author)
            ops += missing[author]
        self._count += 1
        self._order.update(dict.fromkeys(claimed, self._count))
        self._claims.update(dict.fromkeys(claimed, _Claim(peer, now_ms + LEASE_MS)))
        return claimed

    def renew(self, peer: str, authors: Collection[bytes], moved: Collection[bytes], now_ms: int) -> bool:
        """The claim of `peer` on `authors` has brought something of those that `moved`. Whether to go on: not when that, or when it was
        nothing, some of the rest is somebody else's by now."""
        held = [author for author in moved if self._held(author, peer)]
        for author in held:
            self._claims[author] = _Claim(peer, now_ms + LEASE_MS)
        return bool(held) or all(self._held(author, peer) for author in authors)

    def rest(self, authors: Collection[bytes], now_ms: int) -> None:
        """Too much of `authors` waits here."""
        self._resting.update(dict.fromkeys(authors, now_ms + REST_MS))

    def rested(self) -> None:
        """There may be room for all again."""
        self._resting.clear()

    def give_back(self, peer: str, authors: Collection[bytes]) -> None:
        """`peer` has been asked for `authors`, whatever came of it."""
        held = [author for author in authors if self._held(author, peer)]
        for author in held:
            del self._claims[author]
        if held:
            self._given_back()

    def _is_free(self, author: bytes, peer: str, now_ms: int) -> bool:
        claim = self._claims.get(author)
        return author not in self._resting and (claim is None or (claim.peer != peer and claim.until_ms <= now_ms))

    def _held(self, author: bytes, peer: str) -> bool:
        claim = self._claims.get(author)
        return claim is not None and claim.peer == peer
