"""Facts whose entries changed in this transaction, in a temporary table: so that a changeset of a million files needs no memory.

They lie in lists, each fact in that of its kind unless another is named, and are read in parts, in the order in which they came. A
fact may come twice: who reads them compares with what is there, and finds nothing to do the second time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Optional

from sqlalchemy import Connection, text

from nsync.catalogue.entries import AttachmentEntry, Entry, entry_from_wire
from nsync.namespace import codec, fields
from nsync.namespace.keys import Fact, key_of
from nsync.store import keyed
from nsync.store.bulk import bulk_insert
from nsync.store.collector import collector_paused

PART_FACTS = 1 << 14
"""Facts, with their entries and rows, that are in memory together."""

_TABLE = "nsync_changed"
_MAKE = {
    "sqlite": f"CREATE TEMPORARY TABLE IF NOT EXISTS {_TABLE} "
    "(list INTEGER, n INTEGER, key BLOB, whole BLOB, PRIMARY KEY (list, n)) WITHOUT ROWID",
    "postgresql": f"CREATE TEMPORARY TABLE IF NOT EXISTS {_TABLE} "
    "(list integer, n bigint, key bytea, whole bytea, PRIMARY KEY (list, n)) ON COMMIT DELETE ROWS",
}
_PART = text(
    f"SELECT c.n, c.key, c.whole, e.entry FROM {_TABLE} c LEFT JOIN nsync_entry e ON e.key = c.key "  # noqa: S608 - a constant
    "WHERE c.list = :list AND c.n > :after ORDER BY c.n LIMIT :size"
)

Entries = dict[Fact, Optional[Entry]]


class Changes:
    """The lists of one transaction. Make one per transaction and changeset: a new one is empty."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._counts: dict[int, int] = {}
        self._is_made = False

    def __len__(self) -> int:
        """How many came, in all lists."""
        return sum(self._counts.values())

    def count(self, list_: int) -> int:
        """How many came into one list."""
        return self._counts.get(list_, 0)

    def add(self, facts: Iterable[Fact], list_: Optional[int] = None) -> None:
        """Put `facts` at the ends of the lists of their kinds, or of `list_`."""
        self.put([(fact[0] if list_ is None else list_, *keyed.columns(fact)) for fact in facts])

    @collector_paused()
    def put(self, facts: Sequence[tuple[int, bytes, Optional[bytes]]]) -> None:
        """The same for facts as they stand in tables, each with its list."""
        rows = []
        for list_, key, whole in facts:
            n = self._counts[list_] = self._counts.get(list_, 0) + 1
            rows.append((list_, n, key, whole))
        if rows:
            self._make()
            bulk_insert(self.connection, _TABLE, ("list", "n", "key", "whole"), rows)

    def add_moved(self) -> None:
        """Put in what differs from what was set aside (store.shown)."""
        self._make()
        self.connection.exec_driver_sql(
            f"INSERT INTO {_TABLE} (list, n, key, whole) "  # noqa: S608
            "SELECT kind, row_number() OVER (PARTITION BY kind ORDER BY key), key, whole FROM ("
            "SELECT o.kind, o.key, o.whole FROM nsync_was o LEFT JOIN nsync_entry e ON e.key = o.key "
            "WHERE e.key IS NULL OR e.entry <> o.entry UNION ALL "
            "SELECT e.kind, e.key, e.whole FROM nsync_entry e LEFT JOIN nsync_was o ON o.key = e.key WHERE o.key IS NULL) moved"
        )
        counted = self.connection.exec_driver_sql(f"SELECT list, count(*) FROM {_TABLE} GROUP BY list")  # noqa: S608
        self._counts = {row[0]: row[1] for row in counted}

    def parts(self, list_: int) -> Iterator[Entries]:
        """What is in a list, each with its entry or None, a part at a time; also what is put in meanwhile."""
        after = 0
        while after < self.count(list_):
            part, after = self._part(list_, after)
            yield part

    @collector_paused()
    def _part(self, list_: int, after: int) -> tuple[Entries, int]:
        """The next part of a list, and the place of its last fact."""
        found: Entries = {}
        for n, key, whole, entry in self.connection.execute(_PART, {"list": list_, "after": after, "size": PART_FACTS}):
            fact: Fact = key_of(codec.load(key if whole is None else whole))  # type: ignore[assignment]
            found[fact] = None if entry is None else _ATTACHED if fact[0] == fields.ATTACHMENT else entry_from_wire(fact, codec.load(entry))
            after = n
        return found, after

    def clear(self) -> None:
        """Empty all lists."""
        if self._counts:
            self.connection.exec_driver_sql(f"DELETE FROM {_TABLE}")  # noqa: S608
            self._counts = {}

    def forget(self, *lists: int) -> None:
        """Empty some lists, whatever a savepoint that was undone had put there."""
        for list_ in lists:
            if self._counts.pop(list_, 0):
                self.connection.exec_driver_sql(f"DELETE FROM {_TABLE} WHERE list = {int(list_)}")  # noqa: S608

    def _make(self) -> None:
        """The table stays with its connection: what an earlier transaction left is not ours."""
        if not self._is_made:
            self.connection.exec_driver_sql(_MAKE[self.connection.dialect.name])
            self.connection.exec_driver_sql(f"DELETE FROM {_TABLE}")  # noqa: S608
            self._is_made = True


_ATTACHED = AttachmentEntry()
