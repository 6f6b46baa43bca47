"""Pasts: which dots a segment had seen (DESIGN 2, R3.2).

The past of a segment is its own log before it and the closure over its deps. Along one author's log pasts only grow,
so they are kept as the steps by which they grow: "from position p of a's log on, b is seen up to seq s" (`store.lines`). With the
steps of (a, b) sorted, both questions are one search: what had a seen of b at p, and from where on had a seen this dot. The second
one is the useful trick: a dot is in the past of an op iff the op stands at or after that position, so a slot needs no version
vector of its own.
"""

from __future__ import annotations

from typing import NamedTuple, Optional, Protocol


class Dot(NamedTuple):
    """The op at place `seq` (from 1) of `author`'s log."""

    author: bytes
    seq: int


class Past(Protocol):
    """What readings ask about pasts."""

    def seen_from(self, author: bytes, dot: Dot) -> Optional[int]:
        """The first position of `author`'s log whose past holds `dot`, another author's; None if there is none yet."""
        ...


def contains(past: Past, later: Dot, earlier: Dot) -> bool:
    """Whether `earlier` is in the past of `later`."""
    if later.author == earlier.author:
        return earlier.seq < later.seq
    position = past.seen_from(later.author, earlier)
    return position is not None and position <= later.seq
