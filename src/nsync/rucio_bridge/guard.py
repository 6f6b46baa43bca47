"""Rucio's schema is checked at start and in each transaction (R7.7): rows are written only into one that nsync is tested with."""

from __future__ import annotations

from typing import Optional

from sqlalchemy import Connection, inspect, text

TESTED_HEADS = {"3b943000da18": "41.5.1"}
"""Rucio's alembic heads, with the release that CI ran against it."""


def unknown_schema(connection: Connection, version_table: str = "alembic_version") -> Optional[str]:
    """Why rows must not be written into this database, or None when its schema is one that is tested."""
    if not inspect(connection).has_table(version_table):
        return f"this database has no table {version_table}: it is not Rucio's, or was made without 'alembic stamp head'"
    heads = set(connection.execute(text(f"SELECT version_num FROM {version_table}")).scalars())
    if heads and heads <= set(TESTED_HEADS):
        return None
    known = ", ".join(f"{head} (Rucio {release})" for head, release in sorted(TESTED_HEADS.items()))
    found = ", ".join(sorted(heads)) or "no revision"
    return f"Rucio's schema is at {found}; this nsync is tested with {known}: it goes on gossiping, and writes no rows"
