"""The catalogue in SQL: what is shown, and the conflicts that its rules leave behind."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Optional

from sqlalchemy import Connection, Row, Table, delete, select, text

from nsync.catalogue.entries import Conflict, Entry, entry_from_wire
from nsync.catalogue.state import Derived
from nsync.namespace import codec, fields
from nsync.namespace.keys import Attachment, Did, Fact, key_bytes
from nsync.store import keyed, schema
from nsync.store.bulk import bulk_insert
from nsync.store.database import chunks, is_among

Changed = tuple[int, bytes, Optional[bytes]]
"""A fact whose entry changed: its kind, and what stands in `key` and `whole`."""

_key = itemgetter(1)
_ENTRY, _CONFLICT = schema.entry.c, schema.conflict.c


class Shown:
    """`nsync_entry` and `nsync_conflict`, as one transaction sees them."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def entries(self, facts: Collection[Fact]) -> dict[Fact, Entry]:
        """What is shown of each of `facts` that is."""
        return {fact: entry_from_wire(fact, codec.load(row.entry)) for fact, row in self._in(schema.entry, facts)}

    def conflicts(self, facts: Collection[Fact]) -> dict[Fact, list[Conflict]]:
        """The conflicts noted about each of `facts`, sorted."""
        found: dict[Fact, list[Conflict]] = {}
        for fact, row in self._in(schema.conflict, facts):
            found.setdefault(fact, []).append(Conflict(*(getattr(row, name) for name in Conflict._fields)))
        return {fact: sorted(conflicts) for fact, conflicts in found.items()}

    def conflicts_in(self, parent: Did) -> set[Attachment]:
        """The attachments to `parent` that have a conflict."""
        low = keyed.indexed(Attachment(parent, parent))[: keyed.prefix_bytes(parent)]
        query = select(_CONFLICT.key, _CONFLICT.whole).where(_CONFLICT.key >= low, _CONFLICT.key < low + b"\xff")
        facts = map(keyed.key_in, self.connection.execute(query))
        return {fact for fact in facts if isinstance(fact, Attachment) and fact.parent == parent}

    def dids_in(self, scopes: Collection[str]) -> Iterable[Did]:
        """Every DID that is shown in one of `scopes`."""
        for chunk in chunks(sorted(scopes)):
            query = select(_ENTRY.key, _ENTRY.whole).where(_ENTRY.kind == fields.DID, _ENTRY.scope.in_(chunk))
            yield from map(keyed.key_in, self.connection.execute(query))

    # ---- writing

    def set_aside(self) -> None:
        """Remember what is shown in `nsync_was`, until `forget_aside`."""
        self.connection.exec_driver_sql("DROP TABLE IF EXISTS nsync_was")
        self.connection.exec_driver_sql("CREATE TEMPORARY TABLE nsync_was AS SELECT kind, key, whole, entry FROM nsync_entry")
        self.connection.exec_driver_sql("CREATE UNIQUE INDEX nsync_was_key ON nsync_was (key)")

    def forget_aside(self) -> None:
        """What was set aside is not needed any more."""
        self.connection.exec_driver_sql("DROP TABLE nsync_was")

    def clear(self) -> None:
        """Show nothing."""
        for table in (schema.entry, schema.conflict):
            self.connection.execute(delete(table))

    def update(self, derived: Derived) -> list[Changed]:
        """Write what was derived; returns the facts whose entries changed, in the order of their keys."""
        before = self.entries(derived.entries.keys() - derived.before.keys())
        before.update((fact, entry) for fact, entry in derived.before.items() if entry is not None)
        differ = [(fact, *keyed.columns(fact)) for fact, entry in derived.entries.items() if entry != before.get(fact)]
        differ.sort(key=_key)
        self._show(derived, before, differ)
        self._note(derived)
        return [(fact[0], key, whole) for fact, key, whole in differ]

    def _show(self, derived: Derived, before: Mapping[Fact, Entry], differ: Sequence[tuple[Fact, bytes, Optional[bytes]]]) -> None:
        fresh, moved, gone = [], [], []
        for fact, key, whole in differ:
            shown = derived.entries[fact]
            if shown is None:
                gone.append(key)
            elif fact in before:
                moved.append({"at": key, "now": codec.pack(shown)})
            else:
                kind = fact[0]
                scope = fact[1] if kind == fields.DID or kind == fields.SCOPE else None
                name = keyed.name(fact[2]) if kind == fields.DID else None
                fresh.append((key, whole, kind, scope, name, codec.pack(shown)))
        columns = ("key", "whole", "kind", "scope", "name", "entry")
        bulk_insert(self.connection, schema.entry.name, columns, fresh)
        if moved:
            self.connection.execute(text("UPDATE nsync_entry SET entry = :now WHERE key = :at"), moved)
        for chunk in chunks(gone):
            self.connection.execute(delete(schema.entry).where(is_among(self.connection, _ENTRY.key, chunk)))

    def _note(self, derived: Derived) -> None:
        """Replace the conflicts of every fact that was looked at, where they differ."""
        held = self.conflicts(derived.conflicts.keys() - derived.new)
        moved = {fact for fact, found in derived.conflicts.items() if (found or fact in held) and sorted(found) != held.get(fact, [])}
        for chunk in chunks([keyed.indexed(fact) for fact in moved if fact in held]):
            self.connection.execute(delete(schema.conflict).where(is_among(self.connection, _CONFLICT.key, chunk)))
        rows = [(*keyed.columns(fact), *found) for fact in sorted(moved, key=key_bytes) for found in derived.conflicts[fact]]
        bulk_insert(self.connection, schema.conflict.name, ("key", "whole", *Conflict._fields), rows)

    def _in(self, table: Table, facts: Collection[Fact]) -> Iterator[tuple[Fact, Row[Any]]]:
        """The rows of each of `facts` that `table` has."""
        wanted = {keyed.indexed(fact): fact for fact in facts}
        for chunk in chunks(sorted(wanted)):
            for row in self.connection.execute(select(table).where(is_among(self.connection, table.c.key, chunk))).all():
                yield wanted[row.key], row
