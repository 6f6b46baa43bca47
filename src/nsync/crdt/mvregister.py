"""The register that keeps every value nobody had seen the successor of (R3.3)."""

from __future__ import annotations

from collections.abc import Sequence

from nsync.crdt.past import Past, contains
from nsync.crdt.slots import Slot


def maximal(slots: Sequence[Slot], past: Past) -> list[Slot]:
    """The statements among `slots` that are in the past of no other one.

    Every reading looks at these only: then slots answer as the whole log does, also where stamps lie.
    """
    return [slot for slot in slots if not any(contains(past, other.dot, slot.dot) for other in slots)]
