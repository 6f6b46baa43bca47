"""What capture costs Rucio: its own core writes files into a dataset of a shared scope, with nsync's triggers and without.

A call is add_replicas and attach_dids, each in a transaction, as its server makes them. The two databases write in turn, and the medians
of their calls are compared. On PostgreSQL the server itself counts the time in the triggers' functions (track_functions).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import bridge_floors, instances
from benchmarks.instances import BATCH, DATASET, SCOPE, File
from benchmarks.rows import Row, Spent, timed

NAMES = ("capture_trigger_share_pg", "capture_wall_ratio_pg", "capture_wall_ratio_sqlite")
FILES_MAX = 20_000
SQLITE_BATCH = 500
"""Files in a call there, of which SQLite's parser bears no thousand in one condition of Rucio's."""

_IN_TRIGGERS = "SELECT coalesce(sum(total_time), 0) FROM pg_stat_user_functions WHERE funcname LIKE 'nsync_capture_%'"


def measure(directory: Path, entries: int) -> Iterator[Row]:
    made = instances.files(max(5 * BATCH, min(entries // 20, FILES_MAX)))
    with instances.on_postgres("atlas", [SCOPE]) as heard, instances.on_postgres("atlas", [SCOPE]) as unheard:
        instances.server().execute(f"ALTER DATABASE {heard.engine.url.database} SET track_functions = 'pl'")
        heard.engine.dispose()  # connections are new ones from here on
        ours, theirs = _in_turn(heard, unheard, made, BATCH)
        heard.engine.dispose()  # what a connection counted is told at its end
        in_triggers_s = float(heard.query(_IN_TRIGGERS)[0][0]) / 1000
        what = f"of the seconds of Rucio's core: {in_triggers_s:.3g} of {sum(ours):.3g} for {len(made):,} files, {BATCH:,} a call"
        yield Row(NAMES[0], in_triggers_s / sum(ours), what)
        yield _ratio(NAMES[1], ours, theirs, BATCH)
    with instances.on_sqlite(directory, "atlas", [SCOPE]) as heard, instances.on_sqlite(directory, "atlas", [SCOPE]) as unheard:
        yield _ratio(NAMES[2], *_in_turn(heard, unheard, made, SQLITE_BATCH), SQLITE_BATCH)


def _ratio(name: str, ours: Sequence[float], theirs: Sequence[float], batch: int) -> Row:
    with_them, without = statistics.median(ours), statistics.median(theirs)
    what = f"times the seconds of a call of {batch:,} files without triggers: {with_them:.3g} and {without:.3g}, medians of {len(ours)}"
    return Row(name, with_them / without, what)


def _in_turn(heard: Any, unheard: Any, made: Sequence[File], batch: int) -> tuple[list[float], list[float]]:
    """The seconds of each call, with triggers and without."""
    bridge_floors.bare(unheard)
    pairs = [(ours.wall_s, theirs.wall_s) for ours, theirs in zip(core_writes(heard, made, batch), core_writes(unheard, made, batch))]
    captured = heard.query("SELECT count(*) FROM nsync_outbox WHERE kind = 'replica'")[0][0]
    assert captured == len(made), f"{captured} replicas were captured"
    assert unheard.query("SELECT count(*) FROM nsync_outbox WHERE kind = 'replica'") == [(0,)]
    return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]


def core_writes(instance: Any, made: Sequence[File], batch: int) -> Iterator[Spent]:
    """Rucio's core writes a dataset of the files `made`: the seconds of each call of `batch`."""
    from rucio.common.types import InternalScope
    from rucio.core.replica import add_replicas
    from rucio.core.rse import get_rse_id
    from tests.support.instances import ROOT

    scope = InternalScope(SCOPE)
    instance.add_scope(SCOPE)
    instance.add_did(SCOPE, DATASET)
    for start in range(0, len(made), batch):
        files = made[start : start + batch]

        def write() -> None:
            rows = [{"scope": scope, **file._asdict()} for file in files]  # noqa: B023
            with instance.session() as session:
                add_replicas(get_rse_id("DISK", session=session), rows, ROOT, session=session)
            instance.attach(SCOPE, DATASET, [(SCOPE, file.name) for file in files])  # noqa: B023

        yield timed(write)
