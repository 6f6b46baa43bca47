"""What waits for the operator: facts whose entries do not fit this Rucio instance, each with its reason (R7.6).

Those of one batch (a changeset, and what came later and hangs on it) wait together, so that a changeset is seen whole or not at all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Row, delete, insert, select
from sqlalchemy.orm import Session

from nsync.namespace.keys import Attribute, Fact, Key, key_bytes
from nsync.store import schema
from nsync.store.changes import PART_FACTS, Changes
from nsync.store.database import chunks
from nsync.store.keyed import columns, indexed, key_in

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
    for chunk in chunks(sorted(map(indexed, wanted))):
        found |= {
            key_in(row)
            for row in session.execute(select(_PARKED.key, _PARKED.whole).where(_PARKED.key.in_(chunk), _PARKED.had_row.in_(had_row)))
        }
    return found


def any_(session: Session) -> bool:
    """Whether anything waits."""
    return session.execute(select(_PARKED.key).limit(1)).first() is not None


def batches_with(session: Session, wanted: Collection[Fact]) -> set[str]:
    """The names of the batches in which one of `wanted` waits."""
    found: set[str] = set()
    for chunk in chunks(sorted(map(indexed, wanted))):
        found |= set(session.execute(select(_PARKED.batch).where(_PARKED.key.in_(chunk))).scalars())
    return found


def batches(session: Session) -> list[str]:
    """The names of all batches."""
    return list(session.execute(select(_PARKED.batch).distinct().order_by(_PARKED.batch)).scalars())


def list_batch(session: Session, batch: str, changes: Changes) -> int:
    """Put what waits in `batch` into `changes`; returns how much that is."""
    query, after, count = select(_PARKED.key, _PARKED.whole).where(_PARKED.batch == batch).order_by(_PARKED.key), b"", 0
    while rows := session.execute(query.where(_PARKED.key > after).limit(PART_FACTS)).all():
        changes.add(map(_fact, rows))
        after, count = rows[-1].key, count + len(rows)
    return count


def listing(session: Session) -> list[ParkedFact]:
    """All that waits, the oldest first."""
    rows = session.execute(select(schema.parked).order_by(_PARKED.since_ms, _PARKED.batch, _PARKED.key))
    return [ParkedFact(_fact(row), row.batch, row.reason, row.since_ms) for row in rows]


def park(
    session: Session, batch: str, facts: Collection[Fact], reasons: Mapping[Fact, str], now_ms: int, had_row: Collection[Fact] = ()
) -> bool:
    """Let `facts` wait together; tells whether that says anything new. Those without a reason wait for the first that has one."""
    first = min(reasons, key=key_bytes)
    says = {fact: reasons.get(fact, f"waits for {first}, which came with it") for fact in facts}
    held: dict[Fact, str] = {}
    for chunk in chunks(sorted(map(indexed, facts))):
        found = session.execute(select(_PARKED.key, _PARKED.whole, _PARKED.reason).where(_PARKED.key.in_(chunk)))
        held.update({_fact(row): row.reason for row in found})
    if says == held:
        return False
    release(session, facts)
    rows = [
        {
            **dict(zip(("key", "whole"), columns(fact))),
            "batch": batch,
            "reason": says[fact],
            "since_ms": now_ms,
            "had_row": fact in had_row,
        }
        for fact in sorted(says, key=key_bytes)
    ]
    session.execute(insert(schema.parked), rows)
    return True


def release(session: Session, facts: Collection[Fact]) -> None:
    """`facts` wait no more."""
    for chunk in chunks(sorted(map(indexed, facts))):
        session.execute(delete(schema.parked).where(_PARKED.key.in_(chunk)))


def _fact(row: Row[Any]) -> Fact:
    fact = key_in(row)
    assert not isinstance(fact, Attribute)
    return fact
