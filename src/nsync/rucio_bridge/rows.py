"""Rucio's rows, read as catalogue entries: one language for both sides.

So capture is "rows that differ from the catalogue" and materialise "catalogue entries that differ from the rows", by the same comparison.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Optional, TypeVar

from rucio.common.exception import InvalidRSEExpression
from rucio.core.rse_expression_parser import parse_expression
from rucio.db.sqla import models
from rucio.db.sqla.constants import ReplicaState
from rucio.rse.translation import RSEDeterministicTranslation
from sqlalchemy import Row, Table, select
from sqlalchemy.orm import Session

from nsync.catalogue.entries import AttachmentEntry, ConstituentEntry, DidEntry, Entry, ReplicaEntry, RseEntry, ScopeEntry
from nsync.namespace import fields, keys
from nsync.namespace.keys import Attachment, Constituent, Did, Fact, Identity, Protocol, Replica, Rse, Scope
from nsync.rucio_bridge import metadata
from nsync.rucio_bridge.constituents import ARCHIVES
from nsync.rucio_bridge.lookup import Names, external, internal, look_up, names_of
from nsync.rucio_bridge.metadata import CONTENTS as CONTENTS
from nsync.rucio_bridge.metadata import DID_META, NoJsonEntry, holds_json
from nsync.rucio_bridge.metadata import DIDS as DIDS
from nsync.rucio_bridge.opendata import DOCUMENTS, DOIS, RECORDS, STATES
from nsync.rucio_bridge.opendata import OPEN as OPEN
from nsync.rucio_bridge.scopes import swapped

LOG = logging.getLogger(__name__)

ORIGIN = "nsync_origin"
"""The attribute of a foreign RSE that names its instance."""
SHARED_ATTRIBUTES = ("OpenData",)
"""RSE attributes that travel. The others steer the local Rucio: they are neither said to a peer nor taken from one."""

REPLICAS = models.RSEFileAssociation.__table__
RSES = models.RSE.__table__
SCOPES = models.Scope.__table__

Edge = TypeVar("Edge", Attachment, Constituent)


def _hangs_on(table: Table, alias: str, on: str) -> str:
    return f" LEFT JOIN {table.fullname} {alias} ON {alias}.scope = {on}.scope AND {alias}.name = {on}.name"


_AT_DID = ("d.scope", "d.name")
_STATE = "d.scope, d.name, d.did_type, d.is_open, d.bytes, d.adler32, d.md5, o.state, n.doi, r.record_id"
_PLAIN = 13
"""Columns before those of the metadata."""
_DID_COLUMNS = ", ".join((_STATE, *(f"d.{name}" for name in (*metadata.FLAGS, *metadata.COLUMNS))))
_JSON_COLUMNS = ", CAST(w.meta AS text), CAST(m.meta AS text)"
_DID = f"{DIDS.fullname} d" + _hangs_on(OPEN, "o", "d") + _hangs_on(DOIS, "n", "o") + _hangs_on(RECORDS, "r", "o")
_JSON = _hangs_on(DOCUMENTS, "w", "o") + _hangs_on(DID_META, "m", "d")

_PARENT, _CHILD = ("c.scope", "c.name"), ("c.child_scope", "c.child_name")
_EDGE = ", ".join((*_PARENT, *_CHILD))

RSE_ID = "replace(CAST(c.rse_id AS VARCHAR(36)), '-', '')"
_REPLICA_COLUMNS = "c.scope, c.name, c.path, c.state"
_REPLICA = (  # Rucio's core takes a replica of another size: other bytes, which are nobody's to share
    f"{REPLICAS.fullname} c JOIN {DIDS.fullname} d ON d.scope = c.scope AND d.name = c.name AND d.bytes = c.bytes AND {RSE_ID} = :rse"
)


class LocalRse(NamedTuple):
    """An RSE of the Rucio database: its id there, and the fact that it is in the catalogue."""

    id: str
    name: str
    fact: Rse
    deterministic: bool
    deleted: bool
    """Its name still tells what its replicas were."""
    attributes: Mapping[str, Any]


class Rows:
    """The rows of one Rucio database as one session sees them. Make one per transaction."""

    def __init__(self, session: Session, instance: str, rse_expression: str) -> None:
        self.session = session
        self.instance = instance
        self._expression = rse_expression
        self._rses: Optional[dict[str, LocalRse]] = None
        self._by_fact: Optional[dict[Rse, LocalRse]] = None
        self._lent: Optional[set[str]] = None

    # ---- RSEs

    def rses(self) -> dict[str, LocalRse]:
        """All RSEs by id."""
        if self._rses is None:
            attributes: dict[str, dict[str, Any]] = {}
            table = models.RSEAttrAssociation.__table__
            for rse_id, key, value in self.session.execute(select(table.c.rse_id, table.c.key, table.c.value)):
                attributes.setdefault(rse_id, {})[key] = value
            rows = self.session.execute(select(RSES.c.id, RSES.c.rse, RSES.c.deterministic, RSES.c.deleted))
            self._rses = {row.id: self._local_rse(row, attributes.get(row.id, {})) for row in rows}
        return self._rses

    def _local_rse(self, row: Any, attributes: Mapping[str, Any]) -> LocalRse:
        name = row.rse
        origin = attributes.get(ORIGIN)
        fact = Rse(self.instance, name) if origin is None else Rse(str(origin), name[len(str(origin)) + 1 :])
        return LocalRse(row.id, name, fact, row.deterministic, row.deleted, attributes)

    def rse_of(self, fact: Rse) -> Optional[LocalRse]:
        """The local RSE that stands for `fact`."""
        if self._by_fact is None:
            self._by_fact = {rse.fact: rse for rse in self.rses().values() if not rse.deleted}
        return self._by_fact.get(fact)

    def forget_rses(self) -> None:
        """RSEs were added: read them again."""
        self._rses = self._by_fact = None

    def lent(self) -> set[str]:
        """The ids of the local RSEs whose replicas are shared: the operator's expression (R7.2)."""
        if self._lent is None:
            try:
                chosen = {rse["id"] for rse in parse_expression(self._expression, session=self.session)}
            except InvalidRSEExpression as error:
                LOG.warning("[nsync] rse_expression %r selects no RSE, so no replica is shared: %s", self._expression, error)
                chosen = set()
            self._lent = {rse_id for rse_id in chosen if rse_id in self.rses() and self.rses()[rse_id].fact.instance == self.instance}
        return self._lent

    # ---- reading

    def read(self, facts: Collection[Fact]) -> dict[Fact, Entry]:
        """The entries of those of `facts` that have rows."""
        found: dict[Fact, Entry] = {}
        found.update(self._scopes([fact for fact in facts if isinstance(fact, Scope)]))
        found.update(self._dids([fact for fact in facts if isinstance(fact, Did)]))
        found.update(self._edges(CONTENTS, Attachment, AttachmentEntry(), [fact for fact in facts if isinstance(fact, Attachment)]))
        found.update(self._edges(ARCHIVES, Constituent, ConstituentEntry(), [fact for fact in facts if isinstance(fact, Constituent)]))
        found.update(self._rse_entries([fact for fact in facts if isinstance(fact, Rse)]))
        found.update(self._replicas([fact for fact in facts if isinstance(fact, Replica)]))
        return found

    def _scopes(self, facts: Collection[Scope]) -> Iterable[tuple[Fact, Entry]]:
        for (scope,) in self._look_up("s.scope", f"{SCOPES.fullname} s", ("s.scope",), [(internal(fact.scope),) for fact in facts]):
            yield Scope(external(scope)), ScopeEntry("")

    def read_dids(self, facts: Collection[Did]) -> dict[Did, DidEntry]:
        """The entries of those of `facts` that have rows."""
        return dict(self._dids(facts))

    def _dids(self, facts: Collection[Did]) -> Iterable[tuple[Did, DidEntry]]:
        has_json = holds_json(self.session)
        columns, source = (_DID_COLUMNS + _JSON_COLUMNS, _DID + _JSON) if has_json else (_DID_COLUMNS, _DID)
        make = DidEntry if has_json else NoJsonEntry
        for row in self._look_up(columns, source, _AT_DID, list(map(names_of, facts))):
            scope, name, did_type, is_open, size, adler32, md5, state, doi, record, monotonic, hidden, obsolete = row[:_PLAIN]
            is_file = did_type == keys.FILE
            identity = Identity(keys.FILE, size, _checksum(adler32, 4), _checksum(md5, 16)) if is_file else Identity(did_type)
            meta = metadata.of_columns(row[_PLAIN : _PLAIN + len(metadata.COLUMNS)], is_file)
            document = None
            if has_json and (row[-1] or row[-2]):
                meta, document = tuple(sorted((*meta, *metadata.of_json(row[-1])))), metadata.json_object(row[-2])
            closed = None if is_file else not is_open
            flags = bool(monotonic), bool(hidden), bool(obsolete)
            yield Did(external(scope), name), make(identity, "", closed, STATES.get(state), doi, record, document, *flags, meta)

    def _edges(self, table: Table, kind: type[Edge], entry: Entry, facts: Collection[Edge]) -> Iterable[tuple[Fact, Entry]]:
        wanted = [(internal(fact[1]), fact[2], internal(fact[3]), fact[4]) for fact in facts]
        for row in self._look_up(_EDGE, f"{table.fullname} c", _EDGE.split(", "), wanted):
            yield _edge(kind, row), entry

    def _rse_entries(self, facts: Collection[Rse]) -> Iterable[tuple[Fact, Entry]]:
        for fact in facts:
            local = self.rse_of(fact)
            if local is not None:
                yield fact, RseEntry(self.protocols(local.id), shared_attributes(local.attributes))

    def protocols(self, rse_id: str) -> tuple[Protocol, ...]:
        """The doors of an RSE that are open for reading."""
        c = models.RSEProtocol.__table__.c
        columns = (c.scheme, c.hostname, c.port, c.prefix, c.impl, c.read_lan, c.read_wan, c.third_party_copy_read)
        rows = self.session.execute(select(*columns).where(c.rse_id == rse_id).order_by(c.scheme, c.hostname, c.port))
        protocols = (Protocol(r[0], r[1], r[2], r[3] or "", r[4], r[5] or None, r[6] or None, r[7] or None) for r in rows)
        return tuple(p for p in protocols if p.lan or p.wan)

    def _replicas(self, facts: Collection[Replica]) -> Iterable[tuple[Fact, Entry]]:
        by_place: dict[Rse, list[Replica]] = {}
        for fact in facts:
            by_place.setdefault(fact.rse, []).append(fact)
        for place, wanted in by_place.items():
            local = self.rse_of(place)
            mine = place.instance == self.instance
            if local is None or (mine and local.id not in self.lent()):
                continue
            for row in self._look_up(_REPLICA_COLUMNS, _REPLICA, _PARENT, [names_of(fact.did) for fact in wanted], rse=local.id):
                state = ReplicaState(row.state).name
                if mine and state not in fields.STATES:
                    continue  # of a foreign one the row counts, whatever local users declared it to be
                did = Did(external(row.scope), row.name)
                yield Replica(did, place), ReplicaEntry(_path(local, did, row.path), state)

    def _look_up(self, columns: str, source: str, on: Sequence[str], wanted: Collection[Names], **values: Any) -> Iterator[Row[Any]]:
        return look_up(self.session, columns, source, on, wanted, **values)

    # ---- finding

    def below(self, dids: Collection[Did], through: Callable[[set[Did]], set[Did]]) -> set[Did]:
        """Everything in one of `dids`, at any depth; what is in archives too. Only what is in those that `through` lets pass."""
        found: set[Did] = set()
        frontier = set(dids)
        while frontier := through(frontier):
            wanted = list(map(names_of, frontier))
            level: set[Did] = set()
            for table in (CONTENTS, ARCHIVES):
                rows = self._look_up(", ".join(_CHILD), f"{table.fullname} c", _PARENT, wanted)
                level.update(Did(external(scope), name) for scope, name in rows)
            frontier = level - found
            found |= level
        return found

    def held_by(self, dids: Collection[Did]) -> dict[Did, set[Did]]:
        """The collections and archives that hold one of `dids`, at any depth, each with what of that it holds itself."""
        held: dict[Did, set[Did]] = {}
        frontier = set(dids)
        while frontier:
            wanted, level = list(map(names_of, frontier)), set()
            for table in (CONTENTS, ARCHIVES):
                for row in self._look_up(_EDGE, f"{table.fullname} c", _CHILD, wanted):
                    parent = Did(external(row[0]), row[1])
                    if parent not in held:
                        level.add(parent)
                    held.setdefault(parent, set()).add(Did(external(row[2]), row[3]))
            frontier = level
        return held

    def hanging_on(self, dids: Collection[Did]) -> set[Fact]:
        """The attachments and constituents that have one of `dids` at either end, and their replicas at RSEs that are lent."""
        found: set[Fact] = set()
        wanted = list(map(names_of, dids))
        for ends in (_PARENT, _CHILD):
            found.update(_edge(Attachment, row) for row in self._look_up(_EDGE, f"{CONTENTS.fullname} c", ends, wanted))
            found.update(_edge(Constituent, row) for row in self._look_up(_EDGE, f"{ARCHIVES.fullname} c", ends, wanted))
        rses = self.rses()
        for scope, name, rse_id in self._look_up(f"c.scope, c.name, {RSE_ID}", f"{REPLICAS.fullname} c", _PARENT, wanted):
            if rse_id in self.lent():
                found.add(Replica(Did(external(scope), name), rses[rse_id].fact))
        return found


def matches(entry: Optional[Entry], row: Optional[Entry]) -> bool:
    """Whether a row says what the catalogue says. Rows know no home and no origin, and may know a checksum more or less."""
    if entry is None or row is None:
        return entry is row
    if isinstance(entry, DidEntry) and isinstance(row, DidEntry):
        return row.identity.agrees(entry.identity) and row[2:6] == entry[2:6] and not metadata.differences(entry, row)
    if isinstance(entry, RseEntry) and isinstance(row, RseEntry):
        return entry.protocols == row.protocols and shared_attributes(dict(entry.attributes)) == row.attributes
    return isinstance(entry, ScopeEntry) or entry == row


def shared_attributes(attributes: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Those of an RSE's attributes that travel."""
    return tuple(sorted((key, str(attributes[key])) for key in SHARED_ATTRIBUTES if key in attributes))


def _checksum(text: Optional[str], length: int) -> Optional[bytes]:
    """Raw bytes of a checksum, zero-padded; None where there is none, or none that is one."""
    try:
        raw = bytes.fromhex((text or "").strip().zfill(2 * length))
    except ValueError:
        return None
    return raw if text and len(raw) == length else None


def _edge(kind: type[Edge], row: Sequence[str]) -> Edge:
    return kind(Did(external(row[0]), row[1]), Did(external(row[2]), row[3]))


def _path(rse: LocalRse, did: Did, path: Optional[str]) -> str:
    """The path below the prefix: what the RSE's algorithm makes of the name, or what the row says."""
    if not rse.deterministic:
        return (path or "").lstrip("/")
    return str(_translation(rse.name, tuple(sorted(rse.attributes.items()))).path(swapped(did.scope), did.name)).lstrip("/")


@lru_cache(maxsize=1000)
def _translation(rse: str, attributes: tuple[tuple[str, Any], ...]) -> RSEDeterministicTranslation:
    """Kept, since making one reads Rucio's configuration through database sessions of its own."""
    return RSEDeterministicTranslation(rse, dict(attributes))
