"""The laws that the merge rests on: slots are a lattice, and reading them is reading the whole log (R3.3-R3.5).

The oracle reads the log the obvious way: every statement ever made, with the past of each as a plain version vector.
Stamps of guests lie, so nothing may depend on them but the choice of a value among what nobody has seen the successor of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Callable, NamedTuple, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsync.authority.rulings import Given, Rulings
from nsync.clock import Stamp
from nsync.crdt import Dot, Pasts, Slot, Slots, maximal, newest, standing
from nsync.crdt.orset import Silences, anyone
from nsync.crdt.past import contains, steps_of
from nsync.namespace.keys import Did
from tests.property.stories import GENESIS

AUTHORS = tuple(sorted(instance.author for instance in GENESIS.instances))
HOME = next(instance.author for instance in GENESIS.instances if instance.name == "atlas")
KEYS = (Did("atlas", "f1"), Did("atlas", "f2"))
"""In a scope of the home's; the other three are its guests."""


class Op(NamedTuple):
    """A statement with its whole past."""

    slot: Slot
    key: Did
    seen: dict[bytes, int]


class Logs(Pasts):
    """What rulings ask of logs in which nobody grants anything and no floor is voted for."""

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
        for step in steps_of(self.pasts, author, dot.seq, self._deps(author)):
            self.pasts.add(step)
        self.ops.append(Op(Slot(dot, Stamp(stamp, 0), value is None, value), key, dict(self._seen[author])))

    def _deps(self, author: bytes) -> list[Dot]:
        """The maximal ones of what `author` has seen: the rest must come out by closure."""
        heads = [Dot(other, seq) for other, seq in self._seen[author].items() if seq]
        seen_by = {op.slot.dot: op.seen for op in self.ops}
        return [dot for dot in heads if not any(seen_by[head].get(dot.author, 0) >= dot.seq for head in heads)]


SAY = st.tuples(st.sampled_from(AUTHORS), st.sampled_from(KEYS), st.none() | st.integers(0, 99), st.none() | st.none() | st.integers(0, 60))
FETCH = st.tuples(st.sampled_from(AUTHORS), st.sampled_from(AUTHORS))
STEPS = st.lists(st.one_of(SAY, FETCH), min_size=1, max_size=44)


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


def slot_reading(slots: list[Slot], pasts: Pasts, silences: Silences) -> tuple[object, ...]:
    stand = standing(slots, pasts, silences)
    found = reading(maximal(stand, pasts))
    value = newest(stand, pasts)
    assert found[1] == (value.value if value else None)
    return found


def joined(ops: list[Op]) -> Slots:
    slots = Slots()
    for op in ops:
        slots.join(op.key, op.slot)
    return slots


def plain_set(logs: Logs, key: Did) -> Silences:
    return anyone


def shared_scope(logs: Logs, key: Did) -> Silences:
    return partial(Rulings(GENESIS, logs).silences, key)


@pytest.mark.parametrize("law", [plain_set, shared_scope], ids=["anyone silences", "home and oneself silence"])
@settings(max_examples=400, deadline=None)
@given(steps=STEPS)
def test_reading_the_slots_is_reading_the_whole_log(law: Callable[[Logs, Did], Silences], steps: list[tuple[object, ...]]) -> None:
    made = history(steps)
    slots = Slots()
    for count, op in enumerate(made.ops, 1):  # at every moment, not only at the end
        slots.join(op.key, op.slot)
        said = [other for other in made.ops[:count] if other.key == op.key]
        silences = law(made.pasts, op.key)
        assert slot_reading(slots.of(op.key), made.pasts, silences) == full_reading(said, silences)


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
        assert slot_reading(joined(part).of(key), made.pasts, anyone) == full_reading(said, anyone)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_pasts_by_steps_are_the_plain_vectors(steps: list[tuple[object, ...]]) -> None:
    made = history(steps)
    for later in made.ops:
        assert made.pasts.at(later.slot.dot) == {a: s for a, s in later.seen.items() if s}
        for earlier in made.ops:
            assert contains(made.pasts, later.slot.dot, earlier.slot.dot) == past(later, earlier)


# ---- the lattice


def merge(one: Slots, other: Slots) -> Slots:
    """The join of two states."""
    result = Slots()
    for state in (one, other):
        for key in sorted(state.keys()):  # type: ignore[type-var]
            for slot in state.of(key):
                result.join(key, slot)
    return result


def plain(state: Slots) -> dict[object, list[Slot]]:
    return {key: state.of(key) for key in sorted(state.keys())}  # type: ignore[type-var]


@settings(max_examples=300, deadline=None)
@given(STEPS, st.data())
def test_the_join_is_commutative_associative_and_idempotent(steps: list[tuple[object, ...]], data: st.DataObject) -> None:
    ops = history(steps).ops
    parts = [joined(data.draw(st.lists(st.sampled_from(ops), max_size=20)) if ops else []) for _ in range(3)]
    a, b, c = parts
    assert plain(merge(a, b)) == plain(merge(b, a))
    assert plain(merge(merge(a, b), c)) == plain(merge(a, merge(b, c)))
    assert plain(merge(a, a)) == plain(a) == plain(merge(a, Slots()))
    assert plain(merge(merge(a, b), b)) == plain(merge(a, b))
    assert plain(reduce(merge, parts, joined(ops))) == plain(joined(ops)), "the whole history is the greatest of its parts"


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_join_tells_whether_the_state_changed(steps: list[tuple[object, ...]]) -> None:
    slots = Slots()
    for op in history(steps).ops:
        before = plain(slots)
        assert slots.join(op.key, op.slot) is (plain(slots) != before) is True
        assert slots.join(op.key, op.slot) is False
