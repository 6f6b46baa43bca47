"""A dataset from publish at atlas to visible at cms, beside the rows alone (bridge_floors) and beside the stock client that copies it.

On PostgreSQL seconds are those of the clock, since another process works too; on SQLite those of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import bridge_floors as floors
from benchmarks import instances
from benchmarks.bridge_capture import SQLITE_BATCH, core_writes
from benchmarks.instances import SCOPE, SEED, count, fill, settle_disk, sow, timed
from benchmarks.rows import Row, Spent, median

NAMES_PG = ("materialise_vs_floor_pg", "materialise_with_log_vs_floor_pg", "end_to_end_files_per_s_pg")
NAMES_SQLITE = (
    "materialise_vs_executemany_sqlite",
    "materialise_vs_insert_select_sqlite",
    "materialise_with_log_vs_executemany_sqlite",
    "materialise_with_log_vs_rucio_core_sqlite",
    "end_to_end_files_per_s_sqlite",
)
NAMES_CLIENT = ("materialise_vs_client_copy_pg",)
ROUNDS = 3
CLIENT_ROUNDS = 2
"""Of the bridge, before the client and after it."""
CLIENT_FILES_MAX, CORE_FILES_MAX = 5000, 5000
WHOLE = "log, state, catalogue, rows and COMMIT"

Opener = Callable[[str, Sequence[str], Any], AbstractContextManager[Any]]
"""Of an instance: its name, what it shares, and the database to copy, None for a new one."""

Timed = Callable[[Any, Callable[[], object]], Spent]


def measure_pg(directory: Path, entries: int) -> Iterator[Row]:
    n = instances.files_of(entries)
    found = against_floors(n, _postgres)
    way, floor = min(((way, spent.wall_s) for way, spent in found.floors.items()), key=lambda pair: pair[1])
    beside = f"{way} of the rows: {n / floor:,.0f} a second"
    for name, spent, of in zip(NAMES_PG, (found.alone, found.whole), ("Materialise alone", WHOLE)):
        in_cpu = found.floors[way].cpu_s / spent.cpu_s
        what = f"of its rate; {n:,} files of three rows, {of}: {n / spent.wall_s:,.0f} files a second; in CPU seconds {in_cpu:.3g}"
        yield Row(name, floor / spent.wall_s, what, beside)
    what = f"files a second, from the outbox through two logs to visible at another; published and stored there: {n / found.published.wall_s:,.0f}"
    yield Row(NAMES_PG[2], n / (found.published.wall_s + found.whole.wall_s), what)


def measure_sqlite(directory: Path, entries: int) -> Iterator[Row]:
    n = instances.files_of(entries)
    found = against_floors(n, lambda name, shared, like: instances.on_sqlite(directory, name, shared, like))
    for name, spent, of, way in zip(
        NAMES_SQLITE,
        (found.alone, found.alone, found.whole),
        ("Materialise alone", "Materialise alone", WHOLE),
        (floors.EXECUTEMANY, floors.INSERT_SELECT, floors.EXECUTEMANY),
    ):
        floor = found.floors[way]
        what = f"of its rate in CPU seconds; {n:,} files of three rows, {of}: {n / spent.cpu_s:,.0f} files a CPU second"
        yield Row(name, floor.cpu_s / spent.cpu_s, what, f"{way} of the rows: {n / floor.cpu_s:,.0f} a second")
    with instances.on_sqlite(directory, "cms") as core:
        m = min(n, CORE_FILES_MAX)
        theirs = m / sum(spent.cpu_s for spent in core_writes(core, instances.files(m), SQLITE_BATCH))
    ours = n / found.whole.cpu_s
    yield Row(NAMES_SQLITE[3], ours / theirs, f"times its rate in CPU seconds; {WHOLE}", f"Rucio's core: {theirs:,.0f} files a CPU second")
    cpu_s = found.published.cpu_s + found.whole.cpu_s
    yield Row(NAMES_SQLITE[4], n / cpu_s, "files a CPU second, from the outbox through two logs to visible at another")


def measure_client(directory: Path, entries: int) -> Iterator[Row]:
    from benchmarks.bridge_client import copied_per_s

    n, m = instances.files_of(entries), max(instances.FILES_MIN, min(entries // 50, CLIENT_FILES_MAX))
    turns = []
    with crossing(n, _postgres) as (published, ready):
        for turn in range(CLIENT_ROUNDS):
            with instances.on_postgres("cms", (), ready) as cms:
                turns.append(apply(cms, n).whole)
            if turn == 0:
                theirs = copied_per_s(directory, m)
    took = median(turns).wall_s
    ours, whole = n / took, n / (took + published.wall_s)
    what = f"times its rate: {ours:,.0f} of {n:,} files a second ({WHOLE}); from the outbox on {whole / theirs:.3g}"
    yield Row(
        NAMES_CLIENT[0], ours / theirs, what, f"the stock client between two servers, 1000 of {m:,} files a call: {theirs:,.0f} a second"
    )


def _postgres(name: str, shared: Sequence[str], like: Any) -> AbstractContextManager[Any]:
    return instances.on_postgres(name, shared, like or "rucio")


# ---- the subject


class Turn(NamedTuple):
    """A changeset applied: the seconds in which rows were written, and those of the whole transaction."""

    alone: Spent
    whole: Spent


class Found(NamedTuple):
    """Medians: of what the bridge took, from the outbox to stored at the other and from there to visible, and of the floors."""

    published: Spent
    alone: Spent
    whole: Spent
    floors: dict[str, Spent]


def against_floors(n: int, opened: Opener) -> Found:
    """`n` files applied and written bare in turn, each time in a new copy of the same database."""
    with crossing(n, opened) as (published, ready):
        turns: list[Turn] = []
        bare: dict[str, list[Spent]] = {}
        for _ in range(ROUNDS):
            with opened("cms", (), ready) as cms:
                turns.append(apply(cms, n))
                rows = floors.exported(cms)
            for way in floors.WAYS[cms.engine.dialect.name]:
                with opened("cms", (), ready) as floor:
                    floors.bare(floor)
                    bare.setdefault(way, []).append(floors.write(floor, rows, way))
                    assert count(floor) == n
    alone, whole = (median(spent) for spent in zip(*turns))
    return Found(published, alone, whole, {way: median(spent) for way, spent in bare.items()})


@contextmanager
def crossing(n: int, opened: Opener, timed: Timed = timed) -> Iterator[tuple[Spent, Any]]:
    """A dataset of `n` files that atlas has published and cms has stored, not applied: the seconds from the outbox to there, and the
    database of cms, to be copied. Scope, accounts and RSE are there already, as after the first dataset."""
    with opened("atlas", (SCOPE,), None) as atlas, opened("cms", (), None) as cms:
        sow(atlas)
        atlas.work()
        cms.fetch(atlas)
        cms.work()
        assert count(cms, SEED) == 1
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
    return Turn(Spent(*map(sum, zip(*written))), whole)


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
