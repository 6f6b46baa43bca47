"""A stand-alone nsync database and what it holds, in a form that can be compared."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, create_engine, select
from sqlalchemy.pool import StaticPool

from nsync.auth.keys import verify
from nsync.catalogue.reference import Reference
from nsync.log.stored import Receipt
from nsync.namespace.keys import from_key_bytes, key_bytes
from nsync.store import schema
from nsync.store.database import create_tables, writing
from nsync.store.log import Applied, SqlLog, decode_batch
from nsync.store.state import SqlState
from tests.support.federation import AUTHORITY


def memory_engine() -> Engine:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    create_tables(engine)
    return engine


def receive(engine: Engine, frames: list[bytes]) -> Receipt:
    segments, rejected = decode_batch(frames, AUTHORITY, verify)
    with writing(engine) as connection:
        stored = SqlLog(connection, AUTHORITY).store(segments)
    return Receipt(stored.stored, (*rejected, *stored.rejected))


def apply_all(engine: Engine, now_ms: int = 1 << 44) -> list[Applied]:
    found = []
    while True:
        with writing(engine) as connection:
            applied = SqlLog(connection, AUTHORITY).apply_next(now_ms)
        if applied is None:
            return found
        found.append(applied)


def contents(engine: Engine) -> dict[str, Any]:
    """Slots, heads, catalogue and conflicts."""
    with engine.connect() as connection:
        state = SqlState(connection, AUTHORITY)
        keys = {from_key_bytes(key) for key in connection.execute(select(schema.slot.c.key)).scalars()}
        facts = {from_key_bytes(key) for key in connection.execute(select(schema.entry.c.key)).scalars()}
        clashing = {from_key_bytes(key) for key in connection.execute(select(schema.conflict.c.key)).scalars()}
        return {
            "slots": state.slots(keys),
            "heads": {author: dep.seq for author, (dep, _) in SqlLog(connection, AUTHORITY).heads().items()},
            "catalogue": state.entries(facts),
            "conflicts": state.conflicts(clashing),
        }


def reference_contents(state: Reference) -> dict[str, Any]:
    """The same, of a Reference."""
    return {
        "slots": state.slots(sorted(state.slot_keys(), key=key_bytes)),
        "heads": state.heads,
        "catalogue": state.catalogue,
        "conflicts": {fact: sorted(found) for fact, found in state.conflicts.items()},
    }
