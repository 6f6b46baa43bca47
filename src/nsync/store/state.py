"""Slots, claims, links, entries and conflicts in SQL: what `catalogue.view.derive` asks, and the join (R3.3).

Every method works on a batch: one statement per 400 keys to read, one executemany to write.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Column, Connection, Row, Table, delete, insert, select, text

from nsync.authority.effective import Authority
from nsync.catalogue.dids import META_FIELDS_MAX
from nsync.catalogue.entries import Conflict, Entry, entry_from_wire, plain
from nsync.catalogue.judge import first_claims, last_of_each
from nsync.catalogue.opendata import Name, name_of
from nsync.catalogue.rules import Reader
from nsync.catalogue.state import About, Derived, Hanging, Node, other_end
from nsync.catalogue.view import derive
from nsync.clock import Stamp
from nsync.crdt import Dot, Slot
from nsync.namespace import codec
from nsync.namespace.fields import DID
from nsync.namespace.keys import (
    Attachment,
    Attribute,
    Did,
    Fact,
    Key,
    Scope,
    anchor_of,
    check_value,
    from_key_bytes,
    key_bytes,
    to_wire,
)
from nsync.store import schema
from nsync.store.database import chunks
from nsync.store.pasts import SqlPasts

_COLUMNS = "key, author, seq, stamp_ms, stamp_logical, retract, value"
_VALUES = ":key, :author, :seq, :stamp_ms, :stamp_logical, :retract, :value"
_JOIN = text(
    f"INSERT INTO nsync_slot ({_COLUMNS}) VALUES ({_VALUES}) "
    "ON CONFLICT (key, author) DO UPDATE SET seq = excluded.seq, stamp_ms = excluded.stamp_ms, stamp_logical = excluded.stamp_logical, "
    "retract = excluded.retract, value = excluded.value WHERE excluded.seq > nsync_slot.seq"
)
_CLAIM = text(f"INSERT INTO nsync_claim ({_COLUMNS}) VALUES ({_VALUES}) ON CONFLICT (key, author) DO NOTHING")
_LINK = text("INSERT INTO nsync_link (node, key) VALUES (:node, :key) ON CONFLICT (node, key) DO NOTHING")
_ENTRY = text(
    "INSERT INTO nsync_entry (key, kind, scope, name, entry) VALUES (:key, :kind, :scope, :name, :entry) "
    "ON CONFLICT (key) DO UPDATE SET entry = excluded.entry"
)
_RIVALS = text(
    "SELECT c.key FROM nsync_claim c WHERE c.author = :other AND c.seq > :low AND c.seq <= :high "
    "AND EXISTS (SELECT 1 FROM nsync_claim r WHERE r.key = c.key AND r.author <> c.author)"
)
_DOIS = text(
    "SELECT s.key FROM nsync_slot s JOIN nsync_link l ON l.key = s.key WHERE s.author = :other AND s.seq > :low AND s.seq <= :high "
    "AND l.node >= :doi AND l.node < :after"
)
_NAME_NODE = b"name:"
_ANCHOR_NODE = b"at:"


class SqlState:
    """The state as one transaction sees it. Make one per transaction."""

    def __init__(self, connection: Connection, authority: Authority) -> None:
        self.connection = connection
        self.authority = authority
        self.pasts = SqlPasts(connection)

    # ---- what `derive` asks

    def slots(self, wanted: Collection[Key]) -> dict[Key, Sequence[Slot]]:
        found: dict[Key, list[Slot]] = {}
        for key, slot in self._statements(schema.slot, wanted):
            found.setdefault(key, []).append(slot)
        return {key: sorted(slots) for key, slots in found.items()}

    def about(self, dids: Collection[Did]) -> dict[Did, About]:
        anchored = [row.key for row in self._in(schema.link, schema.link.c.node, {_ANCHOR_NODE + key_bytes(did) for did in dids})]
        slots: dict[Did, dict[Key, Sequence[Slot]]] = {}
        for key, said in self.slots([from_key_bytes(key) for key in anchored]).items():
            slots.setdefault(anchor_of(key), {})[key] = said  # type: ignore[arg-type]
        claims: dict[Key, list[Slot]] = {}
        for key, slot in self._statements(schema.claim, dids):
            claims.setdefault(key, []).append(slot)
        return {did: About(found, sorted(claims.get(did, ()))) for did, found in slots.items()}

    def entries(self, facts: Collection[Fact]) -> dict[Fact, Entry]:
        rows = self._in(schema.entry, schema.entry.c.key, {key_bytes(fact) for fact in facts})
        return dict(_entry(row.key, row.entry) for row in rows)

    def hanging_on(self, nodes: Collection[Node]) -> Iterable[Hanging]:
        rows = self._in(schema.link, schema.link.c.node, {key_bytes(node) for node in nodes})
        return {from_key_bytes(row.key) for row in rows}  # type: ignore[misc]

    def late_in(self, seals: Mapping[Did, Sequence[Slot]]) -> Iterable[Attachment]:
        return {fact for fact in self.hanging_on(seals.keys()) if isinstance(fact, Attachment)}

    def asking(self, names: Collection[Name]) -> Iterable[Did]:
        rows = self._in(schema.link, schema.link.c.node, {_name_node(name) for name in names})
        return {from_key_bytes(row.key).fact for row in rows}  # type: ignore[union-attr,misc]

    def dids_in(self, scopes: Collection[str]) -> Iterable[Did]:
        columns = schema.entry.c
        for chunk in chunks(sorted(scopes)):
            query = select(columns.scope, columns.name).where(columns.kind == DID, columns.scope.in_(chunk))
            yield from (Did(row.scope, row.name) for row in self.connection.execute(query))

    # ---- the join, and the catalogue after it

    def join(self, statements: Collection[tuple[Key, Slot]]) -> set[Key]:
        """Take in effective statements; returns the keys that they are about."""
        claims = [_row(did, slot) for (did, _), slot in first_claims(statements).items()]
        self._many(_CLAIM, claims)
        self._many(_JOIN, [_row(key, slot) for (key, _), slot in last_of_each(statements).items()])
        links = {(_ANCHOR_NODE + key_bytes(anchor_of(key)), key_bytes(key)) for key, _ in statements if isinstance(anchor_of(key), Did)}
        links |= {(key_bytes(end), key_bytes(key)) for key, _ in statements for end in [other_end(key)] if end is not None}
        asked = ((name_of(key, slot.value), key) for key, slot in statements if not slot.retract)
        links |= {(_name_node(name), key_bytes(key)) for name, key in asked if name is not None}
        self._many(_LINK, [{"node": node, "key": key} for node, key in sorted(links)])
        return {key for key, _ in statements}

    def wait(self, statements: Collection[tuple[Key, Slot]]) -> None:
        """Keep statements until their home acknowledges them."""
        if statements:
            self.connection.execute(insert(schema.waiting), [_row(key, slot) for key, slot in statements])

    def owes_acknowledgement(self, home: bytes) -> bool:
        """Whether statements wait for `home`: guests' destructive and publishing ones, and claims that only its log can put in order."""
        waits = self.connection.execute(select(schema.waiting.c.key).distinct()).scalars()
        if any(self.authority.decider(from_key_bytes(key)) == home for key in waits):
            return True
        claims = select(schema.claim.c.key, schema.claim.c.author, schema.claim.c.seq).where(schema.claim.c.author != home)
        rivals = self.connection.execute(claims.join(schema.conflict, schema.conflict.c.key == schema.claim.c.key).distinct())
        mine = (Dot(r.author, r.seq) for r in rivals if self.authority.decider(from_key_bytes(r.key)) == home)
        return any(self.pasts.seen_from(home, dot) is None for dot in mine)

    def waiting(self, author: bytes, wanted: Collection[Key]) -> dict[Key, Slot]:
        """The last statement of `author` about each of `wanted` that its home has not acknowledged."""
        columns = schema.waiting.c
        query = select(schema.waiting).where(columns.author == author)
        found = [
            _statement(row)
            for chunk in chunks(sorted(key_bytes(key) for key in wanted))
            for row in self.connection.execute(query.where(columns.key.in_(chunk)))
        ]
        return {key: slot for (key, _), slot in last_of_each(found).items()}

    def acknowledge(self, home: bytes, other: bytes, low: int, high: int) -> tuple[list[tuple[Key, Slot]], set[Key]]:
        """`home` now has `other`'s ops in (low, high] in its past.

        Returns the statements that this settles, and the keys whose order of claims it moves.
        """
        columns = schema.waiting.c
        rows = self.connection.execute(
            select(schema.waiting).where(columns.author == other, columns.seq > low, columns.seq <= high).order_by(columns.seq)
        ).all()
        mine = [row for row in rows if self.authority.decider(from_key_bytes(row.key)) == home]
        for chunk in chunks([row.id for row in mine]):
            self.connection.execute(delete(schema.waiting).where(columns.id.in_(chunk)))
        reach = {"other": other, "low": low, "high": high}
        rivals = self.connection.execute(_RIVALS, reach).scalars().all()
        dois = self.connection.execute(_DOIS, {**reach, "doi": _NAME_NODE, "after": _NAME_NODE[:-1] + b";"}).scalars().all()
        return [_statement(row) for row in mine], {from_key_bytes(key) for key in [*rivals, *dois]}

    def refresh(self, touched: Collection[Key]) -> set[Fact]:
        """Bring the catalogue up to date with the slots of `touched`; returns the facts whose entries changed."""
        derived = derive(self, Reader(self.authority, self.pasts), touched)
        before = self.entries(derived.entries.keys())
        changed = {fact for fact, entry in derived.entries.items() if entry != before.get(fact)}
        self._show(derived, changed)
        self._note(derived)
        return changed

    def _show(self, derived: Derived, changed: set[Fact]) -> None:
        rows, gone = [], []
        for fact in changed:
            shown = derived.entries[fact]
            if shown is None:
                gone.append(key_bytes(fact))
            else:
                scope = fact.scope if isinstance(fact, (Scope, Did)) else None
                name = fact.name if isinstance(fact, Did) else None
                rows.append(
                    {"key": key_bytes(fact), "kind": to_wire(fact)[0], "scope": scope, "name": name, "entry": codec.encode(plain(shown))}
                )
        self._many(_ENTRY, rows)
        for chunk in chunks(gone):
            self.connection.execute(delete(schema.entry).where(schema.entry.c.key.in_(chunk)))

    def _note(self, derived: Derived) -> None:
        """Replace the conflicts of every fact that was looked at, where they differ."""
        held = self.conflicts(derived.conflicts.keys())
        moved = {fact for fact, found in derived.conflicts.items() if sorted(found) != held.get(fact, [])}
        for chunk in chunks([key_bytes(fact) for fact in moved]):
            self.connection.execute(delete(schema.conflict).where(schema.conflict.c.key.in_(chunk)))
        rows = [{"key": key_bytes(fact), **found._asdict()} for fact in sorted(moved, key=key_bytes) for found in derived.conflicts[fact]]
        if rows:
            self.connection.execute(insert(schema.conflict), rows)

    def conflicts(self, facts: Collection[Fact]) -> dict[Fact, list[Conflict]]:
        """The conflicts noted about each of `facts`, sorted."""
        found: dict[Fact, list[Conflict]] = {}
        for row in self._in(schema.conflict, schema.conflict.c.key, {key_bytes(fact) for fact in facts}):
            fact = from_key_bytes(row.key)
            assert not isinstance(fact, Attribute)
            found.setdefault(fact, []).append(Conflict(row.rule, row.winner, row.loser, row.resolve, row.stamps))
        return {fact: sorted(conflicts) for fact, conflicts in found.items()}

    # ---- leaves

    def _statements(self, table: Table, wanted: Collection[Key]) -> Iterable[tuple[Key, Slot]]:
        return (_statement(row) for row in self._in(table, table.c.key, {key_bytes(key) for key in wanted}))

    def _in(self, table: Table, column: Column[Any], values: Collection[bytes]) -> Iterable[Row[Any]]:
        for chunk in chunks(sorted(values)):
            yield from self.connection.execute(select(table).where(column.in_(chunk)))

    def _many(self, statement: Any, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            self.connection.execute(statement, rows)


def _name_node(name: Name) -> bytes:
    field, value = name
    return _NAME_NODE + field.encode() + b":" + str(value).encode()


def _row(key: Key, slot: Slot) -> dict[str, Any]:
    return {
        "key": key_bytes(key),
        "author": slot.dot.author,
        "seq": slot.dot.seq,
        "stamp_ms": slot.stamp.ms,
        "stamp_logical": slot.stamp.logical,
        "retract": slot.retract,
        "value": None if slot.retract else codec.encode(plain(slot.value)),
    }


def _statement(row: Row[Any]) -> tuple[Key, Slot]:
    key = from_key_bytes(row.key)
    value = None if row.retract else check_value(key, codec.decode(row.value, "value"))
    return key, Slot(Dot(row.author, row.seq), Stamp(row.stamp_ms, row.stamp_logical), bool(row.retract), value)


def _entry(key: bytes, entry: bytes) -> tuple[Fact, Entry]:
    fact = from_key_bytes(key)
    assert not isinstance(fact, Attribute)
    return fact, entry_from_wire(fact, codec.decode(entry, "entry", META_FIELDS_MAX))
