"""The laws that the merge rests on: to read the slots is to read the whole log, and pasts kept as steps are the plain vectors (R3.3-R3.5).

The oracle reads the log the obvious way: every statement ever made, with the past of each as a plain version vector.
Stamps of guests lie, so nothing may depend on them but the choice of a value among what nobody has seen the successor of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Callable, NamedTuple, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, insert

from nsync.authority.rulings import Given, Rulings
from nsync.clock import Stamp
from nsync.crdt import Dot, Past, Slot, maximal, newest, standing
from nsync.crdt.orset import Silences, anyone
from nsync.crdt.past import contains
from nsync.log.forks import Mark
from nsync.namespace.keys import Did
from nsync.store import schema
from nsync.store.lines import SqlLines
from tests.property.stories import GENESIS
from tests.support.database import disposed, memory_engine

AUTHORS = tuple(sorted(instance.author for instance in GENESIS.instances))
HOME = next(instance.author for instance in GENESIS.instances if instance.name == "atlas")
KEYS = (Did("atlas", "f1"), Did("atlas", "f2"))
"""In a scope of the home's; the other three are its guests."""


class Op(NamedTuple):
    """A statement with its whole past."""

    slot: Slot
    key: Did
    seen: dict[bytes, int]


class Logs:
    """What rulings ask of logs in which nobody grants anything and no floor is voted for. Of each op it has the whole past."""

    def __init__(self) -> None:
        self.seen: dict[Dot, dict[bytes, int]] = {}

    def seen_from(self, author: bytes, dot: Dot) -> Optional[int]:
        """The first position of `author`'s log whose past holds `dot`."""
        return min(
            (own.seq for own, seen in self.seen.items() if own.author == author and seen.get(dot.author, 0) >= dot.seq), default=None
        )

    def head(self, author: bytes) -> int:
        return 0

    def floors(self) -> Sequence[Mapping[bytes, int]]:
        return ()

    def given(self, author: bytes) -> Sequence[Given]:
        return ()


class History:
    """What four authors said, each knowing what it had fetched by then."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.pasts = Logs()
        self.deps: dict[Dot, list[Dot]] = {}
        self._seen: dict[bytes, dict[bytes, int]] = {author: {} for author in AUTHORS}
        self._clock = dict.fromkeys(AUTHORS, 0)
        self._seqs = dict.fromkeys(AUTHORS, 0)

    def fetch(self, author: bytes, other: bytes) -> None:
        for known, seq in [(other, self._seqs[other]), *self._seen[other].items()]:
            if known != author and seq > self._seen[author].get(known, 0):
                self._seen[author][known] = seq
        self._clock[author] = max(self._clock[author], self._clock[other])

    def say(self, author: bytes, key: Did, value: Optional[int], lie: Optional[int]) -> None:
        self._seqs[author] += 1
        self._clock[author] += 1
        stamp = self._clock[author] if lie is None or author == HOME else lie
        dot = Dot(author, self._seqs[author])
        self.deps[dot] = self._deps(author)
        self.pasts.seen[dot] = dict(self._seen[author])
        self.ops.append(Op(Slot(dot, Stamp(stamp, 0), value is None, value), key, dict(self._seen[author])))

    def _deps(self, author: bytes) -> list[Dot]:
        """The maximal ones of what `author` has seen: the rest must come out by closure."""
        heads = [Dot(other, seq) for other, seq in self._seen[author].items() if seq]
        seen_by = {op.slot.dot: op.seen for op in self.ops}
        return [dot for dot in heads if not any(seen_by[head].get(dot.author, 0) >= dot.seq for head in heads)]


SAY = st.tuples(st.sampled_from(AUTHORS), st.sampled_from(KEYS), st.none() | st.integers(0, 99), st.none() | st.none() | st.integers(0, 60))
FETCH = st.tuples(st.sampled_from(AUTHORS), st.sampled_from(AUTHORS))
STEPS = st.lists(st.one_of(SAY, FETCH), min_size=1, max_size=44) | st.lists(st.one_of(SAY, FETCH), min_size=30, max_size=44)
"""Few steps, and so many that what one has heard of another comes to a third (Hypothesis makes lists of six on average)."""


def history(steps: list[tuple[object, ...]]) -> History:
    made = History()
    for step in steps:
        if len(step) == 2:
            made.fetch(*step)  # type: ignore[arg-type]
        else:
            made.say(*step)  # type: ignore[arg-type]
    return made


# ---- the oracle


def past(later: Op, earlier: Op) -> bool:
    """Whether `earlier` is in the past of `later`, by the vector that `later` carries."""
    author, seq = earlier.slot.dot
    return seq < later.slot.dot.seq if author == later.slot.dot.author else seq <= later.seen.get(author, 0)


def full_reading(ops: list[Op], silences: Silences) -> tuple[object, ...]:
    retracts = [op for op in ops if op.slot.retract]
    stand = [op for op in ops if not op.slot.retract and not any(past(r, op) and silences(r.slot, op.slot) for r in retracts)]
    most = [op for op in stand if not any(past(other, op) for other in stand)]
    return reading([op.slot for op in most])


def reading(most: list[Slot]) -> tuple[object, ...]:
    """Presence, value, and the register that keeps all."""
    return bool(most), max(most, key=lambda slot: slot.order).value if most else None, {slot.dot: slot.value for slot in most}


def slot_reading(slots: list[Slot], pasts: Past, silences: Silences) -> tuple[object, ...]:
    stand = standing(slots, pasts, silences)
    found = reading(maximal(stand, pasts))
    value = newest(stand, pasts)
    assert found[1] == (value.value if value else None)
    return found


def slots_of(ops: Sequence[Op], key: Did) -> list[Slot]:
    """Of each author the statement about `key` with the greatest seq."""
    last = {op.slot.dot.author: op.slot for op in sorted(ops, key=lambda op: op.slot.dot.seq) if op.key == key}
    return [slot for _, slot in sorted(last.items())]


def plain_set(logs: Logs, key: Did) -> Silences:
    return anyone


def shared_scope(logs: Logs, key: Did) -> Silences:
    return partial(Rulings(GENESIS, logs).silences, key)


@pytest.mark.parametrize("law", [plain_set, shared_scope], ids=["anyone silences", "home and oneself silence"])
@settings(max_examples=400, deadline=None)
@given(steps=STEPS)
def test_reading_the_slots_is_reading_the_whole_log(law: Callable[[Logs, Did], Silences], steps: list[tuple[object, ...]]) -> None:
    made = history(steps)
    for count, op in enumerate(made.ops, 1):  # at every moment, not only at the end
        said = [other for other in made.ops[:count] if other.key == op.key]
        silences = law(made.pasts, op.key)
        assert slot_reading(slots_of(said, op.key), made.pasts, silences) == full_reading(said, silences)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.data())
def test_what_an_instance_has_that_lacks_some_logs_reads_as_those_logs(steps: list[tuple[object, ...]], data: st.DataObject) -> None:
    """Any causally closed part of the history: what one instance has at some time."""
    made = history(steps)
    if not made.ops:
        return
    top = data.draw(st.sampled_from(made.ops))
    part = [op for op in made.ops if op == top or past(top, op)]
    for key in KEYS:
        said = [op for op in part if op.key == key]
        assert slot_reading(slots_of(part, key), made.pasts, anyone) == full_reading(said, anyone)


def stored(connection: Connection, made: History) -> SqlLines:
    """The pasts of a history as a store keeps them, a segment for each op."""
    for number, author in enumerate(AUTHORS, 1):
        seq = sum(op.slot.dot.author == author for op in made.ops)
        end = {"applied": seq, "applied_hash": bytes(16), "applied_stamp_ms": seq, "applied_stamp_logical": 0} if seq else {"applied": 0}
        row = {"id": number, "author": author, "first": 1, "last": seq, "hash": bytes(16), "stamp_ms": seq, "stamp_logical": 0}
        connection.execute(insert(schema.branch).values(**row, **end, open_segments=0))
    lines = SqlLines(connection, GENESIS)
    for op in made.ops:
        dot = op.slot.dot
        lines.grow(branch_of(dot.author), dot.seq, [Mark(branch_of(dep.author), dep.seq) for dep in made.deps[dot]])
    return lines


def branch_of(author: bytes) -> int:
    return AUTHORS.index(author) + 1  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_pasts_by_steps_are_the_plain_vectors(steps: list[tuple[object, ...]]) -> None:
    made = history(steps)
    with disposed(memory_engine()) as engine, engine.begin() as connection:
        lines = stored(connection, made)
        for later in made.ops:
            author, seq = later.slot.dot
            assert lines.past(Mark(branch_of(author), seq)) == {branch_of(other): seen for other, seen in later.seen.items() if seen}
            for earlier in made.ops:
                assert contains(lines, later.slot.dot, earlier.slot.dot) == past(later, earlier)
