"""The catalogue derived anew from all that counts, in bounded memory.

A stretch of the logs at a time, in the order in which it came here, as if what is said later about other keys had not come yet: so
collections are shown before the files that hang on them, and what lies together in the log is written together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import select

from nsync.log.forks import Mark
from nsync.store import schema
from nsync.store.collector import collector_paused
from nsync.store.state import SqlState

STRETCH_OPS = 1 << 13
"""Ops that are looked at together; up to eight times as many where a changeset has more."""
STRETCH_SEGMENTS = 1024

_SEGMENT = schema.segment.c


class _Run(NamedTuple):
    """The ops of one segment."""

    branch: int
    first: int
    last: int


def rebuild(state: SqlState) -> int:
    """Derive the catalogue; returns how many ops were read."""
    state.shown.clear()
    state.until = dict.fromkeys(state.lines.branches, 0)
    count = sum(_derive(state, stretch) for stretch in _stretches(state))
    state.until = None
    state.is_caught_up()
    return count


@collector_paused()
def _derive(state: SqlState, stretch: Sequence[_Run]) -> int:
    assert state.until is not None
    count = 0
    for run in stretch:
        me = state.authority.name(state.lines.branches[run.branch].author)
        state.until[run.branch] = run.last
        for mark, op in state.statements.ops([Mark(run.branch, seq) for seq in range(run.first, run.last + 1)]):
            count += 1
            state.note(mark, op, state.is_sole_word(op.says, me))
    for _ in state.derive():
        pass
    return count


def _stretches(state: SqlState) -> Iterator[list[_Run]]:
    """The applied segments in the order in which they came."""
    applied = (schema.branch.c.id == _SEGMENT.branch) & (_SEGMENT.last <= schema.branch.c.applied)
    query = select(_SEGMENT.arrival, _SEGMENT.commits, _SEGMENT.branch, _SEGMENT.first, _SEGMENT.last).join(schema.branch, applied)
    stretch: list[_Run] = []
    ops = arrival = 0
    while rows := state.connection.execute(
        query.where(_SEGMENT.arrival > arrival).order_by(_SEGMENT.arrival).limit(STRETCH_SEGMENTS)
    ).all():
        for row in rows:
            stretch.append(_Run(row.branch, row.first, row.last))
            ops += row.last - row.first + 1
            if ops >= (STRETCH_OPS if row.commits else 8 * STRETCH_OPS):
                yield stretch
                stretch, ops = [], 0
        arrival = rows[-1].arrival
    yield stretch
