"""The observed-remove set: concurrent add wins (R3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

from nsync.crdt.past import Past, contains
from nsync.crdt.slots import Slot

Silences = Callable[[Slot, Slot], bool]
"""(retract, assert) → whether the retract's author may silence the assert's."""


def anyone(retract: Slot, asserted: Slot) -> bool:
    """The plain set: any Retract silences any Assert it had seen."""
    return True


def standing(slots: Sequence[Slot], past: Past, silences: Silences = anyone) -> list[Slot]:
    """The Asserts that no Retract silences. The fact stands iff there is one."""
    retracts = [slot for slot in slots if slot.retract]
    return [
        slot
        for slot in slots
        if not slot.retract and not any(contains(past, retract.dot, slot.dot) and silences(retract, slot) for retract in retracts)
    ]
