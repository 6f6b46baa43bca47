"""Drift: where Rucio's rows say something else than the catalogue, by entry and field, and who has to do what about it (R7.5).

Both sides are read in the same language (`Rows`), in parts of PART_FACTS, each entry with its row by key, and compared as materialise
compares them; then come the rows that no entry stands for (`Extras`). What differs is told apart:

drift        nobody said it: a local edit of another instance's data. `mending` writes the catalogue's entry back, on request
unheard      this instance may say it, and has not: a full audit publishes it
unpublished  the same, and its name is in the outbox, or an audit is under way
outruled     this instance said it: it waits for the home, or a rule prefers another statement ('nsync explain')
parked       it does not fit here, or left the namespace and is held here ('nsync conflict list')

Private rows are never told: what this instance might share, and does not, is left out by the very rule that capture shares by. What the
catalogue does not have is not compared: sizes of collections, accounts, dates, whatever is local. Of replicas at this instance's
own RSEs those count that are lent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Optional

from sqlalchemy import Row, func, select
from sqlalchemy.orm import Session

from nsync.authority.charter import Instance
from nsync.authority.rulings import owner_of
from nsync.catalogue.entries import DidEntry, Entry, ReplicaEntry, RseEntry, entry_from_wire
from nsync.catalogue.rules import Reader
from nsync.namespace import codec, fields
from nsync.namespace.keys import Attribute, Did, Fact, Replica, Rse, Scope, ends_of, key_of, scope_of
from nsync.namespace.ops import Assert, Retract, Statement
from nsync.rucio_bridge import metadata, parked
from nsync.rucio_bridge.capture import Capture, says
from nsync.rucio_bridge.extras import Extras, Place, place_of
from nsync.rucio_bridge.fit import Fit
from nsync.rucio_bridge.lookup import look_up, names_of
from nsync.rucio_bridge.rows import REPLICAS, Rows, matches, shared_attributes
from nsync.store import schema
from nsync.store.collector import collector_paused
from nsync.store.state import SqlState

PART_FACTS = 5000
"""Facts, with their entries and rows, that are in memory together."""
OUTBOX_MAX = 100_000
"""Names in the outbox that are looked at; of more, everything that this instance may say counts as unpublished."""

MISSING, EXTRA, OTHER = "missing row", "row too much", "other value"
STANDINGS = DRIFT, UNHEARD, UNPUBLISHED, OUTRULED, PARKED = "drift", "unheard", "unpublished", "outruled", "parked"

Pair = tuple[Optional[Entry], Optional[Entry]]
"""What the catalogue has, and what the row says."""


class Field(NamedTuple):
    """A field in which they differ; a whole row is the field ""."""

    name: str
    catalogue: Any
    row: Any


class Difference(NamedTuple):
    """One thing that differs."""

    fact: Fact
    what: str
    """MISSING, EXTRA or OTHER."""
    field: str
    catalogue: Any
    row: Any
    standing: str
    owner: str
    """The home of the scope, or the instance of the RSE."""

    @property
    def resolve(self) -> str:
        """What would end it."""
        if self.standing == UNPUBLISHED:
            return "the node publishes it"
        if self.standing == OUTRULED:
            return "'nsync explain' says what it waits for, or which statement is preferred"
        if self.standing == DRIFT:
            does = "removes the row" if self.what == EXTRA else f"writes what {self.owner} says"
            return f"'nsync diff --repair' {does}"
        if isinstance(self.fact, (Scope, Rse)) and self.what == MISSING:
            return "scopes and RSEs do not leave the namespace by themselves: make it again in Rucio"
        if self.field == fields.OPENDATA and self.row is None:
            return "open data do not become drafts again: set the state once more in Rucio"
        return "'nsync bridge audit' lets the node publish what the row says; or change the row back in Rucio"


def compare(entry: Entry, row: Entry) -> list[Field]:
    """The fields in which a row says something else than the catalogue: none where `rows.matches` finds none."""
    if isinstance(entry, DidEntry) and isinstance(row, DidEntry):
        names = ("type", "bytes", "adler32", "md5")
        pairs = zip(names, entry.identity, row.identity)
        found = [Field(name, one, other) for name, one, other in pairs if one != other and one is not None and other is not None]
        plain = (fields.CLOSED, fields.OPENDATA, fields.DOI, fields.RECORD)
        found += [Field(name, one, other) for name, one, other in zip(plain, entry[2:6], row[2:6]) if one != other]
        ours = metadata.said(entry)
        return found + [Field(name, ours.get(name), value) for name, value in metadata.differences(row, entry).items()]
    if isinstance(entry, RseEntry) and isinstance(row, RseEntry):
        wanted = shared_attributes(dict(entry.attributes))
        both = ((fields.PROTOCOLS, entry.protocols, row.protocols), (fields.ATTRIBUTES, wanted, row.attributes))
        return [Field(*one) for one in both if one[1] != one[2]]
    if isinstance(entry, ReplicaEntry) and isinstance(row, ReplicaEntry):
        said = (("path", entry.path, row.path), (fields.STATE, entry.state, row.state))
        return [Field(*one) for one in said if one[1] != one[2]]
    return []


class Drift:
    """The finder of one transaction, which sees one moment. It writes nothing."""

    def __init__(self, session: Session, state: SqlState, rows: Rows, me: Instance) -> None:
        self.session = session
        self.state = state
        self.rows = rows
        self.me = me
        self.charter = state.authority.charter
        self.capture = Capture(session, state, rows, me)
        self.compared = 0
        """Entries of the catalogue."""
        self.counts: Counter[str] = Counter()
        """Differences by their standing; of what is parked, facts."""

    def run(self, scope: Optional[str] = None) -> Iterator[Difference]:
        """All differences, or those of one scope, in parts."""
        present: Counter[Place] = Counter()
        for page in self._pages(scope):
            yield from self._judged(self._compared(page, present))
        for facts in Extras(self.session, self.rows, self._is_own, scope).parts(present):
            yield from self.beside(facts)

    def of(self, facts: Collection[Fact]) -> Iterator[Difference]:
        """The differences of `facts`."""
        entries, rows = self.state.entries(facts), self.rows.read(facts)
        yield from self._judged({fact: (entries.get(fact), rows.get(fact)) for fact in facts if fact in entries})
        yield from self.beside([fact for fact in facts if fact not in entries])

    def beside(self, facts: Collection[Fact]) -> Iterator[Difference]:
        """Those of `facts` that have a row, no entry, and are not private."""
        unshown = set(facts) - self.state.entries(facts).keys()
        rows = self.rows.read(unshown)
        if rows:
            shared = self.capture.shared(set(rows))
            yield from self._judged({fact: (None, row) for fact, row in rows.items()}, shared)

    # ---- reading the catalogue

    def _pages(self, scope: Optional[str]) -> Iterator[Sequence[Row[Any]]]:
        """The entries in the order of their keys, which is that of their kinds."""
        columns = schema.entry.c
        query = select(columns.key, columns.whole, columns.entry).order_by(columns.key).limit(PART_FACTS)
        for prefix in [b""] if scope is None else [_prefix(kind, scope) for kind in _NAMES]:
            within, after = query.where(columns.key < prefix + b"\xff") if prefix else query, prefix
            while page := self.session.execute(within.where(columns.key > after)).all():
                after = page[-1].key
                yield page

    @collector_paused()
    def _compared(self, page: Sequence[Row[Any]], present: Counter[Place]) -> dict[Fact, Pair]:
        """The entries of a page that their rows do not match; what has a row is counted in `present`."""
        facts = [key_of(codec.load(row.key if row.whole is None else row.whole)) for row in page]
        entries: dict[Fact, Entry] = {fact: entry_from_wire(fact, codec.load(row.entry)) for fact, row in zip(facts, page)}  # type: ignore[misc,arg-type]
        rows = self.rows.read(entries.keys())
        self.compared += len(page)
        present.update(place_of(fact, self._rse_ids) for fact in rows)
        return {fact: (entry, rows.get(fact)) for fact, entry in entries.items() if not matches(entry, rows.get(fact))}

    # ---- judging

    def _judged(self, pairs: Mapping[Fact, Pair], shared: Optional[Collection[Fact]] = None) -> Iterator[Difference]:
        """The differences of `pairs`; `shared`: of rows beside the catalogue, those that capture shares."""
        if not pairs:
            return
        private = Fit(self.session, self.rows, self.state.authority, self.me.name).closed_off(pairs)
        waiting = parked.among(self.session, pairs) | {fact for fact in private if pairs[fact][0] is not None}
        self.counts[PARKED] += len(waiting)
        told = {fact: pair for fact, pair in pairs.items() if fact not in waiting and fact not in private}
        sizes = self._other_sizes([fact for fact, (_, row) in told.items() if isinstance(fact, Replica) and row is None])
        found = [
            (fact, field, _statement(fact, field, row))
            for fact, (entry, row) in told.items()
            for field in (sizes[fact] if fact in sizes else _fields(entry, row))
        ]
        standings = self._standings({said for _, _, said in found if said is not None})
        for fact, field, said in found:
            standing = standings.get(said) or (UNHEARD if self.owner(fact) == self.me.name else DRIFT)
            if shared is not None and not self._is_told(fact, said, standing, fact in shared):
                continue
            if standing == UNHEARD and self._is_awaited(fact):
                standing = UNPUBLISHED
            self.counts[standing] += 1
            what = OTHER if field.name else MISSING if pairs[fact][1] is None else EXTRA
            yield Difference(fact, what, *field, standing, self.owner(fact))

    def _standings(self, statements: Collection[Statement]) -> dict[Optional[Statement], str]:
        """What becomes of those that the rows make."""
        unsaid = set(self.capture.unsaid(list(statements)))
        rest = [said for said in statements if said not in unsaid]
        return {**dict.fromkeys(rest, DRIFT), **dict.fromkeys(self._outruled(rest), OUTRULED), **dict.fromkeys(unsaid, UNHEARD)}

    def _is_told(self, fact: Fact, said: Optional[Statement], standing: str, is_shared: bool) -> bool:
        """Whether a row beside the catalogue is anybody's business: what users here might share and do not is private, and so are
        copies of foreign files at this instance's RSEs."""
        if standing != DRIFT:
            return is_shared
        if self.owner(fact) in (self.me.name, NOBODY):
            return False
        return is_shared or said is None or not self.state.sayable(self.me, [said])

    def _other_sizes(self, missing: Sequence[Replica]) -> dict[Fact, list[Field]]:
        """Replicas that seem to be missing, since their rows, or those of their files, have another size than the catalogue."""
        entries = self.state.entries({fact.did for fact in missing})
        by_rse: dict[Rse, list[Replica]] = {}
        for fact in missing:
            by_rse.setdefault(fact.rse, []).append(fact)
        found: dict[Fact, list[Field]] = {}
        for place, facts in by_rse.items():
            local = self.rows.rse_of(place)
            if local is None or place.instance == self.me.name:
                continue
            by_names = {names_of(fact.did): fact for fact in facts}
            source = f"{REPLICAS.fullname} c JOIN rses s ON s.id = c.rse_id AND s.id = :rse"
            columns, on = "c.scope, c.name, c.bytes", ("c.scope", "c.name")
            for scope, name, size in look_up(self.session, columns, source, on, list(by_names), rse=local.id):
                fact = by_names[scope, name]
                entry = entries.get(fact.did)
                if isinstance(entry, DidEntry) and entry.identity.size is not None:
                    wanted = entry.identity.size
                    found[fact] = [Field("bytes", wanted, size)] if size != wanted else []
        return found

    def _outruled(self, statements: Sequence[Statement]) -> set[Statement]:
        """Those that this instance says already: they wait, or are not preferred."""
        wanted = [said.key for said in statements]
        slots, waits = self.state.slots(wanted), self.state.waiting(self.me.author, wanted)
        reader = Reader(self.state.rulings)
        found = set()
        for said in statements:
            mine = waits.get(said.key) or reader.mine(self.me.author, slots.get(said.key, ()))
            if mine is not None and (mine.retract if isinstance(said, Retract) else not mine.retract and mine.value == said.value):
                found.add(said)
        return found

    # ---- what is under way

    def _is_awaited(self, fact: Fact) -> bool:
        """Whether the node publishes it by itself."""
        if self._audited is None or self._audited & {scope_of(fact)}:
            return True
        return self._outbox is None or fact in self._outbox or any(end in self._outbox for end in ends_of(fact))

    @cached_property
    def _audited(self) -> Optional[set[Optional[str]]]:
        """The scopes that audits are asked for; None for all."""
        asked = set(self.session.execute(select(schema.audit.c.scope)).scalars())
        return None if None in asked else asked

    @cached_property
    def _outbox(self) -> Optional[set[Fact]]:
        """What the outbox names; None for more than can be looked at."""
        columns = schema.outbox.c
        if self.session.execute(select(func.count()).select_from(schema.outbox)).scalar_one() > OUTBOX_MAX:
            return None
        rows = self.session.execute(select(columns.kind, columns.a, columns.b, columns.c, columns.d).distinct())
        return self.capture.facts(list(map(tuple, rows)))

    # ---- leaves

    @cached_property
    def _rse_ids(self) -> dict[Rse, str]:
        return {rse.fact: rse.id for rse in self.rows.rses().values() if not rse.deleted}

    def owner(self, fact: Fact) -> str:
        """Who decides about `fact`."""
        alone, scope = owner_of(fact), scope_of(fact)
        home = self.charter.home(scope) if scope is not None else None
        return alone or (home.name if home is not None else NOBODY)

    def _is_own(self, scope: str) -> bool:
        home = self.charter.home(scope)
        return home is None or home.name == self.me.name


NOBODY = "nobody"

_NAMES = {fields.SCOPE: 1, fields.DID: 2, fields.ATTACHMENT: 4, fields.CONSTITUENT: 4, fields.REPLICA: 4}
"""Kinds that have a scope, with how many names a key of them has."""


def _prefix(kind: int, scope: str) -> bytes:
    """What the keys of a kind begin with in one scope."""
    return bytes([0x90 + _NAMES[kind] + 1, kind]) + codec.pack(scope)


def _fields(entry: Optional[Entry], row: Optional[Entry]) -> list[Field]:
    if entry is None or row is None:
        return [Field("", entry, row)]
    return compare(entry, row)


def _statement(fact: Fact, field: Field, row: Optional[Entry]) -> Optional[Statement]:
    """What somebody who made this row would say of the field; None where a row cannot say that."""
    if row is None and not field.name:
        return None if isinstance(fact, (Scope, Rse)) else Retract(fact)
    if isinstance(fact, Did) and isinstance(row, DidEntry):
        is_identity = field.name in ("", "type", "bytes", "adler32", "md5")
        return Assert(fact, row.identity) if is_identity else says(fact, field.name, field.row)
    if isinstance(fact, Replica):
        if not isinstance(row, ReplicaEntry):
            return None  # its size
        return Assert(Attribute(fact, field.name), row.state) if field.name == fields.STATE else Assert(fact, row.path)
    return Assert(Attribute(fact, field.name), field.row) if field.name else Assert(fact, True)
