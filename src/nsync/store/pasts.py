"""Pasts from the database, loaded pair by pair as readings ask, for the length of one transaction (crdt.past)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional

from sqlalchemy import Connection, func, insert, select

from nsync.crdt.past import Dot, Pasts, Step
from nsync.store import schema

_STEP = schema.step.c


class SqlPasts:
    """`Past` over `nsync_step`. Only pairs of authors that meet on a key are ever read."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loaded: dict[tuple[bytes, bytes], Pasts] = {}

    def seen_from(self, author: bytes, dot: Dot) -> Optional[int]:
        pair = (author, dot.author)
        if pair not in self._loaded:
            rows = self._connection.execute(select(_STEP.position, _STEP.seq).where(_STEP.author == author, _STEP.other == dot.author))
            self._loaded[pair] = Pasts(Step(author, position, dot.author, seq) for position, seq in rows)
        return self._loaded[pair].seen_from(author, dot)

    def at(self, dot: Dot) -> dict[bytes, int]:
        """What the op at `dot` had seen of each other author."""
        query = select(_STEP.other, func.max(_STEP.seq)).where(_STEP.author == dot.author, _STEP.position <= dot.seq).group_by(_STEP.other)
        return {other: seq for other, seq in self._connection.execute(query)}

    def add(self, steps: Iterable[Step]) -> None:
        """Store the steps of a segment that is being applied."""
        rows = [step._asdict() for step in steps]
        if rows:
            self._connection.execute(insert(schema.step), rows)
        for row in rows:
            self._loaded.pop((row["author"], row["other"]), None)
