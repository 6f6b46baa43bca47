"""A measured number beside what it is compared with, the goals, and the files that both go to.

A row's ratio is that of its rate to the other's of the same run, so it says the same on a busy machine. What could not be
measured is a row too: it says why.
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Callable, NamedTuple, Optional

RESULTS = Path(__file__).with_name("results") / "latest.json"
DOCUMENT = Path(__file__).parent.parent / "docs" / "BENCHMARKS.md"
BEGIN, END = "<!-- measured: written by python -m benchmarks -->", "<!-- end of measured -->"


class Goal(NamedTuple):
    """`least` or `most`: what the row should reach or stay below."""

    least: Optional[float] = None
    most: Optional[float] = None

    def met(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def by(self, value: float) -> str:
        """How far `value` is on the right or wrong side."""
        bound = self.least if self.least is not None else self.most
        assert bound is not None
        return f"{'met' if self.met(value) else 'missed'} by {abs(value - bound) / bound:.0%}"

    def __str__(self) -> str:
        return f"≥ {number(self.least)}" if self.least is not None else f"≤ {number(self.most or 0)}"


GOALS: Mapping[str, Goal] = {
    "ingest_new_ops_per_s": Goal(least=60_000),
    "ingest_vs_executemany": Goal(least=0.6),
    "ingest_update_ops_per_s": Goal(least=15_000),
    "ingest_pg_vs_copy_floor": Goal(least=0.5),
    "delta_apply_vs_pycrdt": Goal(least=1),
    "delta_apply_vs_loro": Goal(least=1),
    "verify_ops_per_s": Goal(least=300_000),
    "rss_bytes_per_entry": Goal(most=20),
    "log_bytes_per_file_did": Goal(most=80),
    "catalogue_incremental_growth": Goal(most=1.5),
    "wire_hello_bytes": Goal(most=100),
    "wire_heads_bytes_per_author": Goal(most=30),
    "wire_behind_bytes_per_file_did": Goal(most=80),
    "wire_repair_bytes_n10m_d10": Goal(most=30_000),
    "wire_repair_bytes_n10m_d1k": Goal(most=600_000),
    "wire_repair_bytes_n10m_d100k": Goal(most=800_000),
    "wire_repair_round_trips": Goal(most=2.5),
    "catchup_vs_ingest": Goal(least=0.8),
    "loop_lag_p99_ms": Goal(most=100),
    "push_visible_p99_ms_8_nodes": Goal(most=1000),
    "materialise_vs_client_copy_pg": Goal(least=15),
    "materialise_vs_floor_pg": Goal(least=0.7),
    "materialise_with_log_vs_floor_pg": Goal(least=0.45),
    "materialise_vs_executemany_sqlite": Goal(least=0.7),
    "capture_trigger_share_pg": Goal(most=0.05),
    "rss_mib_1m_file_changeset": Goal(most=512),
    "idle_cycle_ms": Goal(most=20),
    "convergence_rounds_n3": Goal(most=4.6),
    "convergence_rounds_n8": Goal(most=6),
    "convergence_rounds_n20": Goal(most=7.3),
    "convergence_rounds_n50": Goal(most=8.6),
}


class Row(NamedTuple):
    """One measurement. `other` is the rival or floor, with the number that it reached in the same run."""

    name: str
    value: Optional[float]
    what: str
    other: str = ""
    other_value: Optional[float] = None
    not_run: str = ""

    @property
    def ratio(self) -> Optional[float]:
        return self.value / self.other_value if self.value is not None and self.other_value else None


def not_run(names: Iterable[str], why: str) -> list[Row]:
    return [Row(name, None, "", not_run=why) for name in names]


# ---- measuring


class Spent(NamedTuple):
    """Seconds of this process, and of the clock."""

    cpu_s: float
    wall_s: float


def timed(work: Callable[[], object]) -> Spent:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Spent(time.process_time() - cpu, time.perf_counter() - wall)


def interleaved(subjects: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Spent]:
    """The median of each subject's seconds, over rounds in which all of them work in turn."""
    runs: dict[str, list[Spent]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, work in subjects.items():
            runs[name].append(timed(work))
    return {name: median(spent) for name, spent in runs.items()}


def median(spent: Sequence[Spent]) -> Spent:
    return Spent(*(statistics.median(column) for column in zip(*spent)))


# ---- writing


def write(rows: Sequence[Row], entries: int, families: Iterable[str], command: str, document: bool) -> None:
    """The numbers to latest.json, beside what is there of other rows; the table to the document."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known.update({f"{family}.entries": entries for family in families})
    for row in rows:
        known.update(flat(row))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
    if document:
        text = DOCUMENT.read_text()
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        DOCUMENT.write_text(f"{before}{BEGIN}\n{machine(command)}\n\n{table(rows)}\n{END}{after}")


def flat(row: Row) -> dict[str, float]:
    if row.value is None:
        return {}
    found = {row.name: row.value}
    if row.other_value is not None and row.ratio is not None:
        found |= {f"{row.name}.beside": row.other_value, f"{row.name}.ratio": row.ratio}
    return {name: float(f"{value:.5g}") for name, value in found.items()}


def table(rows: Sequence[Row]) -> str:
    lines = ["| name | measured | beside | ratio | goal | |", "|---|---|---|---|---|---|"]
    for row in rows:
        goal = GOALS.get(row.name)
        if row.value is None:
            lines.append(f"| `{row.name}` | not run: {row.not_run} | | | {goal or ''} | |")
            continue
        beside = f"{number(row.other_value)} {row.other}" if row.other_value is not None else row.other
        ratio = f"{row.ratio:.3g}" if row.ratio is not None else ""
        lines.append(
            f"| `{row.name}` | {number(row.value)} {row.what} | {beside} | {ratio} | {goal or ''} | {goal.by(row.value) if goal else ''} |"
        )
    return "\n".join(lines)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def machine(command: str) -> str:
    versions = " · ".join(
        f"{name} {_version(name)}" for name in ("sqlalchemy", "msgpack", "pynacl", "zstandard", "pycrdt", "loro", "psycopg")
    )
    return (
        f"`{command}` on {date.today()}: {_processor()}, {os.cpu_count()} CPUs, {_memory_gib():.0f} GiB, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version} · {versions}"
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
