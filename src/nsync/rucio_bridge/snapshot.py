"""The rows of the shared namespace, normalised so that two instances can be compared: equal sets, or here is what differs.

Plain SQL and nothing of Rucio's, so that one process can read the databases of several instances.
"""

from __future__ import annotations

import re

from sqlalchemy import Connection, TextClause, text

from nsync.namespace.keys import Did, Replica, Rse
from nsync.rucio_bridge import scopes
from nsync.store.keyed import indexed

_SHOWN = "JOIN nsync_entry e ON e.kind = 2 AND e.scope = {{{table}.scope}} AND e.name = {table}.name"

_QUERIES = {
    "scopes": "SELECT {s.scope} FROM scopes s JOIN nsync_entry e ON e.kind = 1 AND e.scope = {s.scope}",
    "dids": (  # sizes of open collections are none, whatever is left in the columns
        "SELECT {dids.scope}, dids.name, did_type, is_open, CASE WHEN is_open THEN NULL ELSE bytes END, "
        "CASE WHEN is_open THEN NULL ELSE length END, lower(adler32), lower(md5) FROM dids " + _SHOWN.format(table="dids")
    ),
    "contents": (
        "SELECT {contents.scope}, contents.name, {child_scope}, child_name, did_type, child_type, bytes, lower(adler32), lower(md5) "
        "FROM contents " + _SHOWN.format(table="contents")
    ),
    "dids_opendata": "SELECT {o.scope}, o.name, o.state FROM dids_opendata o " + _SHOWN.format(table="o") + " WHERE o.state <> 'D'",
    "dids_opendata_doi": "SELECT {o.scope}, o.name, o.doi FROM dids_opendata_doi o " + _SHOWN.format(table="o"),
}

_REPLICAS = (
    "SELECT {r.scope}, r.name, s.rse, a.value, r.bytes, lower(r.adler32), lower(r.md5), r.state FROM replicas r "
    "JOIN rses s ON s.id = r.rse_id LEFT JOIN rse_attr_map a ON a.rse_id = s.id AND a.key = 'nsync_origin' " + _SHOWN.format(table="r")
)


def shared_rows(connection: Connection, instance: str) -> dict[str, frozenset[tuple[object, ...]]]:
    """Rucio's rows of what the catalogue shows at `instance`, by table, with the catalogue's names of scopes; in replicas the RSE stands
    as (instance, name)."""
    with scopes.in_force(connection):
        return _shared_rows(connection, instance)


def _shared_rows(connection: Connection, instance: str) -> dict[str, frozenset[tuple[object, ...]]]:
    rows = {table: frozenset(tuple(row) for row in connection.execute(_told(query))) for table, query in _QUERIES.items()}
    shared = set(connection.execute(text("SELECT key FROM nsync_entry WHERE kind = 6")).scalars())
    replicas = []
    for scope, name, rse, origin, *rest in connection.execute(_told(_REPLICAS)):
        place = Rse(instance, rse) if origin is None else Rse(origin, rse[len(origin) + 1 :])
        if origin is not None or indexed(Replica(Did(scope, name), place)) in shared:
            replicas.append((scope, name, place.instance, place.rse, *rest))
    return {**rows, "replicas": frozenset(replicas)}


def _told(query: str) -> TextClause:
    """With the catalogue's names in the place of braced columns."""
    return text(re.sub(r"\{([a-z_.]+)\}", lambda found: scopes.swapped_sql(found[1]), query))
