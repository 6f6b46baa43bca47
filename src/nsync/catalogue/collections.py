"""What a collection holds: the rules about one attachment, each a short pure function (R5.5, DESIGN 6.1, 6.2, 6.5).

In this order, each looking only at what the ones before it left: both ends are shown (6.4), their types fit (6.1), the child's scope
is attachable (R5.5), the collection was open (6.2, 6.5), a container is not mixed (6.1), containers hold no cycle (6.3, `cycles`).

- **Not attachable** (R5.5): the home marks the child's scope. An attachment hides iff one of the maximal marks is in the past of every
  maximal standing Assert of it: whoever attaches knowing the mark attaches in vain. What the mark had seen, and what was said
  at the same time, stays; as with a close, marking again lets stand what the new mark has seen.
- **Closed** (6.2): every seal must have seen some maximal standing Assert of an attachment. Seals are the closes among the maximal
  statements about open/closed. While an open-data state stands, its maximal statements are seals too, unless one of
  those closes has seen them: a reopen is ignored then, but whoever closes once more lets stand what that close has seen.
- **Mixed** (6.1): a container holds what the attachment with the smallest key holds: datasets or containers.
- **Monotonic** takes nothing away, as in Rucio's own core: who may withdraw an attachment may do so also there, and nobody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Optional

from nsync.catalogue.entries import Conflict, stamps_of
from nsync.catalogue.rules import Reader
from nsync.crdt import Slot
from nsync.namespace.fields import CONTAINER, DATASET, FILE, Identity
from nsync.namespace.keys import Attachment

TYPES_RULE = "types (6.1)"
MIXED_RULE = "a container holds datasets or containers (6.1)"
ATTACHABLE_RULE = "the scope is not attachable (R5.5)"
CLOSED_RULE = "closed collections stay as they are (6.2)"
CYCLE_RULE = "containers hold no cycle (6.3)"

CHILD_TYPES = {DATASET: (FILE,), CONTAINER: (DATASET, CONTAINER), FILE: ()}
"""What a collection of each type may hold."""

_WORDS = {DATASET: "datasets", CONTAINER: "containers"}


class Candidate(NamedTuple):
    """An attachment that every rule about it alone shows; `said` is the statement that gives it its key, `holds` its child's type."""

    said: Slot
    holds: str


def type_conflict(edge: Attachment, parent: Identity, child: Identity) -> Optional[Conflict]:
    """A dataset holds files, a container datasets or containers (6.1)."""
    if child.type in CHILD_TYPES[parent.type]:
        return None
    return Conflict(TYPES_RULE, f"{edge.parent} is a {parent}", f"{edge.child} is a {child}", "its author detaches it")


def seals(reader: Reader, closing: Sequence[Slot], states: Sequence[Slot]) -> list[Slot]:
    """The statements that an attachment must have come before, given those about open/closed and about the open-data state."""
    closes = [slot for slot in reader.maximal(closing) if slot.value is True]
    return [*closes, *(state for state in reader.maximal(states) if not any(reader.saw(close, state) for close in closes))]


def unsealed(reader: Reader, tops: Sequence[Slot], seals: Sequence[Slot]) -> Optional[Slot]:
    """A seal that came before an attachment with the maximal Asserts `tops`; None if all seals have seen one and the same of them."""
    if not seals or any(all(reader.saw(seal, top) for seal in seals) for top in tops):
        return None
    return next((seal for seal in seals if not any(reader.saw(seal, top) for top in tops)), seals[0])


def forbidding(reader: Reader, tops: Sequence[Slot], marks: Sequence[Slot]) -> Optional[Slot]:
    """The first mark that all of the maximal Asserts `tops` had seen."""
    return next((mark for mark in marks if all(reader.saw(top, mark) for top in tops)), None)


def marks(reader: Reader, slots: Sequence[Slot]) -> list[Slot]:
    """The maximal statements by which a scope is not attachable."""
    return sorted(slot for slot in reader.maximal(slots) if slot.value is False)


def mark_conflict(reader: Reader, edge: Attachment, mark: Slot, said: Slot) -> Conflict:
    winner = f"{reader.name(mark.dot.author)}: scope {edge.child.scope} is not attachable"
    resolve = f"the home of scope {edge.child.scope} makes it attachable, or the attachment's author detaches it"
    return Conflict(ATTACHABLE_RULE, winner, _who(reader, edge, said), resolve, stamps_of(mark, said))


def closed_conflict(reader: Reader, edge: Attachment, seal: Slot, said: Slot) -> Conflict:
    what = "closed" if seal.value is True else f"made {seal.value}"
    winner = f"{reader.name(seal.dot.author)}: {what} {edge.parent}"
    resolve = f"the home of {edge.parent} closes it once more, which lets it in, or its author detaches it"
    return Conflict(CLOSED_RULE, winner, _who(reader, edge, said), resolve, stamps_of(seal, said))


def cycle_conflict(reader: Reader, edge: Attachment, said: Slot) -> Conflict:
    winner = "the older attachments of the cycle"
    return Conflict(CYCLE_RULE, winner, _who(reader, edge, said), "its author detaches it", stamps_of(None, said))


def content(candidates: Iterable[tuple[Attachment, Candidate]]) -> tuple[str, Optional[tuple[Attachment, Candidate]]]:
    """The types among the candidates of one container, the one that is shown first, and the candidate that decides so."""
    found = list(candidates)
    if not found:
        return "", None
    first = min(found, key=lambda pair: (pair[1].said.order, pair[0]))
    others = {candidate.holds for _, candidate in found} - {first[1].holds}
    return first[1].holds + "".join(others), first


def mixed_conflicts(
    reader: Reader, candidates: Mapping[Attachment, Candidate], deciding: tuple[Attachment, Candidate]
) -> dict[Attachment, Conflict]:
    """A conflict for each candidate of one container that holds another type than the deciding one."""
    first, chosen = deciding
    winner = f"{reader.name(chosen.said.dot.author)}: {first.parent} holds {_WORDS[chosen.holds]}, since {first}"
    resolve = f"its author detaches it, or the {_WORDS[chosen.holds]} are detached"
    return {
        edge: Conflict(MIXED_RULE, winner, _who(reader, edge, one.said), resolve, stamps_of(chosen.said, one.said))
        for edge, one in candidates.items()
        if one.holds != chosen.holds
    }


def _who(reader: Reader, edge: Attachment, said: Slot) -> str:
    return f"{reader.name(said.dot.author)}: {edge}"
