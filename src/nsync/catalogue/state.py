"""What `derive` asks of a state, and the draft in which it puts together what changes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Optional, Protocol, Union

from nsync.catalogue.entries import Conflict, DidEntry, Entry
from nsync.catalogue.opendata import Name
from nsync.catalogue.rules import Reader
from nsync.crdt import Slot
from nsync.namespace.keys import Attachment, Constituent, Did, Fact, Key, Replica, Rse, fact_of

Node = Union[Did, Rse]
"""What attachments, constituents and replicas hang on."""

Hanging = Union[Attachment, Constituent, Replica]


class About(NamedTuple):
    """All that counts about a DID and what is anchored at it (`keys.anchor_of`)."""

    slots: Mapping[Key, Sequence[Slot]]
    """The effective slots of the DID, its attributes, the attachments and constituents whose child it is, its replicas and theirs."""
    claims: Sequence[Slot]
    """Each author's first effective claim of its identity (R3.6)."""


NOTHING = About({}, ())


class State(Protocol):
    """What `derive` asks of a state. Every method takes a batch, so that a database answers in a few statements."""

    def about(self, dids: Collection[Did]) -> Mapping[Did, About]:
        """All that counts about each DID that anything is said about."""
        ...

    def slots(self, wanted: Collection[Key]) -> Mapping[Key, Sequence[Slot]]:
        """The effective slots of each key that has any."""
        ...

    def hanging_on(self, nodes: Collection[Node]) -> Iterable[Hanging]:
        """Every attachment, constituent or replica with a statement whose `other_end` is one of `nodes`."""
        ...

    def late_in(self, seals: Mapping[Did, Sequence[Slot]]) -> Iterable[Attachment]:
        """Of each collection at least every attachment that the catalogue does not show, and every one with an Assert that one of these
        seals has not seen: what closing and reopening concerns, however much it holds."""
        ...

    def asking(self, names: Collection[Name]) -> Iterable[Did]:
        """Every DID about which an effective statement says that it bears one of `names` (`opendata.name_of`)."""
        ...

    def entries(self, facts: Collection[Fact]) -> Mapping[Fact, Entry]:
        """What the catalogue shows now."""
        ...

    def dids_in(self, scopes: Collection[str]) -> Iterable[Did]:
        """Every DID that the catalogue shows in one of `scopes`."""
        ...


def other_end(key: Key) -> Optional[Node]:
    """The node that an attachment, constituent or replica hangs on beside its anchor: the parent, the archive, the RSE."""
    if isinstance(key, Attachment):
        return key.parent
    if isinstance(key, Constituent):
        return key.archive
    return key.rse if isinstance(key, Replica) else None


class Derived(NamedTuple):
    """What `derive` found: for each fact it looked at, the entry (None: not shown) and, unless they stay as they are, the conflicts."""

    entries: Mapping[Fact, Optional[Entry]]
    conflicts: Mapping[Fact, Sequence[Conflict]]
    before: Mapping[Fact, Optional[Entry]]
    """What was shown, as far as `derive` had to know."""
    new: Collection[Fact] = ()
    """Of these nothing was known: they have neither an entry nor conflicts yet."""


class Draft:
    """What is derived so far, over what the catalogue shows."""

    def __init__(self, state: State, reader: Reader) -> None:
        self.state = state
        self.reader = reader
        self.entries: dict[Fact, Optional[Entry]] = {}
        self.conflicts: dict[Fact, list[Conflict]] = {}
        self.about: dict[Did, About] = {}
        """What was read about DIDs."""
        self._before: dict[Fact, Optional[Entry]] = {}
        self._new: set[Fact] = set()

    def load(self, facts: Iterable[Fact]) -> None:
        """Read what the catalogue shows of `facts`, so that `before` and `now` can tell."""
        fresh = {fact for fact in facts if fact not in self._before}
        if fresh:
            known = self.state.entries(fresh)
            for fact in fresh:
                self._before[fact] = known.get(fact)

    def add_new(self, did: Did, about: About) -> None:
        """Take in a DID of which nothing was known; what is anchored there is new too, and nothing else hangs on it."""
        self.about[did] = about
        facts = set(map(fact_of, about.slots))
        self._new |= facts
        self._before.update(dict.fromkeys(facts))

    def read(self, dids: Iterable[Did]) -> None:
        """Read all that is said about `dids` into `about`."""
        fresh = {did for did in dids if did not in self.about}
        if fresh:
            found = self.state.about(fresh)
            for did in fresh:
                self.about[did] = found.get(did, NOTHING)

    def before(self, fact: Fact) -> Optional[Entry]:
        """What the catalogue shows of a fact that was loaded."""
        return self._before[fact]

    def now(self, fact: Fact) -> Optional[Entry]:
        """What it is to show of a fact that was derived, or loaded and stays as it is."""
        return self.entries[fact] if fact in self.entries else self._before[fact]

    def did(self, did: Did) -> Optional[DidEntry]:
        """`now` of a DID."""
        entry = self.now(did)
        assert entry is None or isinstance(entry, DidEntry)
        return entry

    def was(self, did: Did) -> Optional[DidEntry]:
        """`before` of a DID."""
        entry = self._before[did]
        assert entry is None or isinstance(entry, DidEntry)
        return entry

    def derived(self) -> Derived:
        """What came of it."""
        return Derived(self.entries, self.conflicts, self._before, self._new)

    def put(self, fact: Fact, entry: Optional[Entry], conflicts: list[Conflict]) -> None:
        self.entries[fact] = entry
        self.conflicts[fact] = conflicts
