"""What stands in the nsync tables, counted: for `nsync status`, logs and tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Optional

from sqlalchemy import Connection, func, select

from nsync.authority.charter import Charter
from nsync.catalogue.entries import Conflict
from nsync.log.stored import Head, PeerRecord
from nsync.namespace import fields
from nsync.namespace.keys import Key
from nsync.store import schema
from nsync.store.keyed import key_in

_BRANCH = schema.branch.c

KINDS = {1: "scopes", 2: "dids", 3: "attachments", 5: "rses", 6: "replicas"}


class LogStatus(NamedTuple):
    """How far one author's log has come here."""

    author: bytes
    stored: int
    """seq of the last stored op."""
    applied: int
    """seq of the last applied op."""
    refused: Optional[str]
    """Why nothing of the log is applied from some segment on; None in the normal case."""


class Status(NamedTuple):
    """One instance at a glance."""

    logs: tuple[LogStatus, ...]
    shown: dict[str, int]
    """Entries of the catalogue by kind."""
    conflicts: int
    parked: int
    outbox: int
    """Captured rows that are not published yet."""


def status(connection: Connection) -> Status:
    """Count, in a handful of queries."""
    logs: dict[bytes, LogStatus] = {}
    for row in connection.execute(select(_BRANCH.author, _BRANCH.last, _BRANCH.applied, _BRANCH.refused).order_by(_BRANCH.author)):
        held = logs.get(row.author, LogStatus(row.author, 0, 0, None))
        logs[row.author] = LogStatus(row.author, max(held.stored, row.last), max(held.applied, row.applied), held.refused or row.refused)
    shown = {kind: count for kind, count in connection.execute(select(schema.entry.c.kind, func.count()).group_by(schema.entry.c.kind))}
    return Status(
        tuple(logs.values()),
        {name: shown.get(kind, 0) for kind, name in KINDS.items()},
        *(
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (schema.conflict, schema.parked, schema.outbox)
        ),
    )


class Progress(NamedTuple):
    """How far this instance is with all that it and its peers have."""

    segments: int
    """That are stored here."""
    stored: int
    """Ops."""
    applied: int
    known: int
    """Ops that somebody has, of whom it was heard."""

    @property
    def behind(self) -> bool:
        """Whether something is missing here, or waits."""
        return min(self.stored, self.applied) < self.known

    def __str__(self) -> str:
        share = 100 / max(self.known, 1)
        return (
            f"{self.segments} segments, {self.stored} of {self.known} ops stored ({self.stored * share:.1f} %), "
            f"{self.applied} applied ({self.applied * share:.1f} %)"
        )


def believed(records: Iterable[PeerRecord], charter: Charter) -> list[Head]:
    """What peers have told of the charter's logs. Of one that answers, and with whom every exchange fails all the same, nothing: it may
    tell of what does not exist."""
    return [
        head
        for record in records
        if not (record.failures and (record.contact_ms or 0) > (record.since_ms or 0))
        for head in record.heads or ()
        if charter.life(head.author) is not None
    ]


def progress(connection: Connection, theirs: Iterable[Head]) -> Progress:
    """Compare the logs here with the heads that peers told, of which some are `believed`."""
    ends: dict[bytes, int] = {}
    applied: dict[bytes, int] = {}
    for row in connection.execute(select(_BRANCH.author, _BRANCH.last, _BRANCH.applied)):
        ends[row.author] = max(ends.get(row.author, 0), row.last)
        applied[row.author] = max(applied.get(row.author, 0), row.applied)
    known = dict(ends)
    for head in theirs:
        known[head.author] = max(known.get(head.author, 0), head.seq)
    segments = connection.execute(select(func.count()).select_from(schema.segment)).scalar_one()
    return Progress(segments, sum(ends.values()), sum(applied.values()), sum(known.values()))


def scopes(connection: Connection) -> list[str]:
    """The scopes that the catalogue shows."""
    query = select(schema.entry.c.scope).where(schema.entry.c.kind == fields.SCOPE).order_by(schema.entry.c.scope)
    return list(connection.execute(query).scalars())


def conflicts(connection: Connection) -> list[tuple[Key, Conflict]]:
    """Every conflict that the rules of the catalogue left behind, with what it is about."""
    rows = connection.execute(select(schema.conflict).order_by(schema.conflict.c.key, schema.conflict.c.loser))
    return [(key_in(row), Conflict(*(getattr(row, name) for name in Conflict._fields))) for row in rows]
