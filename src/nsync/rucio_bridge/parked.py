"""What waits for the operator: facts whose entries do not fit this Rucio instance, each with its reason (R7.6).

Those of one batch (a changeset, and what came later and hangs on it) wait together, so that a changeset is seen whole or not at all;
unless the operator accepted it partially: then each of them waits by itself, and holds up only what hangs on it by key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional

from sqlalchemy import ColumnElement, Connection, Row, case, delete, func, insert, select, update
from sqlalchemy.orm import Session

from nsync.errors import ConfigError
from nsync.namespace.keys import Attribute, Fact, Key, key_bytes
from nsync.store import schema
from nsync.store.changes import PART_FACTS, Changes
from nsync.store.database import chunks, is_among
from nsync.store.keyed import columns, indexed, key_in

_PARKED = schema.parked.c

LEFT = " left"
"""Ends the name of a batch of what left the namespace and stays here: it waits apart from the rest of its changeset."""
REST = " rest"
"""Ends the name of a batch that was accepted partially."""


WAITS_FOR = "waits for "
"""Begins the reason of what waits for nothing but something else."""
_HAS_CAUSE = _PARKED.reason.not_like(f"{WAITS_FOR}%")


def base(batch: str) -> str:
    """The name of the changeset."""
    return batch.removesuffix(LEFT).removesuffix(REST)


class ParkedFact(NamedTuple):
    """A fact that waits, with what resolves it."""

    fact: Fact
    batch: str
    reason: str
    since_ms: int


class Waits(NamedTuple):
    """What waits in a batch."""

    facts: int
    causes: int
    """Of these, that have a reason of their own."""
    since_ms: int


def among(session: Session, wanted: Collection[Key], had_row: tuple[bool, ...] = (True, False)) -> set[Key]:
    """Those of `wanted` that wait; `had_row`: only those whose row was here, or was not, when they were parked."""
    found: set[Key] = set()
    for chunk in chunks(sorted(map(indexed, wanted))):
        found |= {
            key_in(row)
            for row in session.execute(select(_PARKED.key, _PARKED.whole).where(_among(session, chunk), _PARKED.had_row.in_(had_row)))
        }
    return found


def reasons(connection: Connection, wanted: Collection[Fact]) -> dict[Fact, str]:
    """Why those of `wanted` wait that do."""
    found: dict[Fact, str] = {}
    for chunk in chunks(sorted(map(indexed, wanted))):
        rows = connection.execute(select(_PARKED.key, _PARKED.whole, _PARKED.reason).where(is_among(connection, _PARKED.key, chunk)))
        found.update({_fact(row): row.reason for row in rows})
    return found


def any_(session: Session) -> bool:
    """Whether anything waits."""
    return session.execute(select(_PARKED.key).limit(1)).first() is not None


def batches_with(session: Session, wanted: Collection[Fact]) -> set[str]:
    """The names of the batches in which one of `wanted` waits."""
    found: set[str] = set()
    for chunk in chunks(sorted(map(indexed, wanted))):
        found |= set(session.execute(select(_PARKED.batch).where(_among(session, chunk))).scalars())
    return found


def aside(session: Session, wanted: Collection[Fact]) -> set[Fact]:
    """Those of `wanted` that wait by themselves."""
    found: set[Fact] = set()
    for chunk in chunks(sorted(map(indexed, wanted))):
        query = select(_PARKED.key, _PARKED.whole).where(_among(session, chunk), _PARKED.batch.endswith(REST))
        found |= set(map(_fact, session.execute(query)))
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


def listing(session: Session, batch: Optional[str] = None, causes: Optional[bool] = None) -> Iterator[ParkedFact]:
    """All that waits, or all of one batch, the oldest first; `causes`: only what has a reason of its own, or only what has none.

    It streams: a changeset of a million files may wait."""
    query = select(schema.parked).order_by(_PARKED.since_ms, _PARKED.batch, _PARKED.key).execution_options(yield_per=PART_FACTS)
    if batch is not None:
        query = query.where(_PARKED.batch == batch)
    if causes is not None:
        query = query.where(_HAS_CAUSE if causes else ~_HAS_CAUSE)
    for row in session.execute(query):
        yield ParkedFact(_fact(row), row.batch, row.reason, row.since_ms)


def summary(session: Session) -> dict[str, Waits]:
    """The batches, the oldest first."""
    since = func.min(_PARKED.since_ms)
    query = select(_PARKED.batch, func.count(), func.sum(case((_HAS_CAUSE, 1), else_=0)), since).group_by(_PARKED.batch)
    return {batch: Waits(*rest) for batch, *rest in session.execute(query.order_by(since, _PARKED.batch))}


def park(
    session: Session, batch: str, facts: Collection[Fact], whys: Mapping[Fact, str], now_ms: int, had_row: Collection[Fact] = ()
) -> bool:
    """Let `facts` wait together; tells whether that says anything new. Those without a reason wait for the first that has one."""
    first = min(whys, key=key_bytes)
    says = {fact: whys.get(fact, f"{WAITS_FOR}{first}, which came with it") for fact in facts}
    if says == reasons(session.connection(), facts):
        return False
    _put(session, batch, says, now_ms, had_row)
    return True


def set_aside(session: Session, batch: str, whys: Mapping[Fact, str], now_ms: int, had_row: Collection[Fact] = ()) -> bool:
    """Let each of the facts wait by itself for its reason; tells whether that says anything new."""
    held = reasons(session.connection(), aside(session, whys))
    news = {fact: reason for fact, reason in whys.items() if held.get(fact) != reason}
    if news:
        _put(session, f"{base(batch)}{REST}", news, now_ms, had_row)
    return bool(news)


def accept(session: Session, batch: str) -> int:
    """Let what waits in `batch` wait by itself, fact by fact: the next try writes those that fit. Returns how many wait; raises
    ConfigError when there is nothing to accept."""
    waits = session.execute(select(func.count()).where(_PARKED.batch == batch)).scalar_one()
    if not waits or batch != base(batch):
        raise ConfigError(not_to_accept(batch, waits))
    session.execute(update(schema.parked).where(_PARKED.batch == batch).values(batch=f"{batch}{REST}"))
    return waits


def not_to_accept(batch: str, waits: int) -> str:
    """Why `batch` cannot be accepted partially."""
    if not waits:
        return f"nothing is parked as {batch!r}; 'nsync conflict list' has the names of what is"
    if batch.endswith(REST):
        return f"{batch!r} is accepted already: what fits is written by itself, every 30 s"
    return f"{batch!r} is what left the namespace and is held here: it goes once what holds it is gone, which its reasons name"


def _put(session: Session, batch: str, says: Mapping[Fact, str], now_ms: int, had_row: Collection[Fact]) -> None:
    release(session, says.keys())
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


def release(session: Session, facts: Collection[Fact]) -> None:
    """`facts` wait no more."""
    for chunk in chunks(sorted(map(indexed, facts))):
        session.execute(delete(schema.parked).where(_among(session, chunk)))


def _among(session: Session, keys: Sequence[bytes]) -> ColumnElement[bool]:
    return is_among(session.connection(), _PARKED.key, keys)


def _fact(row: Row[Any]) -> Fact:
    fact = key_in(row)
    assert not isinstance(fact, Attribute)
    return fact
