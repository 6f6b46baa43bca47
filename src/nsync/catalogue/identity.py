"""Identity is for ever (R3.6): what a DID's name stands for, and who says otherwise.

The first claim by the home's log is it, also once its author has withdrawn it and another's stands. Who says something
else now, in a maximal standing statement, is told so by a conflict.
"""

from __future__ import annotations

from collections.abc import Sequence

from nsync.catalogue.entries import Conflict, stamps_of
from nsync.catalogue.rules import Reader
from nsync.crdt import Slot
from nsync.namespace.fields import Identity
from nsync.namespace.keys import Did, Replica

RULE = "identity is for ever (R3.6)"


def first_claim(reader: Reader, did: Did, claims: Sequence[Slot]) -> Slot:
    """The claim that gives `did` its identity."""
    return claims[0] if len(claims) == 1 else min(claims, key=lambda claim: reader.position(did, claim))


def conflicts(reader: Reader, did: Did, first: Slot, stands: Sequence[Slot]) -> list[Conflict]:
    """A conflict for each author who says now that `did` is something else."""
    losers = [slot for slot in reader.maximal(stands) if not first.value.agrees(slot.value)]
    resolve = f"the loser renames its {did}, or withdraws it"
    return sorted(Conflict(RULE, reader.said(did, first), reader.said(did, slot), resolve, stamps_of(first, slot)) for slot in losers)


def other_bytes(
    reader: Reader, replica: Replica, said: Slot, identity: Identity, words: Sequence[Slot], claims: Sequence[Slot]
) -> list[Conflict]:
    """A conflict if the instance at which a replica lies says that its file is something else: these are other bytes.

    Its word is its last one about the DID (`words`), and its first claim once it has withdrawn it.
    """
    if len(words) == 1 and words[0].value == identity:
        return []  # whoever said it
    word = max(_of_same(reader, said, words), key=lambda slot: slot.order, default=None)
    if word is None or word.retract:
        word = min(_of_same(reader, said, claims), key=lambda slot: slot.order, default=None)
    if word is None or identity.agrees(word.value):
        return []
    resolve = f"{reader.name(said.dot.author)} renames its file, or withdraws the replica"
    return [Conflict(RULE, f"{replica.did} is a {identity}", reader.said(replica.did, word), resolve, stamps_of(None, word))]


def _of_same(reader: Reader, said: Slot, slots: Sequence[Slot]) -> list[Slot]:
    """Those that the instance of `said` made, under whatever key."""
    author = said.dot.author
    return [slot for slot in slots if slot.dot.author == author or reader.name(slot.dot.author) == reader.name(author)]
