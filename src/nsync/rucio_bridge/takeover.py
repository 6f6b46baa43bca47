"""Several nodes of one instance on one PostgreSQL database: a node that stopped amid a transaction does not stop the others.

A killed node's transactions end with its connections. One that is stopped, paused or cut off with its machine keeps its connections,
and with them perhaps the turn to write. So every node introduces its connections by a name of its own (`introduce`), the others see in
`pg_stat_activity` when the server heard of that name last (its watch asks five times a second, and its look at the others every two
seconds, from a thread that does nothing else that takes long), and end the sessions of one that
is silent amid a transaction (`end_silent`). Nothing is decided by this but when to try again: what is ended is rolled back, and a node
that only seemed silent begins its transaction anew.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from typing import Any

from sqlalchemy import Engine, event, text

LOG = logging.getLogger(__name__)

SILENT_S = 10
"""Longer than a machine that is busy keeps a node from asking, and shorter than a writer waits for its turn."""

LOOK_S = 2.0
"""Between two looks at the others."""

PREFIX = "rucio-nsync "
NAME = f"{PREFIX}{secrets.token_hex(6)} {os.getpid()} {socket.gethostname()}"[:63]
"""Of this process, and of no other: process ids and host names need not differ between containers. PostgreSQL keeps 63 bytes."""

_SILENT = text(
    "WITH heard AS (SELECT application_name, max(greatest(query_start, state_change)) AS last FROM pg_stat_activity "
    "WHERE starts_with(application_name, :prefix) GROUP BY application_name) "
    "SELECT a.pid, a.application_name AS name, extract(epoch FROM clock_timestamp() - heard.last) AS seconds "
    "FROM pg_stat_activity a JOIN heard USING (application_name) WHERE a.datname = current_database() AND a.xact_start IS NOT NULL "
    "AND a.application_name <> :me AND heard.last < clock_timestamp() - make_interval(secs => :silent_s)"
)


def introduce(engine: Engine) -> None:
    """Let every connection from now on carry the name of this process."""
    if engine.dialect.name == "postgresql" and not event.contains(engine, "connect", _introduced):
        event.listen(engine, "connect", _introduced)
        engine.dispose()


def _introduced(connection: Any, _: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('application_name', %s, false)", [NAME])
    connection.commit()


def end_silent(engine: Engine) -> int:
    """End the sessions of other nodes that are silent amid a transaction; returns how many."""
    if engine.dialect.name != "postgresql":
        return 0
    with engine.connect() as connection:
        found = connection.execute(_SILENT, {"prefix": PREFIX, "me": NAME, "silent_s": SILENT_S}).all()
        for row in found:
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": row.pid})
    for name, seconds in sorted({row.name: row.seconds for row in found}.items()):
        LOG.warning(
            "the node %s is silent for %d s amid a transaction: its session is ended, and what it was about to write undone",
            name[len(PREFIX) :],
            seconds,
        )
    return len(found)
