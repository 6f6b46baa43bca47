"""Rows in shared places that the catalogue does not show: what a local admin attached to a foreign dataset, or nobody has published yet.

Counting comes first, within the database: where a scope or an RSE has as many rows as the catalogue has entries with a row, there is
nothing else, and its rows are not read. Private rows are looked at by nobody: shared places are the scopes that are shared, foreign
scopes, what is below DIDs that the catalogue shows, foreign RSEs, and open data that is PUBLIC.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Callable, NamedTuple, Optional, Union

from rucio.db.sqla.constants import ReplicaState
from sqlalchemy import Row, Table, select, text
from sqlalchemy.orm import Session

from nsync.namespace import fields
from nsync.namespace.keys import Attachment, Constituent, Did, Fact, Replica, Rse
from nsync.rucio_bridge.constituents import ARCHIVES
from nsync.rucio_bridge.lookup import external, internal
from nsync.rucio_bridge.opendata import OPEN
from nsync.rucio_bridge.rows import CONTENTS, DIDS, ORIGIN, REPLICAS, Rows
from nsync.rucio_bridge.scopes import swapped_sql
from nsync.store import schema

ROWS_MAX = 10_000
"""That are in memory together."""

Place = tuple[int, str]
"""A kind of facts, and the scope in whose rows they are written; of replicas the id of their RSE."""

_SHOWN = "(SELECT 1 FROM nsync_entry e WHERE e.kind = 2 AND e.scope = :shown AND e.name = c.name LIMIT 1)"
"""Each found through the index: of an EXISTS PostgreSQL makes a join, which of tables that it has not counted yet takes the square of
their rows."""
_TOLD = ", ".join(f"'{ReplicaState[name].value}'" for name in fields.STATES)
_EDGE = ("name", "child_scope", "child_name")


def _shown_anywhere() -> str:
    return f"(SELECT 1 FROM nsync_entry e WHERE e.kind = 2 AND e.scope = {swapped_sql('c.scope')} AND e.name = c.name LIMIT 1)"


def place_of(fact: Fact, rse_ids: Mapping[Rse, str]) -> Place:
    """Where the row of `fact` is counted."""
    return fact[0], rse_ids.get(fact.rse, "") if isinstance(fact, Replica) else str(fact[1])


class _Source(NamedTuple):
    """Rows of one place, and how they are read in order."""

    place: Place
    table: Table
    columns: Sequence[str]
    """That name a row, in the order of its index."""
    where: str
    values: Mapping[str, Any]


class Extras:
    """The finder of one transaction. `scope`: in this one only."""

    def __init__(self, session: Session, rows: Rows, is_own: Callable[[str], bool], scope: Optional[str]) -> None:
        self.session = session
        self.rows = rows
        self.is_own = is_own
        self.scope = scope
        self.shared = set(session.execute(select(schema.shared_scope.c.scope)).scalars())

    def parts(self, counts: Mapping[Place, int]) -> Iterator[Collection[Fact]]:
        """Facts that have a row, in parts, among them all that the catalogue does not show; `counts`: the rows that it does show."""
        scopes = self._scopes()
        for scope in scopes:
            if scope in self.shared or not self.is_own(scope):
                yield from self._unshown_dids(scope)
        yield from self._public(set(scopes))
        for source in self._sources(scopes):
            if self._count(source) != counts.get(source.place, 0):
                yield from self._facts(source)
        if self.scope is None:
            yield {rse.fact for rse in self.rows.rses().values() if ORIGIN in rse.attributes and not rse.deleted}

    def _scopes(self) -> Sequence[str]:
        """Those that the catalogue shows, or of which it shows a DID, and those that are shared; by a look into the index for each."""
        if self.scope is not None:
            return [self.scope]
        found, columns = set(self.shared), schema.entry.c
        for kind in (fields.SCOPE, fields.DID):
            query, after = select(columns.scope).where(columns.kind == kind).order_by(columns.scope).limit(1), ""
            while (scope := self.session.execute(query.where(columns.scope > after)).scalar()) is not None:
                found.add(scope)
                after = scope
        return sorted(found)

    # ---- DIDs

    def _unshown_dids(self, scope: str) -> Iterator[Collection[Fact]]:
        query = text(
            f"SELECT c.name FROM {DIDS.fullname} c WHERE c.scope = :scope AND c.name > :after AND {_SHOWN} IS NULL "
            "ORDER BY c.name LIMIT :size"
        )
        values = {"scope": internal(scope), "shown": scope, "size": ROWS_MAX}
        names: Sequence[str] = [""]
        while names:
            names = self.session.execute(query, {**values, "after": names[-1]}).scalars().all()
            yield [Did(scope, name) for name in names]

    def _public(self, seen: Collection[str]) -> Iterator[Collection[Fact]]:
        """Open data of own scopes that is not shown yet."""
        query = text(
            f"SELECT c.scope, c.name FROM {OPEN.fullname} c WHERE c.state = 'P' AND (c.scope, c.name) > (:scope, :name) "
            f"AND {_shown_anywhere()} IS NULL ORDER BY c.scope, c.name LIMIT :size"
        )
        last: Union[Row[Any], tuple[str, str]] = ("", "")
        while page := self.session.execute(query, {"scope": last[0], "name": last[1], "size": ROWS_MAX}).all():
            last = page[-1]
            dids = [Did(external(scope), name) for scope, name in page]
            yield [did for did in dids if self.is_own(did.scope) and did.scope not in self.shared and self.scope in (None, did.scope)]

    # ---- what hangs on them

    def _sources(self, scopes: Collection[str]) -> Iterator[_Source]:
        for scope in scopes:
            where = "c.scope = :scope" + ("" if scope in self.shared else f" AND {_SHOWN} IS NOT NULL")
            values = {"scope": internal(scope), **({} if scope in self.shared else {"shown": scope})}
            for kind, table in ((fields.ATTACHMENT, CONTENTS), (fields.CONSTITUENT, ARCHIVES)):
                yield _Source((kind, scope), table, _EDGE, where, values)
        for rse in self.rows.rses().values():
            is_mine = rse.fact.instance == self.rows.instance
            if rse.deleted or (is_mine and rse.id not in self.rows.lent()):
                continue
            where = f"c.rse_id = :rse AND c.state IN ({_TOLD}) AND {_shown_anywhere()} IS NOT NULL" if is_mine else "c.rse_id = :rse"
            within = "" if self.scope is None else " AND c.scope = :scope"
            values = {"rse": rse.id, **({} if self.scope is None else {"scope": internal(self.scope)})}
            yield _Source((fields.REPLICA, rse.id), REPLICAS, ("scope", "name"), where + within, values)

    def _count(self, source: _Source) -> int:
        query = text(f"SELECT count(*) FROM {source.table.fullname} c WHERE {source.where}")
        return int(self.session.execute(query, source.values).scalar_one())

    def _facts(self, source: _Source) -> Iterator[Collection[Fact]]:
        columns = ", ".join(f"c.{name}" for name in source.columns)
        after = ", ".join(f":after{i}" for i in range(len(source.columns)))
        query = text(
            f"SELECT {columns} FROM {source.table.fullname} c WHERE {source.where} AND ({columns}) > ({after}) "
            f"ORDER BY {columns} LIMIT :size"
        )
        last: Sequence[str] = [""] * len(source.columns)
        while page := self.session.execute(
            query, {**source.values, **{f"after{i}": name for i, name in enumerate(last)}, "size": ROWS_MAX}
        ).all():
            last = page[-1]
            yield [self._fact(source, row) for row in page]

    def _fact(self, source: _Source, row: Sequence[str]) -> Fact:
        kind, where = source.place
        if kind == fields.REPLICA:
            return Replica(Did(external(row[0]), row[1]), self.rows.rses()[where].fact)
        make = Attachment if kind == fields.ATTACHMENT else Constituent
        return make(Did(where, row[0]), Did(external(row[1]), row[2]))
