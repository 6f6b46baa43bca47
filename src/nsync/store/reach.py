"""How far a peer is with some authors' logs, compared with what is stored here: from the heads that it told, never from counters.

same      its heads are these
behind    all of its heads are stored here, and some of these are not among them: it lacks `ops`
ahead     it has heads that are not stored here, `ops` further than these
apart     it has heads that are not stored here, and none of them is further: another branch of a fork
unknown   it has told none yet
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, Optional

from sqlalchemy import Connection

from nsync.log.stored import Head
from nsync.store import serving
from nsync.store.lines import SqlLines


class Reach(NamedTuple):
    """One peer, in some logs."""

    state: str
    ops: int = 0
    """How many the one of both lacks who is behind."""


def reach(connection: Connection, lines: SqlLines, authors: Collection[bytes], told: Optional[Sequence[Head]]) -> Reach:
    """How far the peer that told these heads is with the logs of `authors`."""
    if told is None:
        return Reach("unknown")
    mine = {head for head in serving.heads(lines) if head.author in authors}
    theirs = {head for head in told if head.author in authors}
    if mine == theirs:
        return Reach("same")
    more = serving.unknown(connection, lines, theirs)
    if more:
        ops = _beyond(more, mine)
        return Reach("ahead", ops) if ops else Reach("apart")
    return Reach("behind", _beyond(mine, theirs))


def _beyond(heads: Iterable[Head], others: Iterable[Head]) -> int:
    """How much further `heads` are than `others`, in ops."""
    ends, behind = _ends(heads), _ends(others)
    return sum(max(0, seq - behind.get(author, 0)) for author, seq in ends.items())


def _ends(heads: Iterable[Head]) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for head in heads:
        found[head.author] = max(head.seq, found.get(head.author, 0))
    return found
