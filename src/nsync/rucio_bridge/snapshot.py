"""The rows of the shared namespace, normalised so that two instances can be compared: equal sets, or here is what differs.

Plain SQL and nothing of Rucio's, so that one process can read the databases of several instances, and so that what is compared was
not read by what wrote it. JSON is there only where Rucio has any: on PostgreSQL. The paths of replicas are left out, since a
deterministic RSE has none; for the columns `is_archive` and `constituent` see `constituents`, which leaves them as Rucio does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, TextClause, text

from nsync.namespace import fields
from nsync.namespace.keys import Did, Replica, Rse
from nsync.rucio_bridge import scopes
from nsync.store.keyed import indexed

Rows = dict[str, frozenset[tuple[Any, ...]]]


def _shown(table: str) -> str:
    return f"JOIN nsync_entry e ON e.kind = 2 AND e.scope = {table}.scope AND e.name = {table}.name"


def _guid(column: str) -> str:
    return f"lower(replace(CAST({column} AS VARCHAR(36)), '-', ''))"


_TEXTS = ("project", "datatype", "stream_name", "prod_step", "version", "campaign", "provenance", "phys_group")
_NUMBERS = ("run_number", "task_id", "panda_id", "lumiblocknr")
_FLAGS = ("monotonic", "hidden", "obsolete", "transient")
_METADATA = ", ".join((*(f"nullif({name}, '')" for name in _TEXTS), *_NUMBERS, *(f"coalesce({name}, FALSE)" for name in _FLAGS)))

_QUERIES = {
    "scopes": "SELECT s.scope FROM scopes s JOIN nsync_entry e ON e.kind = 1 AND e.scope = s.scope",
    "dids": (  # sizes of open collections are none, whatever is left in the columns
        "SELECT dids.scope, dids.name, did_type, is_open, CASE WHEN is_open THEN NULL ELSE bytes END, "
        "CASE WHEN is_open THEN NULL ELSE length END, CASE WHEN is_open THEN NULL ELSE events END, "
        f"lower(adler32), lower(md5), {_guid('guid')}, {_METADATA} FROM dids {_shown('dids')}"
    ),
    "contents": (
        "SELECT contents.scope, contents.name, child_scope, child_name, did_type, child_type, bytes, lower(adler32), lower(md5), "
        f"{_guid('guid')}, events FROM contents {_shown('contents')}"
    ),
    "archive_contents": (
        "SELECT a.scope, a.name, child_scope, child_name, bytes, lower(adler32), lower(md5), "
        f"{_guid('guid')}, length FROM archive_contents a {_shown('a')}"
    ),
    "dids_opendata": f"SELECT o.scope, o.name, o.state FROM dids_opendata o {_shown('o')} WHERE o.state <> 'D'",
    "dids_opendata_doi": f"SELECT o.scope, o.name, o.doi FROM dids_opendata_doi o {_shown('o')}",
    "dids_opendata_record": f"SELECT o.scope, o.name, o.record_id FROM dids_opendata_record o {_shown('o')}",
}

_JSON = {
    "did_meta": f"SELECT m.scope, m.name, CAST(m.meta AS text) FROM did_meta m {_shown('m')}",
    "dids_opendata_meta": f"SELECT m.scope, m.name, CAST(m.meta AS text) FROM dids_opendata_meta m {_shown('m')}",
}

_ORIGIN = "LEFT JOIN rse_attr_map a ON a.rse_id = s.id AND a.key = 'nsync_origin'"
_REPLICAS = (
    "SELECT r.scope, r.name, s.rse, a.value, r.bytes, lower(r.adler32), lower(r.md5), r.state FROM replicas r "
    f"JOIN rses s ON s.id = r.rse_id {_ORIGIN} {_shown('r')}"
)
_RSES = f"SELECT s.id, s.rse, a.value FROM rses s {_ORIGIN} WHERE NOT s.deleted"
_DOORS = (
    "SELECT rse_id, scheme, hostname, port, coalesce(prefix, ''), impl, coalesce(read_lan, 0), coalesce(read_wan, 0), "
    "coalesce(third_party_copy_read, 0) FROM rse_protocols WHERE read_lan > 0 OR read_wan > 0"
)
_ATTRIBUTES = "SELECT rse_id, key, value FROM rse_attr_map WHERE key = 'OpenData'"


def shared_rows(connection: Connection, instance: str) -> Rows:
    """Rucio's rows of what the catalogue shows at `instance`, by table, with the catalogue's names of scopes; RSEs stand there as
    (instance, name)."""
    with scopes.in_force(connection):
        return _shared_rows(connection, instance)


def _shared_rows(connection: Connection, instance: str) -> Rows:
    rows = {table: frozenset(map(tuple, connection.execute(_told(query)))) for table, query in _QUERIES.items()}
    if connection.dialect.name == "postgresql":
        rows.update((table, frozenset(_plain(connection, table, query))) for table, query in _JSON.items())
    return {**rows, "replicas": frozenset(_replicas(connection, instance)), "rses": frozenset(_rses(connection, instance))}


def _plain(connection: Connection, table: str, query: str) -> Iterator[tuple[str, str, str]]:
    """Documents in one form of each; metadata without a key say what no metadata say."""
    for scope, name, document in connection.execute(_told(query)):
        if document not in (None, "null", "{}") or table != "did_meta":
            yield scope, name, json.dumps(json.loads(document or "null"), sort_keys=True)


def _replicas(connection: Connection, instance: str) -> Iterator[tuple[Any, ...]]:
    shared = _shown_keys(connection, fields.REPLICA)
    for scope, name, rse, origin, *rest in connection.execute(_told(_REPLICAS)):
        place = _place(instance, rse, origin)
        if origin is not None or indexed(Replica(Did(scope, name), place)) in shared:
            yield (scope, name, place.instance, place.rse, *rest)


def _rses(connection: Connection, instance: str) -> Iterator[tuple[Any, ...]]:
    """With the doors that are open for reading, and the attribute that is shared."""
    shared = _shown_keys(connection, fields.RSE)
    doors, attributes = connection.execute(text(_DOORS)).all(), connection.execute(text(_ATTRIBUTES)).all()
    for rse_id, rse, origin in connection.execute(text(_RSES)):
        place = _place(instance, rse, origin)
        if indexed(place) in shared:
            its_doors = sorted(tuple(door[1:]) for door in doors if door.rse_id == rse_id)
            its_attributes = sorted((key, str(value)) for at, key, value in attributes if at == rse_id)
            yield (place.instance, place.rse, tuple(its_doors), tuple(its_attributes))


def _place(instance: str, rse: str, origin: Any) -> Rse:
    return Rse(instance, rse) if origin is None else Rse(origin, rse[len(origin) + 1 :])


def _shown_keys(connection: Connection, kind: int) -> set[bytes]:
    return set(map(bytes, connection.execute(text("SELECT key FROM nsync_entry WHERE kind = :kind"), {"kind": kind}).scalars()))


def _told(query: str) -> TextClause:
    """With the catalogue's names in the place of Rucio's scopes."""
    return text(_SCOPES.sub(lambda found: scopes.swapped_sql(found[0]), query))


_SCOPES = re.compile(r"\b(?!e\.)[a-z]+\.scope\b|\bchild_scope\b")
