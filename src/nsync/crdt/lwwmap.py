"""The last-writer-wins map: causally last, then greatest stamp (R3.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from nsync.crdt.mvregister import maximal
from nsync.crdt.past import Past
from nsync.crdt.slots import Slot


def newest(standing: Sequence[Slot], past: Past) -> Optional[Slot]:
    """The statement whose value a map shows: the greatest (stamp, author, seq) among the maximal standing ones."""
    return max(maximal(standing, past), key=lambda slot: slot.order, default=None)
