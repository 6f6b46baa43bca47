"""Under which names scopes stand here: a foreign scope whose name is private in this Rucio is shown under another one (R7.6).

The map swaps names. Where the foreign `cms` stands in Rucio's columns as `far.cms`, the private `cms` of this Rucio is read as `far.cms`,
which the charter gives to nobody: so it is never taken for the foreign one, neither written, removed, nor published. A swap is its own
inverse, so one function serves both ways; who reads or writes a column with a scope goes through it (`lookup.internal`, `external`).

The map is kept in the database, and in force for the length of a transaction, so that whoever opens the database has the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from sqlalchemy import Connection

from nsync.store import kept

_KEPT = "scope_map"
_NOTHING: Mapping[str, str] = {}
_SWAPS: ContextVar[Mapping[str, str]] = ContextVar("nsync_scope_map", default=_NOTHING)


def swapped(scope: str) -> str:
    """The name under which a scope of the catalogue stands here, or the other way round."""
    return _SWAPS.get().get(scope, scope)


def swapped_sql(column: str) -> str:
    """The same of a column, as an expression."""
    cases = " ".join(f"WHEN {_literal(scope)} THEN {_literal(other)}" for scope, other in sorted(_SWAPS.get().items()))
    return f"CASE {column} {cases} ELSE {column} END" if cases else column


def kept_map(connection: Connection) -> dict[str, str]:
    """The foreign scopes that have another name here, with that name."""
    return dict(json.loads(kept.read(connection, _KEPT) or b"{}"))


def keep_map(connection: Connection, scope_map: Mapping[str, str]) -> None:
    """Let `scope_map` be in force from the next transaction on. Whether it may is for `ground.map_scopes` to say."""
    kept.write(connection, _KEPT, json.dumps(dict(scope_map), sort_keys=True).encode())


@contextmanager
def in_force(connection: Connection) -> Iterator[None]:
    """Within, names are swapped by the map of this database."""
    names = kept_map(connection)
    token = _SWAPS.set({**names, **{local: foreign for foreign, local in names.items()}})
    try:
        yield
    finally:
        _SWAPS.reset(token)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
