"""What a node would do now, found out by doing it in a transaction that is rolled back: `nsync serve --dry-run`.

What is signed in it is seen by nobody. It waits for its turn as the node's transactions do, and others wait for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from nsync.namespace.ops import Assert, Retract, decode_op
from nsync.rucio_bridge import parked
from nsync.rucio_bridge.bridge import Bridge
from nsync.store import schema
from nsync.store.log import Applied

MS_MAX = 20_000
"""Writers wait for their turn for 30 s."""

Counts = dict[str, int]


class Rehearsal(NamedTuple):
    """What would be done. Statements are counted by the kind of what they speak of."""

    published: Counts
    changesets: Counts
    """That would be applied, by the instance that signed them."""
    applied: Counts
    """The statements in these."""
    parked: list[tuple[str, str]]
    """What would be parked anew, with the reason."""
    is_all: bool
    """Whether that is all; else there was no time for more, or an audit waits for transactions of Rucio that run."""


def rehearse(bridge: Bridge, shared_scopes: Sequence[str], scope_map: Mapping[str, str], now_ms: int) -> Rehearsal:
    """Try what there is to do. Raises ConfigError in a Rucio whose schema is not known."""
    found: list[Rehearsal] = []

    def look(session: Session, done: list[Applied], is_all: bool) -> None:
        mine = [one for one in done if one.author == bridge.me.author]
        theirs = [one for one in done if one.author != bridge.me.author]
        changesets = Counter(bridge.authority.name(one.author) for one in theirs)
        waits = sorted(_waiting(session) - before)
        found.append(Rehearsal(_counts(session, mine), changesets, _counts(session, theirs), waits, is_all))

    with Session(bridge.engine) as session:
        before = _waiting(session)
    bridge.rehearse(shared_scopes, scope_map, now_ms, MS_MAX, look)
    return found[-1]


def _waiting(session: Session) -> set[tuple[str, str]]:
    return {(str(one.fact), one.reason) for one in parked.listing(session)}


def _counts(session: Session, changesets: Iterable[Applied]) -> Counts:
    found = Counter(kind for changeset in changesets for raw in _ops(session, changeset) for kind in _kinds(raw))
    return dict(sorted(found.items()))


def _ops(session: Session, changeset: Applied) -> Iterator[bytes]:
    op, branch = schema.op.c, schema.branch.c
    query = select(op.raw).join(schema.branch, branch.id == op.branch).where(branch.author == changeset.author)
    yield from session.execute(query.where(op.seq.between(changeset.first, changeset.last))).scalars()


def _kinds(raw: bytes) -> Iterator[str]:
    said = decode_op(raw)
    if not said:
        yield "acknowledgement"
    for one in said:
        if isinstance(one, (Assert, Retract)):
            yield f"{type(one.key).__name__.lower()}{' removed' if isinstance(one, Retract) else ''}"
        else:
            yield type(one).__name__.lower()
