"""Pasts: which dots a segment had seen (DESIGN 2, R3.2).

The past of a segment is its own log before it and the closure over its deps. Along one author's log pasts only grow,
so they are kept as the steps by which they grow: "from position p of a's log on, b is seen up to seq s". With the steps
of (a, b) sorted, both questions are one binary search: what had a seen of b at p, and from where on had a seen this dot.
The second one is the useful trick: a dot is in the past of an op iff the op stands at or after that position, so a
slot needs no version vector of its own.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
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


class Step(NamedTuple):
    """From `position` of `author`'s log on, `other` is seen up to `seq`."""

    author: bytes
    position: int
    other: bytes
    seq: int


class At(Protocol):
    """What growing pasts asks about pasts."""

    def at(self, dot: Dot) -> Mapping[bytes, int]:
        """What the op at `dot` had seen of each other author."""
        ...


class Pasts:
    """The pasts of all segments of all authors, in memory."""

    def __init__(self, steps: Iterable[Step] = ()) -> None:
        self._positions: dict[tuple[bytes, bytes], list[int]] = {}
        self._seqs: dict[tuple[bytes, bytes], list[int]] = {}
        self._others: dict[bytes, set[bytes]] = {}
        for step in sorted(steps, key=lambda step: step.position):
            self.add(step)

    def add(self, step: Step) -> None:
        """Add a step that stands after all steps of its author so far."""
        pair = (step.author, step.other)
        self._positions.setdefault(pair, []).append(step.position)
        self._seqs.setdefault(pair, []).append(step.seq)
        self._others.setdefault(step.author, set()).add(step.other)

    def seen_from(self, author: bytes, dot: Dot) -> Optional[int]:
        pair = (author, dot.author)
        seqs = self._seqs.get(pair, ())
        index = bisect_left(seqs, dot.seq)
        return self._positions[pair][index] if index < len(seqs) else None

    def at(self, dot: Dot) -> dict[bytes, int]:
        """What the op at `dot` had seen of each other author."""
        seen = {}
        for other in self._others.get(dot.author, ()):
            pair = (dot.author, other)
            index = bisect_right(self._positions[pair], dot.seq)
            if index:
                seen[other] = self._seqs[pair][index - 1]
        return seen


def steps_of(pasts: At, author: bytes, first: int, deps: Iterable[Dot]) -> list[Step]:
    """The steps that a segment of `author` at `first` with these deps adds: the closure, less what was seen before."""
    before: Mapping[bytes, int] = pasts.at(Dot(author, first))
    reached: dict[bytes, int] = {}
    for dep in deps:
        for other, seq in [(dep.author, dep.seq), *pasts.at(dep).items()]:
            reached[other] = max(seq, reached.get(other, 0))
    return [Step(author, first, other, seq) for other, seq in sorted(reached.items()) if other != author and seq > before.get(other, 0)]
