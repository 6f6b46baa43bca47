"""New files: all that is said about one is said in this stretch of one log, by its home alone, so that nothing about it is asked for.

That is how most of what instances share comes: a file with what it is, where it belongs and where it lies. The rules for it are those
of every other DID; only how its statements are found differs. Whether a file is new, one count in the index tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from nsync.catalogue.state import About
from nsync.crdt import Slot
from nsync.log.forks import Mark
from nsync.namespace import fields
from nsync.namespace.keys import Did, Key, key_of
from nsync.store.collector import collector_paused
from nsync.store.index import Listed
from nsync.store.lines import SqlLines
from nsync.store.statements import Op, Statements


class News:
    """The ops of a stretch that may be all there is about files."""

    def __init__(self, statements: Statements, lines: SqlLines) -> None:
        self._statements = statements
        self._lines = lines
        self._ops: dict[Any, list[tuple[Mark, Op]]] = {}
        self.marks: set[Mark] = set()
        """The ops about the files that were found to be new."""

    def offer(self, mark: Mark, op: Op) -> bool:
        """Take in an op that nobody but its author has a say in, if it speaks of one DID only; tells whether it does."""
        did = _subject(op.says)
        if did is None:
            return False
        self._ops.setdefault(did, []).append((mark, op))
        return True

    @collector_paused()
    def sort(self) -> tuple[dict[Did, About], set[Key]]:
        """The files that are new, with all that counts about them; and the keys that the other ops speak of."""
        found: dict[Any, About] = {}
        places: dict[int, Any] = {}
        counts: list[Listed] = []
        for did, ops in self._ops.items():
            about = self._about(did, ops)
            if about is not None:
                found[did] = about
                node = self._statements.numbers.node(did)
                places[node] = did
                counts.append(Listed(node, len(about.slots)))
        new = {places[node] for node in self._statements.listed_times(counts)}
        self.marks = {mark for did in new for mark, _ in self._ops[did]}
        others = {key_of(key) for did, ops in self._ops.items() if did not in new for _, op in ops for key in op.says}
        return {key_of(did): found[did] for did in new}, others  # type: ignore[misc]

    def _about(self, did: Any, ops: list[tuple[Mark, Op]]) -> Optional[About]:
        """What `ops` say of a file; None if it is none, or if a key is spoken of twice."""
        slots: dict[Key, tuple[Slot]] = {}
        said = 0
        for mark, op in ops:
            if not self._lines.stands(mark):
                return None
            said += len(op.says)
            for key in op.says:
                slots[key_of(key)] = (self._statements.slot_of(key, mark, op),)
        claim = slots.get(did)
        if claim is None or claim[0].value.type != fields.FILE or len(slots) < said:
            return None
        return About(slots, claim)


def _subject(says: Mapping[Any, Any]) -> Any:
    """The DID, in its wire form, that all is anchored at which an op says; None if it takes something back, or there is no such DID."""
    subject = None
    for key, value in says.items():
        fact = key[2:] if key[0] == fields.ATTRIBUTE else key
        tag = fact[0]
        if tag == fields.ATTACHMENT or tag == fields.CONSTITUENT:
            did = (fields.DID, fact[3], fact[4])
        elif tag == fields.REPLICA:
            did = (fields.DID, fact[1], fact[2])
        elif tag == fields.DID:
            did = fact
        else:
            return None
        if value is None or (subject is not None and did != subject):
            return None
        subject = did
    return subject
