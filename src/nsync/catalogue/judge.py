"""From the ops of a segment to what they change: which statements count now, and which wait for the home (R3.3, R5.6).

Shared by the reference in memory and the SQL store, so that there is one judgement.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nsync.authority.effective import Authority
from nsync.crdt import Dot, Slot
from nsync.log.segment import Segment
from nsync.namespace.keys import DOI, Attribute, Did, Key
from nsync.namespace.ops import Grant, Retract, Revoke, decode_op


class Judged(NamedTuple):
    """The statements of a segment, in the order of its log."""

    effective: list[tuple[Key, Slot]]
    waiting: list[tuple[Key, Slot]]
    """Of a guest, destructive or publishing: effective once the home's log holds them in its past."""
    void: int
    """How many statements their author has no right to make."""


def judge(authority: Authority, segment: Segment) -> Judged:
    """Judge each statement of `segment` alone."""
    effective, waiting, void = [], [], 0
    header = segment.header
    for offset, raw in enumerate(segment.ops):
        dot = Dot(header.author, header.first + offset)
        for statement in decode_op(raw):
            if isinstance(statement, (Grant, Revoke)):
                continue  # they are about authors, and no reading looks at them yet
            value = None if isinstance(statement, Retract) else statement.value
            slot = Slot(dot, header.stamp, isinstance(statement, Retract), value)
            if not authority.may_write(header.author, statement.key):
                void += 1
            elif authority.waits_for_home(header.author, statement):
                waiting.append((statement.key, slot))
            else:
                effective.append((statement.key, slot))
    return Judged(effective, waiting, void)


def last_of_each(statements: Iterable[tuple[Key, Slot]]) -> dict[tuple[Key, bytes], Slot]:
    """The join of `statements`: of each (key, author) the one with the greatest seq."""
    last: dict[tuple[Key, bytes], Slot] = {}
    for key, slot in statements:
        held = last.get((key, slot.dot.author))
        if held is None or held.dot.seq < slot.dot.seq:
            last[(key, slot.dot.author)] = slot
    return last


def first_claims(statements: Iterable[tuple[Key, Slot]]) -> dict[tuple[Did, bytes], Slot]:
    """Of each (DID, author) the first Assert: a claim of identity (R3.6)."""
    first: dict[tuple[Did, bytes], Slot] = {}
    for key, slot in statements:
        if isinstance(key, Did) and not slot.retract:
            held = first.get((key, slot.dot.author))
            if held is None or held.dot.seq > slot.dot.seq:
                first[(key, slot.dot.author)] = slot
    return first


def is_doi(key: Key) -> bool:
    """Whether `key` is a DID's DOI."""
    return isinstance(key, Attribute) and isinstance(key.fact, Did) and key.field == DOI
