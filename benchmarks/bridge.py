"""A dataset from publish at atlas to visible at cms, beside the rows alone.

The floor: exactly the rows of dids, contents and replicas that Materialise wrote, into the same tables with their indexes and foreign
keys, in one transaction, committed: a database equal to that of cms but without nsync's triggers. The rows lie ready, in a temporary table for
INSERT … SELECT, as the bytes of a binary COPY, or as bound tuples for executemany.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import instances
from benchmarks.instances import DATASET, SCOPE, TABLES, count, fill, settle_disk, sow, timed
from benchmarks.rows import Row, Spent, median

NAMES_PG = ("materialise_vs_floor_pg", "materialise_with_log_vs_floor_pg", "end_to_end_files_per_s_pg")
NAMES_SQLITE = ("materialise_vs_executemany_sqlite", "materialise_vs_insert_select_sqlite")
ROUNDS = 3


def measure_pg(directory: Path, entries: int) -> Iterator[Row]:
    n = instances.files_of(entries)
    with crossing(n, lambda name, shared, like: instances.on_postgres(name, shared, like or "rucio")) as (published, ready):
        ours: list[Turn] = []
        floors: dict[str, list[Spent]] = {"INSERT … SELECT": [], "COPY": []}
        for _ in range(ROUNDS):
            with instances.on_postgres("cms", (), ready) as cms:
                ours.append(apply(cms, n))
                if len(ours) == 1:
                    rows = exported(cms)
            for way, write in (("INSERT … SELECT", insert_staged), ("COPY", copy_in)):
                with instances.on_postgres("cms", (), ready) as floor:
                    bare(floor)
                    floors[way].append(write(floor, rows))
                    assert count(floor) == n
    way, floor = min(((way, median(spent)) for way, spent in floors.items()), key=lambda pair: pair[1].wall_s)
    alone, whole = median([turn.alone for turn in ours]), median([turn.whole for turn in ours])
    beside = f"{way} of the rows: {n / floor.wall_s:,.0f} a second"
    for name, ours_s, of in zip(NAMES_PG, (alone, whole), ("Materialise alone", "log, state, catalogue, rows and COMMIT")):
        what = f"of its rate; {n:,} files of three rows, {of}: {n / ours_s.wall_s:,.0f} files a second; in CPU seconds {floor.cpu_s / ours_s.cpu_s:.3g}"
        yield Row(name, floor.wall_s / ours_s.wall_s, what, beside)
    took = published.wall_s + whole.wall_s
    what = f"files a second, from the outbox ({n / published.wall_s:,.0f} with fetch) through log and transfer to visible at another"
    yield Row("end_to_end_files_per_s_pg", n / took, what)


# ---- the subject


class Turn:
    """A changeset applied: the seconds in which rows were written, and those of the whole transaction."""

    def __init__(self, alone: Spent, whole: Spent) -> None:
        self.alone, self.whole = alone, whole


Opener = Callable[[str, tuple[str, ...], Any], Any]


@contextmanager
def crossing(n: int, opened: Opener) -> Iterator[tuple[Spent, Any]]:
    """A dataset of `n` files that atlas has published and cms has stored, not applied: the seconds from the outbox to there, and the
    database of cms, to be copied. Scope, accounts and RSE are there already, as after the first dataset."""
    with opened("atlas", (SCOPE,), None) as atlas, opened("cms", (), None) as cms:
        sow(atlas)
        atlas.work()
        cms.fetch(atlas)
        cms.work()
        assert count(cms, "seed") == 1
        fill(atlas, instances.files(n))
        settle_disk(atlas)

        def publish() -> None:
            atlas.work()
            cms.fetch(atlas)

        yield timed(atlas, publish), instances.keep(cms)


def apply(cms: Any, n: int) -> Turn:
    """What waits at `cms`, applied."""
    settle_disk(cms)
    written = timing(cms)
    whole = timed(cms, cms.work)
    assert count(cms) == n and not cms.parked(), cms.parked()
    return Turn(Spent(sum(s.cpu_s for s in written), sum(s.wall_s for s in written)), whole)


def timing(instance: Any) -> list[Spent]:
    """The seconds of each call by which the bridge of `instance` writes rows, from now on."""
    bridge, spent = instance.bridge, []
    write = bridge._materialise

    def watched(*arguments: Any) -> bool:
        done: list[bool] = []
        spent.append(timed(instance, lambda: done.append(write(*arguments))))
        return done[0]

    bridge._materialise = watched
    return spent


# ---- the floors


def exported(cms: Any) -> dict[str, bytes]:
    """What was written of the dataset, table by table, as COPY gives it."""
    found = {}
    with closing(cms.engine.raw_connection()) as connection, connection.cursor() as cursor:
        for table in TABLES:
            with cursor.copy(f"COPY (SELECT * FROM {table} WHERE {_of_dataset(table)}) TO STDOUT (FORMAT BINARY)") as copy:
                found[table] = b"".join(map(bytes, copy))
    return found


def _of_dataset(table: str) -> str:
    return f"name = '{DATASET}'" if table == "contents" else "name NOT LIKE 'seed%'"


def bare(instance: Any) -> None:
    """Without nsync's triggers."""
    from nsync.rucio_bridge import triggers
    from nsync.store.database import writing

    with writing(instance.engine) as connection:
        triggers.remove(connection)


def insert_staged(instance: Any, rows: dict[str, bytes]) -> Spent:
    def insert(cursor: Any) -> None:
        for table in TABLES:
            cursor.execute(f"INSERT INTO {table} SELECT * FROM staged_{table}")

    return _committed(instance, rows, insert, stage=True)


def copy_in(instance: Any, rows: dict[str, bytes]) -> Spent:
    def copy(cursor: Any) -> None:
        for table in TABLES:
            _copy(cursor, table, rows[table])

    return _committed(instance, rows, copy, stage=False)


def _committed(instance: Any, rows: dict[str, bytes], write: Callable[[Any], None], stage: bool) -> Spent:
    with closing(instance.engine.raw_connection()) as connection, connection.cursor() as cursor:
        for table in TABLES if stage else ():
            cursor.execute(f"CREATE TEMPORARY TABLE staged_{table} (LIKE {table})")
            _copy(cursor, f"staged_{table}", rows[table])
            cursor.execute(f"ANALYZE staged_{table}")
        connection.commit()
        settle_disk(instance)

        def work() -> None:
            write(cursor)
            connection.commit()

        return timed(instance, work)


def _copy(cursor: Any, table: str, rows: bytes) -> None:
    with cursor.copy(f"COPY {table} FROM STDIN (FORMAT BINARY)") as copy:
        copy.write(rows)
