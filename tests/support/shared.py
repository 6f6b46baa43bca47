"""Three instances without a database that write in one shared scope, and short words for what they say."""

from __future__ import annotations

from typing import Any, Optional

from nsync.catalogue.entries import Conflict, DidEntry
from nsync.namespace import fields
from nsync.namespace.keys import Attachment, Attribute, Did, Fact, Identity, Scope
from nsync.namespace.ops import Assert, Retract
from tests.support.federation import NAMES, Writer

SHARED = "atlas.shared"
KINDS = {"f": fields.FILE, "d": fields.DATASET, "c": fields.CONTAINER}
"""A name begins with the letter of its kind."""


def did(name: str, scope: str = SHARED) -> Did:
    return Did(scope, name)


def is_in(parent: str, child: str) -> Attachment:
    return Attachment(did(parent), did(child))


def exists(name: str, scope: str = SHARED, size: int = 1) -> Assert:
    kind = KINDS[name[0]]
    return Assert(did(name, scope), Identity(kind, size, bytes([size]) * 4) if kind == fields.FILE else Identity(kind))


def field(name: str, what: str, value: Any, scope: str = SHARED) -> Assert:
    return Assert(Attribute(did(name, scope), what), value)


def attach(parent: str, *children: str) -> list[Assert]:
    return [Assert(is_in(parent, child), True) for child in children]


def detach(parent: str, child: str) -> Retract:
    return Retract(is_in(parent, child))


def close(name: str, value: bool = True) -> Assert:
    return field(name, fields.CLOSED, value)


def publish(name: str, state: str = fields.PUBLIC) -> Assert:
    return field(name, fields.OPENDATA, state)


class Federation:
    """atlas, the home of the shared scope, and its guests cms and belle2. Their clocks are a second apart, and run with what they say."""

    def __init__(self) -> None:
        self.writers = [Writer(name, 1_700_000_000_000 + 1000 * place) for place, name in enumerate(NAMES)]
        self.atlas, self.cms, self.belle2 = self.writers

    def begin(self, *names: str) -> None:
        """atlas makes the scope and these DIDs, and all hear of them."""
        self.atlas.say(Assert(Scope(SHARED), True), *map(exists, names))
        self.sync()

    def sync(self) -> None:
        """Everybody hears of everything."""
        for _ in range(2):
            for one in self.writers:
                for other in self.writers:
                    one.fetch(other)
                one.now_ms += 1000
        self.agree()

    def agree(self) -> None:
        first, *others = [(writer.state.catalogue, writer.state.conflicts) for writer in self.writers]
        assert others == [first] * len(others)
        assert self.atlas.state.recomputed() == first

    def acknowledge(self) -> None:
        """atlas has heard of everything, and says something."""
        self.sync()
        self.atlas.say(Assert(Scope("atlas"), True))
        self.sync()

    def shown(self, fact: Fact) -> bool:
        return fact in self.atlas.state.catalogue

    def entry(self, name: str, scope: str = SHARED) -> DidEntry:
        found = self.atlas.state.catalogue[did(name, scope)]
        assert isinstance(found, DidEntry)
        return found

    def content(self, parent: str) -> set[str]:
        """What a collection shows."""
        return {fact.child.name for fact in self.atlas.state.catalogue if isinstance(fact, Attachment) and fact.parent == did(parent)}

    def conflict(self, fact: Fact) -> Optional[Conflict]:
        """The only conflict about `fact`."""
        found = self.atlas.state.conflicts.get(fact, [])
        assert len(found) < 2, found
        return found[0] if found else None

    def rule(self, fact: Fact) -> Optional[str]:
        found = self.conflict(fact)
        return found.rule if found is not None else None
