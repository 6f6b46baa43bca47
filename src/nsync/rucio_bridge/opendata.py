"""Open data: the entry with its state, the names that one DID at most bears (DOI, record id), and the document.

Names are given up before any is taken, so that two DIDs can swap theirs within one transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Callable, NamedTuple, Optional

from rucio.db.sqla import models
from rucio.db.sqla.constants import OpenDataDIDState
from sqlalchemy import DateTime, Table, bindparam, text
from sqlalchemy.orm import Session

from nsync.catalogue.entries import DidEntry, Entry
from nsync.namespace import fields, keys
from nsync.namespace.keys import Did, Fact
from nsync.rucio_bridge.lookup import external, internal, utc_now
from nsync.rucio_bridge.metadata import differences, holds_json
from nsync.store.database import chunks

OPEN = models.OpenDataDid.__table__
DOIS = models.OpenDataDOI.__table__
RECORDS = models.OpenDataRecord.__table__
DOCUMENTS = models.OpenDataMeta.__table__

STATES = {OpenDataDIDState.PUBLIC.value: keys.PUBLIC, OpenDataDIDState.SUSPENDED.value: keys.SUSPENDED}
"""By what Rucio's column holds; a draft is an entry without a state."""
_LETTERS = {state: letter for letter, state in STATES.items()}

Part = Mapping[Fact, Optional[Entry]]


class Name(NamedTuple):
    """What one DID at most bears, and where Rucio keeps it."""

    field: str
    table: Table
    column: str


NAMES = (Name(fields.DOI, DOIS, "doi"), Name(fields.RECORD, RECORDS, "record_id"))


def changed(wanted: Part, gone: Collection[Fact], actual: Mapping[Fact, Entry]) -> list[Fact]:
    """Those whose open data have to be written, and those that give up a name when they go."""
    written = [
        fact
        for fact, entry in wanted.items()
        if isinstance(entry, DidEntry) and (_open(entry) != _NOTHING or fact in actual) and _differ(entry, _row_of(fact, actual))
    ]
    return written + [fact for fact in gone if any(getattr(actual[fact], name.field, None) is not None for name in NAMES)]


def release_names(session: Session, desired: Part, actual: Mapping[Fact, Entry], is_home: Callable[[Did], bool]) -> None:
    """Take names from the foreign DIDs that bear them no more, so that others can; what a local DID bears, local users gave it."""
    for name in NAMES:
        gone = [
            _at(did)
            for did, entry, row in _dids(desired, actual)
            if getattr(row, name.field, None) not in (None, getattr(entry, name.field, None)) and not is_home(did)
        ]
        if gone:
            session.execute(text(f"DELETE FROM {name.table.fullname} WHERE scope = :scope AND name = :name"), gone)


def write(session: Session, desired: Part, actual: Mapping[Fact, Entry]) -> None:
    """Write the open-data entries of DIDs whose rows are there: state, names, document."""
    moved = [
        (did, entry, row)
        for did, entry, row in _dids(desired, actual)
        if entry is not None and _open(entry) != _NOTHING and _differ(entry, row)
    ]
    stated = [{**_new(did), "value": _LETTERS[entry.opendata]} for did, entry, _ in moved if entry.opendata is not None]
    drafts = [{**_new(did), "value": OpenDataDIDState.DRAFT.value} for did, entry, _ in moved if entry.opendata is None]
    _put(session, OPEN, "state", stated)
    if drafts:  # there is no way back to a draft
        session.execute(_insert(OPEN, "state", "NOTHING"), drafts)
    for name in NAMES:
        said = [(did, getattr(entry, name.field), getattr(row, name.field, None)) for did, entry, row in moved]
        _put(session, name.table, name.column, [{**_new(did), "value": value} for did, value, was in said if value not in (None, was)])
    if holds_json(session):
        _put_documents(session, moved)


def _put_documents(session: Session, moved: Collection[tuple[Did, DidEntry, Optional[DidEntry]]]) -> None:
    changed = [(did, entry) for did, entry, row in moved if fields.OPENDATA_META in differences(entry, row or _BARE)]
    kept = [{**_new(did), "value": entry.opendata_meta} for did, entry in changed if entry.opendata_meta is not None]
    gone = [_at(did) for did, entry in changed if entry.opendata_meta is None]
    if kept:
        session.execute(_insert(DOCUMENTS, "meta", "UPDATE SET meta = excluded.meta, updated_at = :now", "CAST(:value AS jsonb)"), kept)
    if gone:
        session.execute(text(f"DELETE FROM {DOCUMENTS.fullname} WHERE scope = :scope AND name = :name"), gone)


def _put(session: Session, table: Table, column: str, rows: list[dict[str, Any]]) -> None:
    if rows:
        session.execute(_insert(table, column, f"UPDATE SET {column} = excluded.{column}, updated_at = :now"), rows)


def _insert(table: Table, column: str, otherwise: str, value: str = ":value") -> Any:
    into = f"INSERT INTO {table.fullname} (scope, name, {column}, created_at, updated_at) VALUES (:scope, :name, {value}, :now, :now)"
    return text(f"{into} ON CONFLICT (scope, name) DO {otherwise}").bindparams(bindparam("now", type_=DateTime))


def bearers(session: Session, name: Name, values: Collection[Any]) -> dict[Any, Did]:
    """Who bears each of `values` here."""
    found = {}
    for chunk in chunks(sorted(values)):
        query = text(f"SELECT {name.column}, scope, name FROM {name.table.fullname} WHERE {name.column} IN :chunk")
        for value, scope, of in session.execute(query.bindparams(bindparam("chunk", expanding=True)), {"chunk": chunk}):
            found[value] = Did(external(scope), of)
    return found


def _dids(desired: Part, actual: Mapping[Fact, Entry]) -> Iterator[tuple[Did, Optional[DidEntry], Optional[DidEntry]]]:
    for fact, entry in desired.items():
        if isinstance(fact, Did) and (entry is None or isinstance(entry, DidEntry)):
            yield fact, entry, _row_of(fact, actual)


def _row_of(fact: Fact, actual: Mapping[Fact, Entry]) -> Optional[DidEntry]:
    row = actual.get(fact)
    return row if isinstance(row, DidEntry) else None


def _open(entry: DidEntry) -> tuple[Any, ...]:
    return entry.opendata, entry.doi, entry.record, entry.opendata_meta


_NOTHING = (None, None, None, None)
_BARE = DidEntry(keys.Identity(keys.FILE), "", None, None, None)


def _differ(entry: DidEntry, row: Optional[DidEntry]) -> bool:
    return row is None or _open(entry)[:3] != _open(row)[:3] or fields.OPENDATA_META in differences(entry, row)


def _at(did: Did) -> dict[str, Any]:
    return {"scope": internal(did.scope), "name": did.name}


def _new(did: Did) -> dict[str, Any]:
    return {**_at(did), "now": utc_now()}
