"""Keys in indexed columns: an index of PostgreSQL takes 2704 bytes, and the names of a key may have four times that.

A table that is found by key has two columns: `key`, which is indexed, and `whole`, which is empty but for a key that is too long.
Then the whole one stands there, and its beginning and a hash in `key`, so that keys that begin alike still lie together.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Optional

from sqlalchemy import Connection, Row, Table, select

from nsync.namespace.keys import Did, Key, Wire, from_key_bytes, key_bytes

KEY_BYTES_MAX = 1023
"""Keys up to here stand in `key` as they are; longer ones make one byte more, so that they are never equal to one of these."""

NAME_BYTES_MAX = 1500
"""Names of DIDs that are indexed beside their scope. No Rucio takes one that is longer."""

_HASH_BYTES = 24


def columns(key: Wire) -> tuple[bytes, Optional[bytes]]:
    """What stands in `key` and `whole`."""
    raw = key_bytes(key)
    if len(raw) <= KEY_BYTES_MAX:
        return raw, None
    return raw[: KEY_BYTES_MAX + 1 - _HASH_BYTES] + blake2b(raw, digest_size=_HASH_BYTES).digest(), raw


def indexed(key: Wire) -> bytes:
    """What stands in `key`."""
    return columns(key)[0]


def prefix_bytes(parent: Did) -> int:
    """How many bytes the keys of all attachments to `parent` have in common in `key`."""
    return min(len(key_bytes(parent)), KEY_BYTES_MAX + 1 - _HASH_BYTES)


def name(text: str) -> Optional[str]:
    """A name for an index, or None when it is too long."""
    return text if len(text) * 4 <= NAME_BYTES_MAX or len(text.encode()) <= NAME_BYTES_MAX else None


def key_in(row: Row[Any]) -> Key:
    """The key of a row."""
    return from_key_bytes(row.key if row.whole is None else row.whole)


def keys_in(connection: Connection, table: Table) -> set[Key]:
    """Every key of a table."""
    return set(map(key_in, connection.execute(select(table.c.key, table.c.whole))))
