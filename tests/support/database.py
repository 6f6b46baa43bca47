"""A stand-alone nsync database and what it holds, in a form that can be compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, create_engine, select
from sqlalchemy.pool import StaticPool

from nsync.auth.keys import verify
from nsync.authority.effective import Authority
from nsync.authority.rulings import EFFECTIVE
from nsync.catalogue.reference import Reference
from nsync.log.forks import Mark
from nsync.log.segment import GONE
from nsync.log.stored import Receipt
from nsync.namespace.keys import Attribute, Did, key_of
from nsync.namespace.ops import STATEMENTS_KIND, wire_op
from nsync.store import schema
from nsync.store.database import create_tables, writing
from nsync.store.keyed import keys_in
from nsync.store.log import Applied, SqlLog, decode_batch
from tests.support.federation import AUTHORITY


def memory_engine() -> Engine:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    create_tables(engine)
    return engine


@contextmanager
def disposed(engine: Engine) -> Iterator[Engine]:
    """`engine`, closed at the end: also when Hypothesis breaks an example off."""
    try:
        yield engine
    finally:
        engine.dispose()


def empty(engine: Engine) -> None:
    """Forget everything: faster than a new database for each example of a property."""
    with engine.begin() as connection:
        for table in schema.metadata.sorted_tables:
            connection.execute(table.delete())


def receive(engine: Engine, frames: list[bytes], authority: Authority = AUTHORITY) -> Receipt:
    segments, rejected = decode_batch(frames, authority, verify)
    with writing(engine) as connection:
        stored = SqlLog(connection, authority).store(segments)
    return Receipt(stored.stored, (*rejected, *stored.rejected))


def apply_all(engine: Engine, now_ms: int = 1 << 44, authority: Authority = AUTHORITY) -> list[Applied]:
    found = []
    while True:
        with writing(engine) as connection:
            applied = SqlLog(connection, authority).apply_next(now_ms)
        if applied is None:
            return found
        found.append(applied)


def contents(engine: Engine, authority: Authority = AUTHORITY) -> dict[str, Any]:
    """Slots, claims, heads, what every statement counts for, catalogue and conflicts."""
    with writing(engine) as connection:
        log = SqlLog(connection, authority)
        rows = connection.execute(select(schema.op.c.branch, schema.op.c.seq, schema.op.c.raw)).all()
        kept = [row for row in rows if row.raw[:1] != GONE and row.seq <= log.lines.branches[row.branch].applied]
        ops = [(Mark(row.branch, row.seq), wire_op(row.raw)) for row in kept]
        keys = {key_of(said[0]) for _, op in ops if op[0] == STATEMENTS_KIND for said in op[1:]}
        facts = keys_in(connection, schema.entry)
        clashing = keys_in(connection, schema.conflict)
        about = log.state.about({key for key in keys if isinstance(key, Did)})
        return {
            "slots": {key: list(slots) for key, slots in log.state.slots(keys).items()},
            "claims": {did: list(found.claims) for did, found in about.items() if found.claims},
            "about": {did: {key: list(slots) for key, slots in found.slots.items()} for did, found in about.items() if found.slots},
            "heads": sorted(branch.head for branch in log.heads().values()),
            "effective": {
                (key, said.slot)
                for key in keys
                for said, ruling in log.state.statements.history(key)
                if ruling and ruling.standing == EFFECTIVE
            },
            "catalogue": log.state.entries({fact for fact in facts if not isinstance(fact, Attribute)}),
            "conflicts": log.state.conflicts({fact for fact in clashing if not isinstance(fact, Attribute)}),
        }


def reference_contents(state: Reference) -> dict[str, Any]:
    """The same, of a Reference."""
    world = state.world
    known = state.slots(state.slot_keys())
    dids = {key for key in state.said_keys() if isinstance(key, Did)}
    catalogue, conflicts = state.recomputed()
    return {
        "slots": {key: list(slots) for key, slots in known.items()},
        "claims": {did: sorted(claims.values()) for did, claims in world.claims_by_did.items()},
        "about": {did: {key: list(slots) for key, slots in found.slots.items()} for did, found in state.about(dids).items() if found.slots},
        "heads": sorted(state.ends()),
        "effective": {(said.key, said.slot) for said, ruling in world.rulings if ruling.effective},
        "catalogue": catalogue,
        "conflicts": {fact: sorted(found) for fact, found in conflicts.items()},
    }
