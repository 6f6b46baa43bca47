"""What must be shown, worked out in the most obvious way: from whole logs, without slots, nothing incremental.

Which statements count at all is `catalogue.world`'s word. What they amount to is not taken from slots, as everywhere else, but read off
everything that was ever said. It does not say what every entry is; it says what no correct catalogue can show or leave out:

    R3.4      a DID, scope or RSE is shown iff somebody asserts it whom no Retract answers
    R3.6      a DID has the identity that its home's log puts first
    6.2, 6.5  closed and open-data state are what the statements that nobody answered say
    6.4       an attachment or replica is shown only between two things that are, and if it stands
    6         what a rule took away from these is a conflict
    6.3, 6.6  no cycle of containers, no DOI on two DIDs
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nsync.catalogue.entries import Conflict, DidEntry, Entry
from nsync.catalogue.world import Said, World
from nsync.namespace import keys
from nsync.namespace.keys import Attachment, Attribute, Did, Fact, Key, Replica, Rse, Scope, ends_of
from nsync.testing.ledger import hold


class Model:
    """Everything that counts of what was said."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._said: dict[Key, list[Said]] = defaultdict(list)
        for said, ruling in world.rulings:
            if ruling.effective:
                self._said[said.key].append(said)

    def facts(self) -> set[Fact]:
        """Everything that somebody effectively said something about."""
        return {key for key, said in self._said.items() if said and not isinstance(key, Attribute)}

    @staticmethod
    def _saw(later: Said, earlier: Said) -> bool:
        """Whether `earlier` is in the past of `later`."""
        if later.slot.dot.author == earlier.slot.dot.author:
            return earlier.slot.dot.seq < later.slot.dot.seq
        return earlier.node.hash in later.node.past

    # ---- readings

    def stands(self, key: Key) -> bool:
        """Whether an Assert of `key` is in the past of no Retract that may silence it (R3.4)."""
        retracts = [r for r in self._said[key] if r.slot.retract]
        asserts = [a for a in self._said[key] if not a.slot.retract]
        return any(not any(self._saw(r, a) and self._world.silences(key, r.slot, a.slot) for r in retracts) for a in asserts)

    def unanswered(self, key: Key) -> list[Any]:
        """The values that their authors have not replaced or withdrawn, and nobody answered having seen them."""
        last: dict[bytes, Said] = {}
        for said in sorted(self._said[key], key=lambda said: said.slot.dot):
            last[said.slot.dot.author] = said
        current = [said for said in last.values() if not said.slot.retract]
        return [said.slot.value for said in current if not any(self._saw(other, said) for other in current)]

    def identity(self, did: Did) -> Any:
        """What the home's log says or sees first (R3.6)."""
        first: dict[bytes, Said] = {}
        for said in sorted((said for said in self._said[did] if not said.slot.retract), key=lambda said: said.slot.dot):
            first.setdefault(said.slot.dot.author, said)
        return min(first.values(), key=lambda claim: self._place(did.scope, claim)).slot.value

    def _place(self, scope: str, claim: Said) -> tuple[Any, ...]:
        """Where in the home's logs: its own claim at its op, another's at the first op that has it in its past, or after what the home
        has below a floor that holds it; the rest at the end."""
        home = self._world.charter.home(scope)
        assert home is not None, "what counts is in a scope with a home"
        dot = claim.slot.dot
        for life, author in enumerate(life.author for life in home.incarnations):
            places = []
            for node in self._world.standing(author):
                if dot.author == author and node.hash == claim.node.hash:
                    places.append((dot.seq, 0))
                if dot.author != author and claim.node.hash in node.past:
                    places.append((node.header.first, 1))
            if dot.author != author:
                places += [(floor.seq(author), 2) for floor in self._world.floors if dot.seq <= floor.seq(dot.author)]
            if places:
                return (life, *min(places), claim.slot.order)
        return (len(home.incarnations), 0, 0, claim.slot.order)


def check(model: Model, shown: Mapping[Fact, Entry], conflicts: Mapping[Fact, Sequence[Conflict]]) -> None:
    """Raises Broken when a catalogue shows what it must not, or leaves out what it must show."""
    facts = model.facts() | set(shown)
    for fact in facts:
        if isinstance(fact, (Did, Scope, Rse)):
            stands = model.stands(fact)
            hold(stands == (fact in shown), f"{fact} is {'not ' * stands}shown, and {'it stands' if stands else 'it does not stand'}")
    for did, entry in shown.items():
        if isinstance(did, Did) and isinstance(entry, DidEntry):
            _check_did(model, did, entry)
    for fact in facts:
        if isinstance(fact, (Attachment, Replica)):
            _check_between(model, fact, shown, conflicts)
    _check_unique([entry.doi for entry in shown.values() if isinstance(entry, DidEntry) and entry.doi is not None])
    _check_acyclic([fact for fact in shown if isinstance(fact, Attachment)])


def _check_did(model: Model, did: Did, entry: DidEntry) -> None:
    identity = model.identity(did)
    hold(entry.identity == identity, f"{did} is shown as {entry.identity}, and its home's log puts {identity} first")
    states = model.unanswered(Attribute(did, keys.OPENDATA))
    state = max(states, default=None)
    hold(entry.opendata == state, f"{did} is shown as {entry.opendata}, and what is said of it is {states}")
    closed = None if identity.type == keys.FILE else True in model.unanswered(Attribute(did, keys.CLOSED)) or state is not None
    hold(entry.closed == closed, f"{did} is shown with closed = {entry.closed}, and it is {closed}")


def _check_between(
    model: Model, fact: Attachment | Replica, shown: Mapping[Fact, Entry], conflicts: Mapping[Fact, Sequence[Conflict]]
) -> None:
    possible = model.stands(fact) and all(end in shown for end in ends_of(fact))
    hold(possible or fact not in shown, f"{fact} is shown, and it is retracted or one of its ends is not there")
    if isinstance(fact, Attachment) and possible and fact not in shown:
        hold(bool(conflicts.get(fact)), f"{fact} is not shown, and no conflict says why")


def _check_unique(dois: Sequence[str]) -> None:
    twice = sorted({doi for doi in dois if dois.count(doi) > 1})
    hold(not twice, f"the DOIs {twice} are on several DIDs")


def _check_acyclic(edges: Iterable[Attachment]) -> None:
    left = set(edges)
    while True:
        parents = {edge.parent for edge in left}
        kept = {edge for edge in left if edge.child in parents}
        if kept == left:
            break
        left = kept
    hold(not left, f"these attachments make a cycle: {', '.join(sorted(map(str, left)))}")
