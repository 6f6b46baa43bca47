"""What can go wrong, and when it strikes.

Each kind that a story has strikes at least once: the dice see to it that the first opportunity after a drawn time is taken, and a
story in which a kind never came to pass has failed, since it has shown nothing about it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection
from typing import Callable

KINDS = {
    "loss": "a request or its answer never arrives, or the connection breaks in the middle of an answer",
    "duplication": "a request arrives twice, the second time whenever it likes",
    "reordering": "the segments of a batch arrive in another order",
    "delay": "a request or its answer takes up to 20 s",
    "partition": "some links are cut, in one direction or both",
    "crash": "a process ends between any two steps, what is not committed is lost, and it starts again",
    "restore": "a database is replaced by an older copy of itself",
    "amnesia": "the same, and it signs again before it has heard how far its own log had come",
    "succession": "the charter ends an instance's log and it goes on as its next incarnation; each goes over in its own time",
    "departure": "an instance is gone for good, its database too",
    "skew": "a clock jumps by a second to a year, forwards or backwards",
    "backdating": "an author stamps a segment before what it has seen",
    "wrong-deps": "an author names deps that no honest author names",
    "wrong-gone": "an instance says that ops are gone which are live, in segments and when asked to repair",
    "forgery": "an instance passes on segments in another's name",
    "fork": "an author signs two histories, and shows one to some and the other to others",
    "double-vote": "a member signs two votes for one floor, and shows one to some and the other to others",
    "false-head": "a signed head in another's name, or of what nobody signed",
    "lying-heads": "an instance announces more or less than it has",
    "withholding": "an instance leaves out segments of what it passes on",
    "garbage": "an instance sends bytes that are no segment, or no message",
}
"""The faults that everything must survive."""

ATTACKS = ("backdating", "wrong-deps", "forgery", "garbage", "fork", "double-vote", "false-head", "wrong-gone")
"""What a hostile instance does of its own accord, and some of it when asked, too."""

HOSTILE = (*ATTACKS, "lying-heads", "withholding")
"""What only a hostile instance does. It has a valid key, and goes on after the network has healed."""

RATES = {
    **{"loss": 0.04, "duplication": 0.06, "reordering": 0.2, "delay": 0.04},
    **{"lying-heads": 0.2, "withholding": 0.3, "garbage": 0.1, "wrong-gone": 0.5},
}
"""How often a kind strikes for which there are many opportunities."""

KEPT = 0.6
"""The share of kinds that a story has when none are asked for: what is left out makes room for the others."""


def draw(rng: random.Random) -> frozenset[str]:
    """The kinds of one story, three at least."""
    kinds = sorted(KINDS)
    kept = [kind for kind in kinds if rng.random() < KEPT]
    return frozenset(kept) | frozenset(rng.sample(kinds, 3))


class Dice:
    """Decides when what happens by chance does, and counts all of it."""

    def __init__(self, kinds: Collection[str], rng: random.Random, due_s: float, now_s: Callable[[], float]) -> None:
        """From `due_s` on at the latest, the first opportunity for each kind is taken."""
        self.kinds = frozenset(kinds)
        self.counts: Counter[str] = Counter()
        self.peace = False
        """Set when honest instances and the network have no more faults; hostile instances never have peace."""
        self._rng = rng
        self._now_s = now_s
        self._due_s = {kind: rng.uniform(0, due_s) for kind in sorted(kinds)}

    def strike(self, kind: str) -> bool:
        """Whether `kind` takes this opportunity; then it has happened."""
        if kind not in self.kinds or (self.peace and kind not in HOSTILE):
            return False
        overdue = not self.counts[kind] and self._now_s() >= self._due_s[kind]
        if overdue or self._rng.random() < RATES[kind]:
            self.counts[kind] += 1
            return True
        return False

    def never_happened(self) -> list[str]:
        """The kinds that this story should have had."""
        return sorted(kind for kind in self.kinds if not self.counts[kind])
