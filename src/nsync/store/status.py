"""What stands in the nsync tables, counted: for `nsync status`, logs and tests."""

from __future__ import annotations

from typing import NamedTuple, Optional

from sqlalchemy import Connection, func, select

from nsync.catalogue.entries import Conflict
from nsync.namespace.keys import Key, from_key_bytes
from nsync.store import schema

_SEGMENT = schema.segment.c

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
    stored = connection.execute(select(_SEGMENT.author, func.max(_SEGMENT.last)).group_by(_SEGMENT.author).order_by(_SEGMENT.author))
    applied = {row.author: row.seq for row in connection.execute(select(schema.head.c.author, schema.head.c.seq))}
    refused_rows = connection.execute(
        select(_SEGMENT.author, func.min(_SEGMENT.reason)).where(_SEGMENT.reason.isnot(None)).group_by(_SEGMENT.author)
    )
    refused = {author: reason for author, reason in refused_rows}
    shown = {kind: count for kind, count in connection.execute(select(schema.entry.c.kind, func.count()).group_by(schema.entry.c.kind))}
    return Status(
        tuple(LogStatus(author, last, applied.get(author, 0), refused.get(author)) for author, last in stored),
        {name: shown.get(kind, 0) for kind, name in KINDS.items()},
        *(
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (schema.conflict, schema.parked, schema.outbox)
        ),
    )


def conflicts(connection: Connection) -> list[tuple[Key, Conflict]]:
    """Every conflict that the rules of the catalogue left behind, with what it is about."""
    rows = connection.execute(select(schema.conflict).order_by(schema.conflict.c.key, schema.conflict.c.loser))
    return [(from_key_bytes(row.key), Conflict(row.rule, row.winner, row.loser, row.resolve, row.stamps)) for row in rows]
