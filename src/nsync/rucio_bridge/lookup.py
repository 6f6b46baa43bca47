"""Rows of Rucio's tables by their keys: one statement for thousands of keys, each row found through an index.

The keys come as one JSON text: PostgreSQL's driver writes arrays element by element, which takes longer than the rows.

- PostgreSQL: for each of them a LATERAL subquery is run. `OFFSET 0` keeps it from being merged with the rest, so that no plan can read
  a table from end to end, whatever the planner expects of the keys.
- SQLite: CROSS JOIN keeps them the outer loop.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from itertools import chain
from typing import Any

from rucio.common.types import InternalScope
from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from nsync.namespace.keys import Did
from nsync.rucio_bridge.scopes import swapped
from nsync.store.database import chunks

KEYS_MAX = 10_000
"""Keys in one statement: some MiB of names at most."""

ROWS = 1000
"""Read at once."""

Names = tuple[str, ...]


def look_up(session: Session, columns: str, source: str, on: Sequence[str], wanted: Collection[Names], **values: Any) -> Iterator[Row[Any]]:
    """`columns` of the rows of `source` whose columns `on` are one of `wanted`; `values` are those that `source` is bound to."""
    if not wanted:
        return
    is_postgresql = session.connection().dialect.name == "postgresql"
    query = text((_postgresql if is_postgresql else _sqlite)(columns, source, tuple(on)))
    for chunk in chunks(wanted, KEYS_MAX):
        found = session.execute(query, {"wanted": json.dumps(chunk, ensure_ascii=False), **values})
        yield from chain.from_iterable(found.partitions(ROWS))  # row by row takes twice as long


@lru_cache
def _postgresql(columns: str, source: str, on: Names) -> str:
    same = " AND ".join(f"{column} = k.value ->> {place}" for place, column in enumerate(on))
    keys = "json_array_elements(CAST(:wanted AS json)) k"
    return f"SELECT r.* FROM {keys} CROSS JOIN LATERAL (SELECT {columns} FROM {source} WHERE {same} OFFSET 0) r"


@lru_cache
def _sqlite(columns: str, source: str, on: Names) -> str:
    same = " AND ".join(f"{column} = json_extract(k.value, '$[{place}]')" for place, column in enumerate(on))
    return f"SELECT {columns} FROM json_each(:wanted) k CROSS JOIN {source} WHERE {same}"


def names_of(did: Did) -> Names:
    """A DID as Rucio's columns hold it, as text."""
    return internal(did.scope), did.name


def internal(scope: str) -> str:
    """A scope of the catalogue as Rucio's columns hold it."""
    return _internal(swapped(scope))


def external(scope: str) -> str:
    """The scope of the catalogue that a column holds."""
    return swapped(_external(scope))


@lru_cache(maxsize=4096)
def _internal(scope: str) -> str:
    return str(InternalScope(scope).internal)


@lru_cache(maxsize=4096)
def _external(scope: str) -> str:
    return str(InternalScope(scope, from_external=False).external)


def utc_now() -> datetime:
    """The time as Rucio's columns hold it: naive UTC."""
    return datetime.now(timezone.utc).replace(tzinfo=None)
