"""What waits for the operator: facts whose entries do not fit this Rucio instance, each with its reason (R7.6).

Those of one batch (a changeset, and what came later and hangs on it) wait together, so that a changeset is seen whole or not at all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from nsync.namespace.keys import Attribute, Fact, Key, from_key_bytes, key_bytes
from nsync.store import schema
from nsync.store.database import chunks

_PARKED = schema.parked.c


class ParkedFact(NamedTuple):
    """A fact that waits, with what resolves it."""

    fact: Fact
    batch: str
    reason: str
    since_ms: int


def among(session: Session, wanted: Collection[Key], had_row: tuple[bool, ...] = (True, False)) -> set[Key]:
    """Those of `wanted` that wait; `had_row`: only those whose row was here, or was not, when they were parked."""
    found: set[Key] = set()
    for chunk in chunks([key_bytes(key) for key in wanted]):
        found |= {
            from_key_bytes(raw)
            for raw in session.execute(select(_PARKED.key).where(_PARKED.key.in_(chunk), _PARKED.had_row.in_(had_row))).scalars()
        }
    return found


def with_their_batches(session: Session, wanted: Collection[Fact]) -> set[Fact]:
    """Everything that waits in a batch with one of `wanted`."""
    batches: set[str] = set()
    for chunk in chunks([key_bytes(key) for key in wanted]):
        batches |= set(session.execute(select(_PARKED.batch).where(_PARKED.key.in_(chunk))).scalars())
    found: set[Fact] = set()
    for names in chunks(sorted(batches)):
        found |= {_fact(raw) for raw in session.execute(select(_PARKED.key).where(_PARKED.batch.in_(names))).scalars()}
    return found


def batches(session: Session) -> list[str]:
    """The names of all batches."""
    return list(session.execute(select(_PARKED.batch).distinct().order_by(_PARKED.batch)).scalars())


def of_batch(session: Session, batch: str) -> set[Fact]:
    """What waits in `batch`."""
    return {_fact(raw) for raw in session.execute(select(_PARKED.key).where(_PARKED.batch == batch)).scalars()}


def listing(session: Session) -> list[ParkedFact]:
    """All that waits, the oldest first."""
    rows = session.execute(select(schema.parked).order_by(_PARKED.since_ms, _PARKED.batch, _PARKED.key))
    return [ParkedFact(_fact(row.key), row.batch, row.reason, row.since_ms) for row in rows]


def park(
    session: Session, batch: str, facts: Collection[Fact], reasons: Mapping[Fact, str], now_ms: int, had_row: Collection[Fact] = ()
) -> bool:
    """Let `facts` wait together; tells whether that says anything new. Those without a reason wait for the first that has one."""
    first = min(reasons, key=key_bytes)
    rows = {key_bytes(fact): reasons.get(fact, f"waits for {first}, which came with it") for fact in facts}
    held: dict[bytes, str] = {}
    for chunk in chunks(sorted(rows)):
        held.update({row.key: row.reason for row in session.execute(select(_PARKED.key, _PARKED.reason).where(_PARKED.key.in_(chunk)))})
    if rows == held:
        return False
    release(session, facts)
    had = {key_bytes(fact) for fact in had_row}
    session.execute(
        insert(schema.parked),
        [{"key": key, "batch": batch, "reason": reason, "since_ms": now_ms, "had_row": key in had} for key, reason in sorted(rows.items())],
    )
    return True


def release(session: Session, facts: Collection[Fact]) -> None:
    """`facts` wait no more."""
    for chunk in chunks([key_bytes(fact) for fact in facts]):
        session.execute(delete(schema.parked).where(_PARKED.key.in_(chunk)))


def _fact(raw: bytes) -> Fact:
    fact = from_key_bytes(raw)
    assert not isinstance(fact, Attribute)
    return fact
