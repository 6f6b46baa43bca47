"""Metadata of DIDs: Rucio's columns, the flags, and the JSON of `did_meta`, as the catalogue has them.

A column that is NULL, an empty text and a flag that is false say nothing. JSON is shared key by key, where Rucio's back-end can
hold it: a row of another one is a `NoJsonEntry`, which agrees with whatever the catalogue has of JSON.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Callable, Optional
from uuid import UUID

from rucio.db.sqla import models
from sqlalchemy import DateTime, Integer, String, bindparam, text
from sqlalchemy.orm import Session

from nsync.catalogue.entries import DidEntry, Entry
from nsync.catalogue.state import About
from nsync.namespace import fields, keys
from nsync.namespace.jsontext import canonical_json
from nsync.namespace.keys import Attribute, Did, Fact
from nsync.rucio_bridge.lookup import external, internal, look_up, names_of, utc_now

DIDS = models.DataIdentifier.__table__
CONTENTS = models.DataIdentifierAssociation.__table__
DID_META = models.DidMeta.__table__

COLUMNS = tuple(sorted(fields.METADATA))
"""In the order of an entry's metadata."""
_TRANSIENT = COLUMNS.index("transient")
FLAGS = (fields.MONOTONIC, fields.HIDDEN, fields.OBSOLETE)
_OF_FILES = ("events", "guid")
"""Columns that an attachment has from its file. A collection's events follow from its content."""

_INTEGER_MAX = (1 << 31) - 1

Meta = tuple[tuple[str, Any], ...]
Part = Mapping[Fact, Optional[Entry]]


class NoJsonEntry(DidEntry):
    """The row of a DID where Rucio has no JSON: it tells nothing of it."""

    __slots__ = ()


def holds_json(session: Session) -> bool:
    """Whether Rucio has JSON on this back-end (its `json_implemented`)."""
    return session.connection().dialect.name == "postgresql"


# ---- reading


def of_columns(values: Sequence[Any], is_file: bool) -> Meta:
    """What columns say, whose values come in the order of COLUMNS."""
    if values.count(None) == len(COLUMNS) - 1 and not values[_TRANSIENT]:
        return ()
    return tuple(
        (name, _shared(name, value))
        for name, value in zip(COLUMNS, values)
        if value is not None and value != "" and (name != "transient" or value) and (is_file or name != "events")
    )


def _shared(name: str, value: Any) -> Any:
    if name == "guid":
        return (value if isinstance(value, UUID) else UUID(value)).bytes
    return bool(value) if name == "transient" else value


def of_json(document: Optional[str]) -> Iterator[tuple[str, Any]]:
    """What the JSON of `did_meta` says: those of its values that a peer would accept."""
    found = json.loads(document, parse_int=_number) if document else None
    for key, value in found.items() if isinstance(found, dict) else ():
        said = json_text(value)
        if said is not None:
            yield f"{fields.JSON_PREFIX}{key}", said


def json_text(value: Any) -> Optional[str]:
    """The canonical JSON of `value`; None for what no peer would accept."""
    try:
        return canonical_json(value)
    except (ValueError, TypeError):
        return None


def json_object(document: Optional[str]) -> Optional[str]:
    """The canonical form of a JSON document that is an object."""
    found = json.loads(document, parse_int=_number) if document else None
    return json_text(found) if isinstance(found, dict) else None


def _number(digits: str) -> Any:
    """PostgreSQL writes 1e+20 with all its digits."""
    number = int(digits) if len(digits) < 400 else float(digits)
    return number if abs(number) <= fields.NUMBER_MAX else float(digits)


# ---- comparing


def said(entry: DidEntry) -> dict[str, Any]:
    """What an entry says: its metadata, the flags that are up, and its open-data document."""
    found = {field: value for field, value in entry.meta if value is not False}
    found.update((flag, True) for flag in FLAGS if getattr(entry, flag))
    if entry.opendata_meta is not None:
        found[fields.OPENDATA_META] = entry.opendata_meta
    return found


def differences(one: DidEntry, other: DidEntry) -> dict[str, Any]:
    """The fields of `said` in which `one` says something else than `other`, with what it says: None for nothing."""
    if one[6:11] == other[6:11]:
        return {}
    ours, theirs = said(one), said(other)
    skips_json = isinstance(one, NoJsonEntry) or isinstance(other, NoJsonEntry)
    return {
        field: ours.get(field)
        for field in sorted(ours.keys() | theirs.keys())
        if not (is_json(field) and skips_json) and not _agree(field, ours.get(field), theirs.get(field))
    }


def is_json(field: str) -> bool:
    """Whether the values of `field` are JSON texts."""
    return field == fields.OPENDATA_META or field.startswith(fields.JSON_PREFIX)


def _agree(field: str, one: Any, other: Any) -> bool:
    return bool(one == other or (is_json(field) and one is not None and other is not None and _plain(one) == _plain(other)))


def _plain(document: str) -> str:
    """JSON with its whole numbers written as such: PostgreSQL gives 1e+16 back with all its digits."""
    return json.dumps(json.loads(document, parse_float=_whole), sort_keys=True)


def _whole(digits: str) -> Any:
    number = float(digits)
    return int(number) if number.is_integer() else number


def unfit(entry: DidEntry) -> Optional[str]:
    """Why Rucio's columns cannot hold the metadata of an entry."""
    for field, value in entry.meta:
        kind = DIDS.c[field].type if field in fields.METADATA else None
        if isinstance(kind, String) and isinstance(value, str) and len(value) > (kind.length or len(value)):
            return f"{field} {value[:60]!r} has {len(value)} characters; this Rucio's column holds {kind.length}"
        if type(kind) is Integer and abs(value) > _INTEGER_MAX:
            return f"{field} {value} is beyond this Rucio's column, which holds {_INTEGER_MAX}"
    return None


# ---- writing


def columns_of(entry: DidEntry) -> dict[str, Any]:
    """The columns of `dids` that hold the metadata of `entry`: all of them, so that a row can be made or changed by them."""
    values: dict[str, Any] = {**dict.fromkeys(COLUMNS), "transient": False, **{flag: getattr(entry, flag) for flag in FLAGS}}
    for field, value in entry.meta:
        if field in values:
            values[field] = value.hex() if field == "guid" else value
    return values


def write(session: Session, desired: Part, actual: Mapping[Fact, Entry]) -> None:
    """Write the metadata of DIDs: of new ones only the JSON, since their rows were made by `columns_of`.

    As Rucio's `set_metadata` does, a file's events and GUID go on to its attachments, and its events to the collections that hold it.
    """
    changed: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    documents, files, eventful = [], [], []
    for did, entry in desired.items():
        if not isinstance(did, Did) or not isinstance(entry, DidEntry):
            continue
        row = actual.get(did)
        was = row if isinstance(row, DidEntry) else None
        if was is None and not entry.meta:
            continue
        moved = differences(entry, was if was is not None else DidEntry(entry.identity, "", None, None, None))
        if was is not None and any(not is_json(field) for field in moved):
            is_file = entry.identity.type == keys.FILE
            changed[is_file].append({"at_scope": internal(did.scope), "at_name": did.name, **columns_of(entry), "now": utc_now()})
            if is_file and not moved.keys().isdisjoint(_OF_FILES):
                files.append(changed[is_file][-1])
            if is_file and "events" in moved:
                eventful.append(did)
        if any(field.startswith(fields.JSON_PREFIX) for field in moved):
            documents.append(_document(did, moved))
    for is_file, statement in ((True, _CHANGE_FILES), (False, _CHANGE_COLLECTIONS)):
        if changed[is_file]:
            session.execute(statement, changed[is_file])
    if files:
        session.execute(_CHANGE_ATTACHMENTS, files)
    _add_up_events(session, eventful)
    if documents and holds_json(session):
        session.execute(_PUT_JSON, documents)


def _add_up_events(session: Session, files: Collection[Did]) -> None:
    held = f"{CONTENTS.fullname} c"
    rows = look_up(session, "c.scope, c.name", held, ("c.child_scope", "c.child_name"), list(map(names_of, files)))
    parents = [{"at_scope": scope, "at_name": name, "now": utc_now()} for scope, name in sorted(set(map(tuple, rows)))]
    if parents:
        session.execute(_ADD_UP_EVENTS, parents)


def _document(did: Did, moved: Mapping[str, Any]) -> dict[str, Any]:
    its = {field[len(fields.JSON_PREFIX) :]: value for field, value in moved.items() if field.startswith(fields.JSON_PREFIX)}
    kept = ",".join(f"{json.dumps(key)}:{value}" for key, value in its.items() if value is not None)
    gone = [key for key, value in its.items() if value is None]
    return {"at_scope": internal(did.scope), "at_name": did.name, "kept": f"{{{kept}}}", "gone": gone, "now": utc_now()}


def let_go(session: Session, about: Callable[[Collection[Did]], Mapping[Did, About]], dids: Collection[Did]) -> None:
    """Delete the JSON of DIDs that left the namespace, unless it has a key of which nobody there ever spoke: local users' (R5.7)."""
    if not holds_json(session):
        return
    columns, table = "m.scope, m.name, CAST(m.meta AS text)", f"{DID_META.fullname} m"
    rows = look_up(session, columns, table, ("m.scope", "m.name"), list(map(names_of, dids)))
    documents = {Did(external(scope), name): json.loads(document or "null") for scope, name, document in rows}
    said = about(documents)
    gone = [
        {"at_scope": internal(did.scope), "at_name": did.name}
        for did, document in documents.items()
        if all(Attribute(did, f"{fields.JSON_PREFIX}{key}") in said[did].slots for key in document or ())
    ]
    if gone:
        session.execute(text(f"DELETE FROM {DID_META.fullname}{_AT}"), gone)


_AT = " WHERE scope = :at_scope AND name = :at_name"
_NOW = bindparam("now", type_=DateTime)
_OF_COLLECTIONS = tuple(name for name in (*COLUMNS, *FLAGS) if name != "events")
_CHANGE_FILES = text(
    f"UPDATE {DIDS.fullname} SET {', '.join(f'{name} = :{name}' for name in (*COLUMNS, *FLAGS))}, updated_at = :now" + _AT
).bindparams(_NOW)
_CHANGE_COLLECTIONS = text(
    f"UPDATE {DIDS.fullname} SET {', '.join(f'{name} = :{name}' for name in _OF_COLLECTIONS)}, updated_at = :now" + _AT
).bindparams(_NOW)
_CHANGE_ATTACHMENTS = text(
    f"UPDATE {CONTENTS.fullname} SET events = :events, guid = :guid, updated_at = :now"
    " WHERE child_scope = :at_scope AND child_name = :at_name"
).bindparams(_NOW)
_ADD_UP_EVENTS = text(
    f"UPDATE {DIDS.fullname} SET updated_at = :now, events = "
    f"(SELECT sum(c.events) FROM {CONTENTS.fullname} c WHERE c.scope = :at_scope AND c.name = :at_name)" + _AT
).bindparams(_NOW)
_PUT_JSON = text(
    f"INSERT INTO {DID_META.fullname} AS m (scope, name, meta, created_at, updated_at) "
    "VALUES (:at_scope, :at_name, CAST(:kept AS jsonb), :now, :now) ON CONFLICT (scope, name) DO UPDATE SET updated_at = :now, "
    "meta = (CASE WHEN jsonb_typeof(m.meta) = 'object' THEN m.meta ELSE '{}' END - CAST(:gone AS text[])) || excluded.meta"
).bindparams(_NOW)
