"""Ingest into PostgreSQL beside COPY of the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.floors import write_again
from benchmarks.ingest import ingest
from benchmarks.rows import Row, median, not_run, timed
from benchmarks.streams import CHANGESET_OPS, Federation
from benchmarks.subject import Store

NAMES = ("ingest_pg_new_ops_per_s", "ingest_pg_vs_copy_floor")
ENTRIES_MAX = 1_000_000
ROUNDS = 3


def measure(directory: Path, entries: int) -> Iterator[Row]:
    from tests.support.postgres import NoServer, serve

    n = min(entries // 5, ENTRIES_MAX)
    stream = Federation(directory, 3).publish_new(n)
    ours, floor = [], []
    try:
        with serve(durable=True, settings={"max_wal_size": "4GB"}) as server:
            for _ in range(ROUNDS if n <= 10_000 else 1):
                with server.database() as here, server.database() as there:
                    store, target = Store(here), Store(there)
                    ours.append(timed(lambda: ingest(store, stream, catalogue=False)))  # noqa: B023
                    floor.append(write_again(store.engine, target.engine, -(-n // CHANGESET_OPS)))
                    store.close()
                    target.close()
    except NoServer as error:
        yield from not_run(NAMES, str(error).splitlines()[0])
        return
    rate, bare = n / median(ours).wall_s, n / median(floor).wall_s
    yield Row("ingest_pg_new_ops_per_s", rate, "file DIDs a second, verified and durable", "COPY of the rows", bare)
    yield Row("ingest_pg_vs_copy_floor", rate / bare, "of its rate")
