"""Rucio's rows, read as catalogue entries: one language for both sides.

So capture is "rows that differ from the catalogue" and materialise "catalogue entries that differ from the rows", by the same comparison.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any, NamedTuple, Optional

from rucio.common.exception import InvalidRSEExpression
from rucio.common.types import InternalScope
from rucio.core.rse_expression_parser import parse_expression
from rucio.db.sqla import models
from rucio.db.sqla.constants import DIDType, OpenDataDIDState, ReplicaState
from rucio.rse.translation import RSEDeterministicTranslation
from sqlalchemy import Column, ColumnElement, Table, and_, select, tuple_
from sqlalchemy.orm import Session

from nsync.catalogue.entries import AttachmentEntry, DidEntry, Entry, ReplicaEntry, RseEntry, ScopeEntry
from nsync.namespace import keys
from nsync.namespace.keys import Attachment, Did, Fact, Identity, Protocol, Replica, Rse, Scope
from nsync.store.database import chunks

LOG = logging.getLogger(__name__)

ORIGIN = "nsync_origin"
"""The attribute of a foreign RSE that names its instance."""
SHARED_ATTRIBUTES = ("OpenData",)
"""RSE attributes that travel. The others steer the local Rucio: they are neither said to a peer nor taken from one."""

DIDS = models.DataIdentifier.__table__
CONTENTS = models.DataIdentifierAssociation.__table__
REPLICAS = models.RSEFileAssociation.__table__
RSES = models.RSE.__table__
OPEN = models.OpenDataDid.__table__
DOIS = models.OpenDataDOI.__table__
SCOPES = models.Scope.__table__

Ends = tuple[Column[Any], Column[Any]]
"""The two columns that name a DID."""

_STATES = {OpenDataDIDState.PUBLIC: keys.PUBLIC, OpenDataDIDState.SUSPENDED: keys.SUSPENDED}


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
        return next((rse for rse in self.rses().values() if rse.fact == fact and not rse.deleted), None)

    def forget_rses(self) -> None:
        """RSEs were added: read them again."""
        self._rses = None

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
        found.update(self._attachments([fact for fact in facts if isinstance(fact, Attachment)]))
        found.update(self._rse_entries([fact for fact in facts if isinstance(fact, Rse)]))
        found.update(self._replicas([fact for fact in facts if isinstance(fact, Replica)]))
        return found

    def _scopes(self, facts: Collection[Scope]) -> Iterable[tuple[Fact, Entry]]:
        for chunk in chunks([InternalScope(fact.scope) for fact in facts]):
            for scope in self.session.execute(select(SCOPES.c.scope).where(SCOPES.c.scope.in_(chunk))).scalars():
                yield Scope(scope.external), ScopeEntry("")

    def read_dids(self, facts: Collection[Did]) -> dict[Did, DidEntry]:
        """The entries of those of `facts` that have rows."""
        return dict(self._dids(facts))

    def _dids(self, facts: Collection[Did]) -> Iterable[tuple[Did, DidEntry]]:
        columns = (
            DIDS.c.scope,
            DIDS.c.name,
            DIDS.c.did_type,
            DIDS.c.is_open,
            DIDS.c.bytes,
            DIDS.c.adler32,
            DIDS.c.md5,
            OPEN.c.state,
            DOIS.c.doi,
        )
        joined = DIDS.outerjoin(OPEN, (OPEN.c.scope == DIDS.c.scope) & (OPEN.c.name == DIDS.c.name)).outerjoin(
            DOIS, (DOIS.c.scope == DIDS.c.scope) & (DOIS.c.name == DIDS.c.name)
        )
        for chunk in chunks([did_key(fact) for fact in facts]):
            for row in self.session.execute(select(*columns).select_from(joined).where(tuple_(DIDS.c.scope, DIDS.c.name).in_(chunk))):
                is_file = row.did_type == DIDType.FILE
                closed = None if is_file else not row.is_open
                yield Did(row.scope.external, row.name), DidEntry(_identity(row), "", closed, _STATES.get(row.state), row.doi)

    def _attachments(self, facts: Collection[Attachment]) -> Iterable[tuple[Fact, Entry]]:
        c = CONTENTS.c
        for chunk in chunks([(*did_key(fact.parent), *did_key(fact.child)) for fact in facts]):
            columns = (c.scope, c.name, c.child_scope, c.child_name)
            for row in self.session.execute(select(*columns).where(tuple_(*columns).in_(chunk))):
                yield _attachment(row), AttachmentEntry()

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
        c = REPLICAS.c
        for place, wanted in by_place.items():
            local = self.rse_of(place)
            mine = place.instance == self.instance
            if local is None or (mine and local.id not in self.lent()):
                continue
            for chunk in chunks([did_key(fact.did) for fact in wanted]):
                its_file = (DIDS.c.scope == c.scope) & (DIDS.c.name == c.name) & (DIDS.c.bytes == c.bytes)
                query = (
                    select(c.scope, c.name, c.path)
                    .join(DIDS, its_file)  # Rucio's core takes a replica of another size: other bytes, which are nobody's to share
                    .where(c.rse_id == local.id, tuple_(c.scope, c.name).in_(chunk))
                )
                if mine:  # of a foreign one the row counts, whatever local users declared it to be
                    query = query.where(c.state == ReplicaState.AVAILABLE)
                for row in self.session.execute(query):
                    did = Did(row.scope.external, row.name)
                    yield Replica(did, place), ReplicaEntry(_path(local, did, row.path))

    # ---- finding

    def below(self, dids: Collection[Did]) -> set[Did]:
        """Everything in one of `dids`, at any depth."""
        return self._reached(dids, (CONTENTS.c.scope, CONTENTS.c.name), (CONTENTS.c.child_scope, CONTENTS.c.child_name))

    def above(self, dids: Collection[Did]) -> set[Did]:
        """Every collection that holds one of `dids`, at any depth."""
        return self._reached(dids, (CONTENTS.c.child_scope, CONTENTS.c.child_name), (CONTENTS.c.scope, CONTENTS.c.name))

    def _reached(self, dids: Collection[Did], near: Ends, far: Ends) -> set[Did]:
        """What is found from `dids` along attachments, level by level."""
        found: set[Did] = set()
        frontier = set(dids)
        while frontier:
            level: set[Did] = set()
            for chunk in chunks([did_key(did) for did in frontier]):
                rows = self.session.execute(select(*far).where(tuple_(*near).in_(chunk)).distinct())
                level |= {Did(scope.external, name) for scope, name in rows}
            frontier = level - found
            found |= level
        return found

    def hanging_on(self, dids: Collection[Did]) -> set[Fact]:
        """The attachments that have one of `dids` at either end, and their replicas at RSEs that are lent."""
        found: set[Fact] = set()
        c, r = CONTENTS.c, REPLICAS.c
        rses = self.rses()
        for chunk in chunks([did_key(did) for did in dids]):
            for ends in ((c.scope, c.name), (c.child_scope, c.child_name)):
                rows = self.session.execute(select(c.scope, c.name, c.child_scope, c.child_name).where(tuple_(*ends).in_(chunk)))
                found |= {_attachment(row) for row in rows}
            for row in self.session.execute(select(r.scope, r.name, r.rse_id).where(tuple_(r.scope, r.name).in_(chunk))):
                if row.rse_id in self.lent():
                    found.add(Replica(Did(row.scope.external, row.name), rses[row.rse_id].fact))
        return found


def matches(entry: Optional[Entry], row: Optional[Entry]) -> bool:
    """Whether a row says what the catalogue says. Rows know no home and no origin, and may know a checksum more or less."""
    if entry is None or row is None:
        return entry is row
    if isinstance(entry, DidEntry) and isinstance(row, DidEntry):
        return row.identity.agrees(entry.identity) and row[2:5] == entry[2:5]
    if isinstance(entry, RseEntry) and isinstance(row, RseEntry):
        return entry.protocols == row.protocols and shared_attributes(dict(entry.attributes)) == row.attributes
    return isinstance(entry, ScopeEntry) or entry == row


def did_key(did: Did) -> tuple[InternalScope, str]:
    """A DID as Rucio's columns hold it."""
    return InternalScope(did.scope), did.name


def of_did(table: Table, did: Did) -> ColumnElement[bool]:
    """The condition that a row of `table` is about `did`."""
    scope, name = did_key(did)
    return and_(table.c.scope == scope, table.c.name == name)


def utc_now() -> datetime:
    """The time as Rucio's columns hold it: naive UTC."""
    return datetime.now(timezone.utc).replace(tzinfo=None)


def shared_attributes(attributes: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Those of an RSE's attributes that travel."""
    return tuple(sorted((key, str(attributes[key])) for key in SHARED_ATTRIBUTES if key in attributes))


def _identity(row: Any) -> Identity:
    if row.did_type != DIDType.FILE:
        return Identity(row.did_type.value)
    return Identity(keys.FILE, row.bytes, _checksum(row.adler32, keys.ADLER32_BYTES), _checksum(row.md5, keys.MD5_BYTES))


def _checksum(text: Optional[str], length: int) -> Optional[bytes]:
    """Raw bytes of a checksum, zero-padded; None where there is none, or none that is one."""
    try:
        raw = bytes.fromhex((text or "").strip().zfill(2 * length))
    except ValueError:
        return None
    return raw if text and len(raw) == length else None


def _attachment(row: Any) -> Attachment:
    return Attachment(Did(row.scope.external, row.name), Did(row.child_scope.external, row.child_name))


def _path(rse: LocalRse, did: Did, path: Optional[str]) -> str:
    """The path below the prefix: what the RSE's algorithm makes of the name, or what the row says."""
    if not rse.deterministic:
        return (path or "").lstrip("/")
    return str(_translation(rse.name, tuple(sorted(rse.attributes.items()))).path(did.scope, did.name)).lstrip("/")


@lru_cache(maxsize=1000)
def _translation(rse: str, attributes: tuple[tuple[str, Any], ...]) -> RSEDeterministicTranslation:
    """Kept, since making one reads Rucio's configuration through database sessions of its own."""
    return RSEDeterministicTranslation(rse, dict(attributes))
