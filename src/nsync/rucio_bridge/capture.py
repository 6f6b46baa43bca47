"""Capture: from the outbox to ops (R7.1, R7.2).

One drain takes every name in the outbox, reads the rows again in the same transaction and compares them with the catalogue: only
differences are said, and only where this instance may say them. So what the bridge wrote itself, or what changed and
changed back, makes no op; and one drain is one changeset of what was committed at one moment (`store.database.one_moment`), so that no
transaction of Rucio is torn.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Optional

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from nsync.authority.charter import Instance
from nsync.authority.effective import Authority
from nsync.catalogue.entries import DidEntry, Entry, ReplicaEntry, RseEntry
from nsync.catalogue.opendata import NAMES
from nsync.catalogue.rules import Reader, close_key, open_data_key
from nsync.crdt import Slot
from nsync.errors import RejectedSegment
from nsync.namespace import fields, keys
from nsync.namespace.keys import Attachment, Attribute, Constituent, Did, Fact, Key, Replica, Rse, Scope, ends_of
from nsync.namespace.ops import STATEMENTS_MAX, Assert, Retract, Statement, encode_op
from nsync.rucio_bridge import metadata, parked
from nsync.rucio_bridge.captured import ATTACHMENT, CLOSURE, CONSTITUENT, DID, REPLICA, RSE, SCOPE
from nsync.rucio_bridge.lookup import external
from nsync.rucio_bridge.rows import Rows
from nsync.rucio_bridge.scopes import swapped
from nsync.store import schema
from nsync.store.database import chunks
from nsync.store.state import SqlState

LOG = logging.getLogger(__name__)

Entries = Mapping[Fact, Entry]


class Drained(NamedTuple):
    """What a drain found: the ops to publish, and the last outbox row that they cover."""

    ops: list[bytes]
    until: int


class Capture:
    """The drain of one transaction."""

    def __init__(self, session: Session, state: SqlState, rows: Rows, me: Instance) -> None:
        self.session = session
        self.state = state
        self.rows = rows
        self.me = me
        self.authority: Authority = state.authority
        self._opened: set[Did] = set()
        self.opened_unseen: set[Did] = set()
        """What became PUBLIC in scopes that are not watched: of what others did to it meanwhile no trigger told (`audit.look_again`)."""

    def drain(self) -> Optional[Drained]:
        """Read what changed; None when nothing did. The outbox is emptied by `forget` once the ops are in the log."""
        until = self.session.execute(select(func.max(schema.outbox.c.id))).scalar()
        if until is None:
            return None
        captured = list(self._captured(until))
        again = self.facts((DID, *row[1:]) for row in captured if row[0] == CLOSURE)
        facts = self.shared(self.facts(captured) | again, again)
        rows, shown = self.rows.read(facts), self.state.entries(facts)
        statements = [s for fact in facts for s in _differences(fact, rows.get(fact), shown.get(fact), self.me.name)]
        statements = self.unsaid(
            list({s.key: s for s in (*self._taken_back(facts, rows, shown), *self._closed_again(rows), *statements)}.values())
        )
        statements += self._context(statements, rows)
        return Drained(list(_ops(statements)), until)

    def _captured(self, until: int) -> Iterable[Sequence[Optional[str]]]:
        """What waits. On PostgreSQL a row with a smaller id may come later, so there each is taken away as it is read."""
        columns = schema.outbox.c
        names = (columns.kind, columns.a, columns.b, columns.c, columns.d)
        if self.session.connection().dialect.name == "postgresql":
            return set(map(tuple, self.session.execute(delete(schema.outbox).returning(*names))))
        return self.session.execute(select(*names).where(columns.id <= until).distinct())

    def forget(self, until: int) -> None:
        """The outbox up to `until` is published."""
        if self.session.connection().dialect.name != "postgresql":
            self.session.execute(delete(schema.outbox).where(schema.outbox.c.id <= until))

    # ---- which facts

    def facts(self, captured: Iterable[Sequence[Optional[str]]]) -> set[Fact]:
        facts: set[Fact] = set()
        rses = self.rows.rses()
        for kind, a, b, c, d in captured:
            if kind == SCOPE:
                facts.add(Scope(external(str(a))))
            elif kind == DID:
                facts.add(_did(a, b))
            elif kind == ATTACHMENT:
                facts.add(Attachment(_did(a, b), _did(c, d)))
            elif kind == CONSTITUENT:
                facts.add(Constituent(_did(a, b), _did(c, d)))
            elif kind == REPLICA and c in rses:
                facts.add(Replica(_did(a, b), rses[c].fact))
            elif kind == RSE and a in rses:
                facts.add(rses[a].fact)
        return {fact for fact in facts if isinstance(fact, Rse) or swapped(fact[1]) == fact[1]}  # nothing is said of a mapped scope

    def shared(self, facts: set[Fact], again: Collection[Fact] = ()) -> set[Fact]:
        """Those that are shared, with everything that sharing them shares (R7.2), and all that is in `again`: default deny."""
        scopes = set(self.session.execute(select(schema.shared_scope.c.scope)).scalars())
        named = {fact for fact in facts if isinstance(fact, Did)} | {end for fact in facts for end in ends_of(fact) if isinstance(end, Did)}
        closure = self._public_closure(facts, named, {fact for fact in again if isinstance(fact, Did)})
        if any(did.scope not in scopes for did in closure):
            self.opened_unseen = self._opened
        shown = self._shown(named | closure)
        shared = {did for did in named | closure if did.scope in scopes} | shown | closure
        hanging = self.rows.hanging_on((shared - shown) | closure)
        others = {end for fact in hanging for end in ends_of(fact) if isinstance(end, Did)} - shared
        shared |= {did for did in others if did.scope in scopes} | self._shown(others)
        known_rses = self.state.entries([fact for fact in facts if isinstance(fact, Rse)])
        return {fact for fact in facts | hanging | shared if self._is_shared(fact, scopes, shared, known_rses)}

    def _public_closure(self, facts: set[Fact], named: set[Did], again: set[Did]) -> set[Did]:
        """Those of `named` that became PUBLIC or came into something PUBLIC, and those of `again` that are; with everything below them."""
        shown = self.state.entries(named)
        public = {did for did in named if _is_public(shown.get(did))}
        self._opened = {did for did, row in self.rows.read_dids(named).items() if _is_public(row)} - public
        self._warn_of_undelegated(self._opened)
        edges = [(Did(*fact[1:3]), Did(*fact[3:5])) for fact in facts if isinstance(fact, (Attachment, Constituent))]
        fresh = [(parent, child) for parent, child in edges if child not in shown]
        parents = {parent for parent, _ in fresh}
        within = self._attachable(parents & public | self._inside_public(parents & shown.keys()))
        start = self._opened | again & public | {child for parent, child in fresh if parent in within}
        return start | self.rows.below(start, self._attachable)

    def _inside_public(self, dids: set[Did]) -> set[Did]:
        """Those of `dids` that lie in something PUBLIC, at any depth."""
        held = self.rows.held_by(dids)
        frontier = {did for did, entry in self.state.entries(held.keys()).items() if isinstance(did, Did) and _is_public(entry)}
        found: set[Did] = set()
        while frontier:
            frontier = {child for did in frontier for child in held.get(did, ())} - found
            found |= frontier
        return found & dids

    def _attachable(self, dids: set[Did]) -> set[Did]:
        """Those of `dids` to which this instance may attach: what else is in them here has no business in the shared namespace."""
        others = {did for did in dids if not self.authority.charter.may_write(self.me, did.scope)}
        granted = self.state.sayable(self.me, [Assert(Attachment(did, did), True) for did in others])
        return dids - others | {s.key.parent for s in granted if isinstance(s.key, Attachment)}

    def _warn_of_undelegated(self, opened: set[Did]) -> None:
        """Public data that the charter does not let this instance share: its operator must hear of it."""
        for scope in sorted({did.scope for did in opened}):
            if not self.authority.charter.may_write(self.me, scope):
                home = self.authority.charter.home(scope)
                whose = f"is {home.name}'s" if home is not None else "is delegated to nobody"
                LOG.warning("open data in scope %s is PUBLIC here and not shared: by the charter the scope %s", scope, whose)

    def _shown(self, dids: set[Did]) -> set[Did]:
        return {did for did in self.state.entries(dids) if isinstance(did, Did)}

    def _is_shared(self, fact: Fact, scopes: set[str], shared: set[Did], known_rses: Entries) -> bool:
        if isinstance(fact, Scope):
            return fact.scope in scopes
        if isinstance(fact, Did):
            return fact in shared
        if isinstance(fact, (Attachment, Constituent)):
            return all(end in shared for end in ends_of(fact))
        return fact in known_rses if isinstance(fact, Rse) else fact.did in shared and fact.rse.instance == self.me.name

    # ---- which statements

    def unsaid(self, statements: Sequence[Statement]) -> list[Statement]:
        """Without what this instance may not say, and what it says already, though a rule of the catalogue prefers another."""
        allowed = self.state.sayable(self.me, statements)
        if len(allowed) < len(statements):
            LOG.debug(
                "%d statements are not published: the charter does not let %s make them", len(statements) - len(allowed), self.me.name
            )
        slots = self.state.slots([s.key for s in allowed])
        held_back = self._held_back([s.key for s in allowed])
        facts = {keys.fact_of(s.key) for s in allowed}
        unwritten = parked.among(self.session, facts)
        left = unwritten - self.state.entries(facts).keys()  # the namespace has it no more, and a row stays here: nobody shares it (R5.7)
        reader = Reader(self.state.rulings)
        gone = {s.key for s in allowed if isinstance(s, Retract)}
        taken = {key for key in gone if isinstance(key, Attribute) and key.fact not in gone}  # perhaps since it was never written here
        absent = parked.among(self.session, facts, had_row=(False,))
        found = []
        for statement in allowed:
            about = slots.get(statement.key, ())
            held = held_back.get(statement.key)
            mine = held or reader.mine(self.me.author, about)
            if keys.fact_of(statement.key) in left or (statement.key in taken and keys.fact_of(statement.key) in unwritten):
                said = True
            elif isinstance(statement, Assert):
                said = mine is not None and not mine.retract and mine.value == statement.value
            elif keys.fact_of(statement.key) in absent or (held is not None and held.retract):
                said = True  # its row was never written here, so nobody removed it; or it waits for the home already
            else:
                is_home = self.authority.decider(statement.key) in (None, self.me.author)
                said = not any(is_home or reader.name(slot.dot.author) == self.me.name for slot in reader.standing(statement.key, about))
            if not said:
                found.append(statement)
        return found

    def _taken_back(self, facts: Collection[Fact], rows: Entries, shown: Entries) -> list[Statement]:
        """What rows say about keys of which a statement of this instance waits for their home (R5.6). The catalogue does not show that
        statement yet, so a row that agrees with the catalogue may well disagree with it."""
        guests = [fact for fact in facts if not isinstance(fact, (Scope, Rse)) and not self._is_mine(fact)]
        fields_of = {fact: _said(rows.get(fact)).keys() | _said(shown.get(fact)).keys() for fact in guests if isinstance(fact, Did)}
        attributes = [Attribute(fact, field) for fact, said in fields_of.items() for field in (*said, keys.CLOSED, keys.OPENDATA)]
        found: list[Statement] = []
        for key in self._held_back([*guests, *attributes]):
            row = rows.get(keys.fact_of(key))
            if isinstance(key, Attribute):
                value = _said(row).get(key.field)
                found += [Assert(key, value)] if value is not None else []
            elif row is not None:
                found += [s for s in _differences(key, row, None, self.me.name) if s.key == key]
        return found

    def _is_mine(self, fact: Fact) -> bool:
        """Whether nothing that this instance says about `fact` waits for anybody."""
        home = self.authority.charter.home(str(fact[1]))
        return home is not None and home.name == self.me.name

    def _closed_again(self, rows: Entries) -> list[Statement]:
        """Closes of open data that this instance had reopened in vain (6.5). The catalogue shows them closed all the time, and yet
        the close says something: it lets in what was attached since."""
        closed = [close_key(did) for did, row in rows.items() if isinstance(did, Did) and isinstance(row, DidEntry) and row.closed]
        reader = Reader(self.state.rulings)
        tops = {key: reader.maximal(slots) for key, slots in self.state.slots(closed).items()}
        reopened = [key for key, said in tops.items() if not any(slot.value for slot in said)]
        return [Assert(key, True) for key in reopened if any(reader.name(slot.dot.author) == self.me.name for slot in tops[key])]

    def _held_back(self, wanted: Collection[Key]) -> dict[Key, Slot]:
        """The last words of this instance about `wanted`, where they wait for the home."""
        waits = self.state.waiting(self.me.author, wanted)
        mine = {key: slot for key, slots in self.state.slots(waits).items() for slot in slots if slot.dot.author == self.me.author}
        return {key: slot for key, slot in waits.items() if key not in mine or mine[key].dot.seq < slot.dot.seq}

    def _context(self, statements: Sequence[Statement], rows: Entries) -> list[Statement]:
        """What must be said along: the scope and RSE that a first statement needs, and a close after an attachment to something closed."""
        asserted = [s.key for s in statements if isinstance(s, Assert)]
        scopes = {Scope(key.scope) for key in asserted if isinstance(key, Did)}
        rses = {key.rse for key in asserted if isinstance(key, Replica)}
        closed = {key.parent for key in asserted if isinstance(key, Attachment)} - {
            key.fact for key in asserted if isinstance(key, Attribute)
        }
        parents = self.rows.read(closed)
        needed: set[Fact] = {*scopes, *rses}
        known = self.state.entries(needed)
        fresh = [fact for fact in needed if fact not in known and fact not in asserted]
        definitions = self.rows.read([fact for fact in fresh if isinstance(fact, Rse)])
        found: list[Statement] = [Assert(fact, True) for fact in fresh]
        for fact, entry in definitions.items():
            if isinstance(entry, RseEntry):
                found += [
                    Assert(Attribute(fact, keys.PROTOCOLS), entry.protocols),
                    Assert(Attribute(fact, keys.ATTRIBUTES), entry.attributes),
                ]
        found += [
            Assert(close_key(did), True)
            for did, entry in parents.items()
            if isinstance(did, Did) and isinstance(entry, DidEntry) and entry.closed
        ]
        return self.state.sayable(self.me, found)


def _did(scope: Optional[str], name: Optional[str]) -> Did:
    return Did(external(str(scope)), str(name))


def _said(entry: Optional[Entry]) -> dict[str, Any]:
    """The fields of a DID, and what an entry says of each."""
    if not isinstance(entry, DidEntry):
        return {}
    plain = {field: getattr(entry, field) for field in (keys.CLOSED, keys.OPENDATA, *NAMES)}
    return {**{field: value for field, value in plain.items() if value is not None}, **metadata.said(entry)}


def _is_public(entry: Optional[Entry]) -> bool:
    return isinstance(entry, DidEntry) and entry.opendata == keys.PUBLIC


def _differences(fact: Fact, row: Optional[Entry], shown: Optional[Entry], me: str) -> list[Statement]:
    """What the row says otherwise than the catalogue."""
    if row is None:
        return _gone(fact, shown, me) if shown is not None and _disappears(fact, me) else []
    if isinstance(fact, Did) and isinstance(row, DidEntry):
        return _did_differences(fact, row, shown if isinstance(shown, DidEntry) else None)
    if isinstance(fact, Rse) and isinstance(row, RseEntry):
        was = shown if isinstance(shown, RseEntry) else RseEntry((), ())
        changed = ((keys.PROTOCOLS, row.protocols, was.protocols), (keys.ATTRIBUTES, row.attributes, was.attributes))
        return [Assert(Attribute(fact, field), value) for field, value, old in changed if value != old and fact.instance == me]
    if isinstance(fact, Replica) and isinstance(row, ReplicaEntry):
        return _replica_differences(fact, row, shown if isinstance(shown, ReplicaEntry) else None)
    return [Assert(fact, True)] if shown is None else []


def _disappears(fact: Fact, me: str) -> bool:
    """Scopes and RSEs never leave the namespace by themselves."""
    return isinstance(fact, (Did, Attachment, Constituent)) or (isinstance(fact, Replica) and fact.rse.instance == me)


def _gone(fact: Fact, shown: Entry, me: str) -> list[Statement]:
    """It is no more, and nor is what was said of it: a new one of that name inherits nothing."""
    found: list[Statement] = [Retract(fact)]
    if isinstance(fact, Did):
        said = dict.fromkeys((keys.CLOSED, keys.OPENDATA, *NAMES, *metadata.FLAGS, *_said(shown)))
        found += [Retract(Attribute(fact, field)) for field in said]
    if isinstance(shown, ReplicaEntry) and shown.state != fields.AVAILABLE:
        found.append(Retract(Attribute(fact, fields.STATE)))
    return found


def _replica_differences(replica: Replica, row: ReplicaEntry, shown: Optional[ReplicaEntry]) -> list[Statement]:
    """One that was never available is nobody's to know (R7.2)."""
    if not row.path or (shown is None and row.state != fields.AVAILABLE):
        return []
    found: list[Statement] = []
    if shown is None or row.path != shown.path:
        found.append(Assert(replica, row.path))
    if row.state != (shown.state if shown is not None else fields.AVAILABLE):
        found.append(Assert(Attribute(replica, fields.STATE), row.state))
    return found


def _did_differences(did: Did, row: DidEntry, shown: Optional[DidEntry]) -> list[Statement]:
    found: list[Statement] = []
    if shown is None or not shown.identity.agrees(row.identity):
        found.append(Assert(did, row.identity))
    was = shown if shown is not None else DidEntry(row.identity, "", None, None, None)
    if row.closed is not None and row.closed != bool(was.closed):
        found.append(Assert(close_key(did), row.closed))
    if row.opendata is not None and row.opendata != was.opendata:
        found.append(Assert(open_data_key(did), row.opendata))
    said = {field: getattr(row, field) for field in NAMES if getattr(row, field) != getattr(was, field)}
    said.update(metadata.differences(row, was))
    return found + [says(did, field, value) for field, value in said.items()]


def says(did: Did, field: str, value: Any) -> Statement:
    """A flag that is down is said to be; of another field there is then nothing to say."""
    key = Attribute(did, field)
    if value is None and field not in (*metadata.FLAGS, "transient"):
        return Retract(key)
    return Assert(key, bool(value) if value is None else value)


def _ops(statements: Sequence[Statement]) -> Iterable[bytes]:
    """One op for what belongs together, in the order that the rules need: a close comes after the attachments that it is to keep."""
    groups: dict[tuple[int, Key], list[Statement]] = {}
    for statement in statements:
        groups.setdefault(_place(statement.key), []).append(statement)
    for place in sorted(groups, key=lambda place: (place[0], keys.key_bytes(place[1]))):
        for said in chunks(groups[place], STATEMENTS_MAX):
            try:
                yield encode_op(said)
            except RejectedSegment:
                yield from _acceptable(said)


def _acceptable(said: Sequence[Statement]) -> Iterable[bytes]:
    """An op for each statement that a peer would accept: a file is shared though one of its datasets has an impossible name."""
    for statement in said:
        try:
            yield encode_op([statement])
        except RejectedSegment as error:
            LOG.error("not published, since no peer would accept it: %.150r: %s; rename it to share it", str(statement.key), error)


def _place(key: Key) -> tuple[int, Key]:
    """The phase in which a key is said, and what it is said along with: attachments and replicas with their child."""
    if isinstance(key, Attribute):
        if isinstance(key.fact, Replica):
            return 2, key.fact.did
        return _PHASES.get(key.field, 1 if isinstance(key.fact, Rse) else 2), key.fact
    if isinstance(key, (Attachment, Constituent)):
        return 2, key.child
    if isinstance(key, Replica):
        return 2, key.did
    return (2 if isinstance(key, Did) else 0), key


_PHASES = {keys.CLOSED: 4, keys.OPENDATA: 5, **dict.fromkeys((*NAMES, fields.OPENDATA_META), 5)}
"""Of a DID's fields; its metadata are said along with it."""


def outbox_is_empty(session: Session) -> bool:
    """Whether nothing waits to be published: a look without a lock."""
    return session.execute(select(schema.outbox.c.id).limit(1)).first() is None
