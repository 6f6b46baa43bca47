"""Why the catalogue shows what it shows about a key: every statement, what became of it, the rule that chose, what would change it.

`explain` is given the statements as the log has them, each with its ruling (DESIGN 5), and asks the same Reader as the rules do. So
it says why a statement counts for nothing, who answered or silenced it, and which one is shown. What the rules about other facts took
away stands in the conflicts of the fact, which it is given too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nsync.authority.rulings import WAITING, Ruling
from nsync.catalogue import identity, opendata
from nsync.catalogue.collections import ATTACHABLE_RULE
from nsync.catalogue.entries import Conflict, DidEntry, Entry, ScopeEntry, time_of
from nsync.catalogue.rules import NEWEST_RULE, Reader, shown
from nsync.crdt import Slot
from nsync.namespace import fields
from nsync.namespace.keys import Attribute, Did, Fact, Key, Replica, ends_of, fact_of, scope_of

STANDS_RULE = "what somebody says, and nobody who may took back knowing it, stands (R3.4)"

_REGISTERS = {
    (fields.DID, fields.CLOSED): opendata.CLOSE_RULE,
    (fields.DID, fields.OPENDATA): opendata.STATE_RULE,
    (fields.SCOPE, fields.ATTACHABLE): ATTACHABLE_RULE,
}
"""Attributes that a Retract of one leaves to the others who spoke of it, with the rule that chooses."""


class Word(NamedTuple):
    """A statement about the key, and what it counts for."""

    slot: Slot
    ruling: Ruling


class Line(NamedTuple):
    """A statement as it is told: who, the place in their log, when by their clock, what, and what became of it."""

    author: str
    seq: int
    time: str
    said: str
    standing: str


class Explanation(NamedTuple):
    """All that there is to say about a key."""

    key: Key
    shows: str
    rule: str
    lines: tuple[Line, ...]
    """In the order of their stamps."""
    conflicts: tuple[Conflict, ...]
    """What rules took away from the fact."""
    changes: tuple[str, ...]
    """What would change it."""

    def text(self) -> str:
        """A text of some lines."""
        found = [f"{self.key}", f"  shows: {self.shows}", f"  by: {self.rule}"]
        found += ["  said about it:", *(f"    {line.author} {line.seq}, {line.time}: {line.said}: {line.standing}" for line in self.lines)]
        for conflict in self.conflicts:
            found += [f"  taken away, since {conflict.rule}: {conflict.loser}", f"    for {conflict.winner}"]
            found += [f"    said {conflict.stamps}"] if conflict.stamps else []
        return "\n".join([*found, "  would change it:", *(f"    {change}" for change in self.changes)])


def explain(reader: Reader, key: Key, words: Sequence[Word], entries: Mapping[Fact, Entry], conflicts: Sequence[Conflict]) -> Explanation:
    """Explain `key`, given all statements about it, the entries of its fact and of what that hangs on, and the conflicts of its fact."""
    return _Explaining(reader, key, words, entries, conflicts).run()


class _Explaining:
    def __init__(
        self, reader: Reader, key: Key, words: Sequence[Word], entries: Mapping[Fact, Entry], conflicts: Sequence[Conflict]
    ) -> None:
        self.reader = reader
        self.key = key
        self.words = sorted(words, key=lambda word: word.slot.order)
        self.entries = entries
        self.conflicts = conflicts
        self.entry = entries.get(fact_of(key))
        said = [word.slot for word in self.words if word.ruling.effective]
        self.slots = sorted({slot.dot.author: slot for slot in sorted(said, key=lambda slot: slot.dot.seq)}.values())
        self.register = _REGISTERS.get((key[2], key[1])) if isinstance(key, Attribute) else None
        self.stands = [slot for slot in self.slots if not slot.retract] if self.register else list(reader.standing(key, self.slots))
        self.tops = list(reader.maximal(self.stands))
        claims: dict[bytes, Slot] = {}
        for slot in sorted((slot for slot in said if not slot.retract), key=lambda slot: slot.dot.seq):
            claims.setdefault(slot.dot.author, slot)
        self.claims = sorted(claims.values())

    def run(self) -> Explanation:
        lines = tuple(self._line(word) for word in self.words)
        return Explanation(self.key, self._shows(), self._rule(), lines, tuple(self.conflicts), tuple(self._changes()))

    # ---- each statement

    def _line(self, word: Word) -> Line:
        slot = word.slot
        said = "withdrawn" if slot.retract else shown(slot.value)
        return Line(self.reader.name(slot.dot.author), slot.dot.seq, time_of(slot.stamp), said, self._standing(word))

    def _standing(self, word: Word) -> str:
        slot = word.slot
        if not word.ruling.effective:
            return f"{'waits' if word.ruling.standing == WAITING else 'void'}: {word.ruling.reason}"
        claim = "; its first claim of the identity, for ever" if isinstance(self.key, Did) and slot in self.claims else ""
        if slot not in self.slots:
            later = next(one for one in self.slots if one.dot.author == slot.dot.author)
            return f"superseded by {self._place(later)}{claim}"
        if slot.retract:
            silenced = [one for one in self.slots if one not in self.stands and self._silences(slot, one)]
            return f"silences {self._places(silenced)}" if silenced else "stands, and silences no other's"
        if slot not in self.stands:
            return f"silenced by {self._places([one for one in self.slots if self._silences(one, slot)])}{claim}"
        if slot not in self.tops:
            return f"answered by {self._places([one for one in self.tops if self.reader.saw(one, slot)])}, knowing it{claim}"
        return ("stands, and is shown" if self._is_shown(slot) else "stands, and is not shown") + claim

    def _silences(self, retract: Slot, said: Slot) -> bool:
        """Whether this Retract alone would be enough."""
        return retract.retract and not said.retract and not self.reader.standing(self.key, [retract, said])

    # ---- what is chosen

    def _is_shown(self, slot: Slot) -> bool:
        """Whether the catalogue shows what one of the maximal statements says."""
        if isinstance(self.key, Attribute):
            return bool(slot.value == self._value())
        return self.entry is not None and (not isinstance(self.entry, DidEntry) or self.entry.identity.agrees(slot.value))

    def _value(self) -> object:
        """What the catalogue shows of an attribute; None if nothing."""
        assert isinstance(self.key, Attribute)
        if isinstance(self.entry, ScopeEntry):
            return not self.entry.marks if self.tops else None
        if self.entry is None or not (self.tops or self.key.field == fields.CLOSED):
            return None
        return {**self.entry._asdict(), **dict(getattr(self.entry, "meta", ()))}.get(self.key.field)

    def _shows(self) -> str:
        if self.entry is None:
            missing = [end for end in ends_of(fact_of(self.key)) if end not in self.entries]
            waits = f", since {' and '.join(map(str, missing))} is not shown" if missing and self.tops else ""
            return f"nothing: {fact_of(self.key)} is not shown{waits}"
        if not isinstance(self.key, Attribute):
            return str(self.entry.identity) if isinstance(self.entry, DidEntry) else "it is there"
        value = self._value()
        return "nothing" if value is None else shown(value)

    def _rule(self) -> str:
        if isinstance(self.key, Did):
            return identity.RULE
        if self.register is not None:
            return self.register
        return NEWEST_RULE if isinstance(self.key, (Attribute, Replica)) else STANDS_RULE

    # ---- what would change it

    def _changes(self) -> list[str]:
        scope = scope_of(self.key)
        home = self.reader.home(scope) if scope is not None else None
        found = [conflict.resolve for conflict in self.conflicts]
        if home is not None and any(word.ruling.standing == WAITING for word in self.words):
            found.append(f"{home} acknowledges what waits")
        authors = sorted({self.reader.name(slot.dot.author) for slot in self.tops})
        if self.tops:
            who = f"{home}, or {' and '.join(authors)} itself," if home is not None and authors != [home] else " and ".join(authors)
            found.append(f"{who} withdraws it" if not isinstance(self.key, Attribute) else f"{who} says something else, knowing this")
        elif not self.words:
            found.append("whoever may says something about it")
        else:
            found.append("whoever may says it, knowing what is said")
        return list(dict.fromkeys(found))

    # ---- leaves

    def _place(self, slot: Slot) -> str:
        return f"{self.reader.name(slot.dot.author)} {slot.dot.seq}"

    def _places(self, slots: Sequence[Slot]) -> str:
        return " and ".join(sorted(map(self._place, slots)))


def entries_needed(key: Key) -> list[Fact]:
    """The facts whose entries `explain` wants: the fact of `key`, and what that hangs on."""
    fact = fact_of(key)
    return [fact, *ends_of(fact)]
