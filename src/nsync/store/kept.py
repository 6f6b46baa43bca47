"""Single values that an nsync database keeps: `nsync_kept`."""

from __future__ import annotations

from typing import Optional

from sqlalchemy import Connection, delete, insert, select

from nsync.store import schema

_KEPT = schema.kept.c


def read(connection: Connection, name: str) -> Optional[bytes]:
    """The value called `name`, or None."""
    value = connection.execute(select(_KEPT.value).where(_KEPT.name == name)).scalar()
    return None if value is None else bytes(value)


def write(connection: Connection, name: str, value: bytes) -> None:
    """Keep `value` as `name`."""
    connection.execute(delete(schema.kept).where(_KEPT.name == name))
    connection.execute(insert(schema.kept).values(name=name, value=value))
