"""Capture where triggers are not allowed: names of changed rows are found by their `updated_at` (R7.1).

A sweep looks through the tables of `captured.CAPTURED` for rows stamped since the last sweep began, less an *overlap*, and puts their
names into the outbox; the drain does the rest, as with triggers. Rucio stamps a row when it says INSERT or UPDATE, and shows it
at the commit; so the overlap must be longer than what Rucio commits slowly, and than clocks of its servers differ.

It promises less than triggers. Until the next audit nobody hears of what was deleted, of what committed later than the overlap allows,
of an update that changed no stamp; the audits that the operator's `audit_interval` asks for find all of it. What was changed
between two sweeps counts as changed at the second, hence as after what others said and was applied in between. What comes
from others never overwrites what was not heard of yet: a changeset is applied twice, first in vain for the names of what it would
change (`names`), and these rows are read and published before it is applied for good.

What the bridge itself wrote is found too, once for each sweep within the overlap, and says nothing when it is compared with the catalogue.

A sweep takes at most ROWS_MAX rows into one changeset, and goes on in the next transaction from a place that is kept: the mark moves in
the transaction that fills the outbox. Rows of Rucio have no index on `updated_at`, but for open data: a sweep reads the
tables from end to end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import NamedTuple, Optional

from sqlalchemy import Connection, DateTime, bindparam, column, insert, text

from nsync.namespace import fields
from nsync.rucio_bridge import audit
from nsync.rucio_bridge.captured import CAPTURED, Captured, OutboxRow, outbox_row, rse_ids
from nsync.store import kept, schema
from nsync.store.changes import Changes

ROWS_MAX = 20_000
"""What goes into the outbox at once. A transaction of Rucio that wrote more rows than this into tables that are swept comes in parts."""

_MARK = "polled"
"""The kept value: how far sweeps have come."""


class _Mark(NamedTuple):
    """What was stamped before `since_ms`, less the overlap, was looked at. A sweep that has a `table` goes on there, after a stamp."""

    since_ms: int
    began_ms: int = 0
    table: int = 0
    after: Optional[str] = None


class Polling(NamedTuple):
    """What an operator chooses."""

    interval_s: float
    """Between the beginnings of two sweeps."""
    overlap_s: float
    """Before the last sweep's beginning: from there on stamps are looked at."""


class Poll:
    """The polls of one process: when the next sweep is due, and its parts."""

    def __init__(self, polling: Polling) -> None:
        self._interval_ms, self._overlap_ms = int(polling.interval_s * 1000), int(polling.overlap_s * 1000)
        self._due_ms = -math.inf

    def is_due(self, now_ms: int) -> bool:
        """Whether a sweep is to begin or goes on. The first thing that a process does is to sweep."""
        return now_ms >= self._due_ms

    def swept(self, now_ms: int, goes_on: bool) -> None:
        """A part was swept, and is committed."""
        self._due_ms = -math.inf if goes_on else now_ms + self._interval_ms

    def sweep(self, connection: Connection, now_ms: int) -> bool:
        """Put the names of a sweep's next part into the outbox; returns whether there is more of it."""
        mark = _mark(connection)
        if mark is None:
            audit.ask(connection, "polls begin")
            mark = _Mark(now_ms)
        began_ms = mark.began_ms or now_ms
        since, after, room = _stamp(min(mark.since_ms, began_ms) - self._overlap_ms), mark.after, ROWS_MAX
        for place in range(mark.table, len(CAPTURED)):
            found, last = _named(connection, CAPTURED[place], since, after, room)
            if last is not None:
                _keep(connection, _Mark(mark.since_ms, began_ms, place, last))
                return True
            after, room = None, room - found
        _keep(connection, _Mark(began_ms))
        return False


def _named(connection: Connection, one: Captured, since: datetime, after: Optional[str], room: int) -> tuple[int, Optional[str]]:
    """How many rows were named, oldest first, and the last stamp where there may be more."""
    compared, values = ("r.updated_at >= :since", {"since": since})
    if after is not None:
        compared, values = ("r.updated_at > :since", {"since": datetime.fromisoformat(after)})
    where = f"{one.shared.format(row='r', schema='')} AND {compared}"
    found = _insert(connection, f"{one.named(where)} ORDER BY r.updated_at LIMIT {room}", values)
    if found < room:
        return found, None
    query = text(f"SELECT updated_at FROM {one.table} r WHERE {where} ORDER BY updated_at LIMIT 1 OFFSET {room - 1}")
    dated = query.bindparams(bindparam("since", type_=DateTime)).columns(column("updated_at", DateTime))
    last: datetime = connection.execute(dated, values).scalar_one()
    _insert(connection, one.named(where.replace(compared, "r.updated_at = :since")), {"since": last})  # all of the same stamp
    return found, last.isoformat()


def _insert(connection: Connection, sql: str, values: dict[str, datetime]) -> int:
    return connection.execute(text(sql).bindparams(bindparam("since", type_=DateTime)), values).rowcount


def _stamp(at_ms: int) -> datetime:
    """As Rucio stamps: UTC, without a zone."""
    return (datetime.fromtimestamp(0, timezone.utc) + timedelta(milliseconds=at_ms)).replace(tzinfo=None)


def _mark(connection: Connection) -> Optional[_Mark]:
    value = kept.read(connection, _MARK)
    return None if value is None else _Mark(*json.loads(value))


def _keep(connection: Connection, mark: _Mark) -> None:
    kept.write(connection, _MARK, json.dumps(mark).encode())


# ---- what is about to be overwritten


def names(connection: Connection, changes: Changes, instance: str) -> Sequence[OutboxRow]:
    """Those of the rows that `changes` are about."""
    rses = rse_ids(connection)
    kinds = range(fields.SCOPE, fields.ATTRIBUTE)
    found = (outbox_row(fact, instance, rses) for kind in kinds for part in changes.parts(kind) for fact in part)
    return [row for row in found if row is not None]


def tell(connection: Connection, rows: Sequence[OutboxRow]) -> None:
    """Put names into the outbox."""
    if rows:
        connection.execute(insert(schema.outbox), [dict(zip(("kind", *"abcd"), row)) for row in rows])
