"""Verified, durable ingest into SQLite beside its floor and its rivals, what it costs on disk, and how the catalogue keeps up."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import rivals
from benchmarks.floors import write_again
from benchmarks.memory import in_own_process, resident_bytes_max
from benchmarks.rows import Row, Spent, median, number, say, timed
from benchmarks.streams import CHANGESET_OPS, Federation, Stream, batches
from benchmarks.subject import Store

NAMES = (
    "ingest_new_ops_per_s",
    "ingest_vs_executemany",
    "ingest_new_files_per_s",
    "ingest_files_vs_executemany",
    "ingest_stored_files_per_s",
    "disk_overhead_bytes_per_op",
    "ingest_update_ops_per_s",
    "catalogue_rebuild_ops_per_s",
    "apply_update_ops_per_s",
    "delta_apply_vs_pycrdt",
    "delta_apply_vs_loro",
    "catalogue_incremental_ms_per_1k_ops",
    "catalogue_incremental_growth",
    "rss_bytes_per_entry",
)
DELTAS = 3
CATALOGUE_CHANGESETS = 9
CATALOGUE_OPS = 1000


def measure(directory: Path, entries: int) -> Iterator[Row]:
    """The rows at `entries` file DIDs."""
    federation = Federation(directory, 1)
    stream = federation.publish_new(entries)
    say(f"{stream.ops:,} ops of {stream.raw_bytes / stream.ops:.0f} bytes are signed")
    yield from apart(directory, entries)
    yield from new(directory, stream, rounds=3 if entries <= 50_000 else 1)
    store = Store(_url(directory, "store"))
    yield from deltas(store, federation, entries)
    yield from shown(store, federation, stream)
    yield from catalogue(directory, store, federation, entries, small=min(100_000, entries // 10))
    store.close()
    yield from memory(directory, stream)


def apart(directory: Path, entries: int) -> Iterator[Row]:
    """Ingest ops of one statement each, beside writing the same rows."""
    stream = Federation(directory, 4).publish_new(entries, apart=True)
    spent, bare, _ = beside(directory, stream, rounds=3 if entries <= 200_000 else 1)
    what = "ops of one statement a second, verified, durable and joined into the state"
    yield Row("ingest_new_ops_per_s", stream.ops / spent.wall_s, what, "executemany of the rows", stream.ops / bare.wall_s)
    yield Row("ingest_vs_executemany", bare.cpu_s / spent.cpu_s, "of its rate, in CPU seconds")
    stream.path.unlink()


def new(directory: Path, stream: Stream, rounds: int) -> Iterator[Row]:
    """Ingest files with all that is known of them. The last round's database stays."""
    spent, bare, stored = beside(directory, stream, rounds)
    what = "file DIDs a second, with identity, parent and replica in one op; the catalogue comes after"
    yield Row("ingest_new_files_per_s", stream.ops / spent.wall_s, what, "executemany of the rows", stream.ops / bare.wall_s)
    yield Row("ingest_files_vs_executemany", bare.cpu_s / spent.cpu_s, "of its rate, in CPU seconds")
    what = "of them a second verified and durable, which is when peers are told; the rest is applying"
    yield Row("ingest_stored_files_per_s", stream.ops / stored, what)
    sizes = [(directory / f"{name}.db").stat().st_size for name in ("store", "floor")]
    over, under = ((size - stream.raw_bytes) / stream.ops for size in sizes)
    yield Row("disk_overhead_bytes_per_op", over, "bytes of SQLite's file beyond the ops", "executemany of the rows", under)


def beside(directory: Path, stream: Stream, rounds: int) -> tuple[Spent, Spent, float]:
    """What it takes to ingest `stream`, and to write the same rows; and the seconds until all was stored."""
    ours, floor, storing = [], [], []
    for _ in range(rounds):
        for name in ("store", "floor"):
            for path in directory.glob(f"{name}.db*"):
                path.unlink()
        store, target = Store(_url(directory, "store")), Store(_url(directory, "floor"))
        ours.append(timed(lambda: ingest(store, stream, catalogue=False)))  # noqa: B023
        storing.append(store.storing_s)
        floor.append(write_again(store.engine, target.engine, -(-stream.ops // CHANGESET_OPS)))
        store.close()
        target.close()
    return median(ours), median(floor), statistics.median(storing)


def shown(store: Store, federation: Federation, stream: Stream) -> Iterator[Row]:
    """What the catalogue costs: derived once for all, and kept up with each changeset."""
    spent = timed(store.rebuild)
    yield Row("catalogue_rebuild_ops_per_s", stream.ops / spent.wall_s, "file DIDs a second, from the state to entries and conflicts")
    updates = federation.publish_updates(min(10_000, stream.ops // 10))
    spent = timed(lambda: ingest(store, updates))
    yield Row("apply_update_ops_per_s", updates.ops / spent.wall_s, "updates a second: verified, durable, and shown in the catalogue")


def ingest(store: Store, stream: Stream, catalogue: bool = True) -> None:
    done = store.ingest(batches(stream.path), catalogue)
    assert done == stream.ops, f"{done} of {stream.ops} ops were applied"


def deltas(store: Store, federation: Federation, entries: int) -> Iterator[Row]:
    """One entry in a hundred changes: through signatures, log and state here, in memory at the rivals."""
    streams = [federation.publish_updates(entries // rivals.CHANGED) for _ in range(DELTAS)]
    spent = [timed(lambda: ingest(store, stream, catalogue=False)) for stream in streams]  # noqa: B023
    rate = Spent(*(statistics.median(s.ops / took for s, took in zip(streams, column)) for column in zip(*spent)))
    yield Row("ingest_update_ops_per_s", rate.wall_s, f"updates a second at {entries:,} entries, verified and durable")
    for name in rivals.RIVALS:
        row = f"delta_apply_vs_{name}"
        if why := rivals.absent(name):
            yield Row(row, None, "", not_run=why)
            continue
        rival = rivals.measured(name, min(entries, rivals.ENTRIES_MAX)).delta_apply
        yield Row(row, rate.cpu_s / rival, f"of {name}'s {number(rival)} updates a CPU second, in memory")


def catalogue(directory: Path, store: Store, federation: Federation, entries: int, small: int) -> Iterator[Row]:
    """Changesets of a thousand updates, in turn in a large and in a small database."""
    other = Federation(directory, 2, sampled=max(1, small // (2 * CATALOGUE_OPS)))
    little = Store(_url(directory, "small"))
    ingest(little, other.publish_new(small))
    times: dict[str, list[float]] = {"large": [], "small": []}
    for _ in range(CATALOGUE_CHANGESETS):
        for name, where, authors in (("large", store, federation), ("small", little, other)):
            times[name] += _apply_times(where, authors.publish_updates(CATALOGUE_OPS, CATALOGUE_OPS))
    little.close()
    large, smaller = (statistics.median(found) for found in (times["large"], times["small"]))
    yield Row("catalogue_incremental_ms_per_1k_ops", large, f"CPU ms at {entries:,} entries", f"at {small:,} entries", smaller)
    yield Row("catalogue_incremental_growth", large / smaller, f"of the time at {small:,} entries")


def _apply_times(store: Store, stream: Stream) -> list[float]:
    """CPU milliseconds per 1000 ops of each changeset."""
    for batch in batches(stream.path):
        store.store(batch)
    found: list[float] = []
    ops = 0

    def apply() -> None:
        nonlocal ops
        ops = store.apply_one() or 0

    while True:
        spent = timed(apply)
        if not ops:
            return found
        found.append(spent.cpu_s * 1e6 / ops)


def memory(directory: Path, stream: Stream) -> Iterator[Row]:
    """What each entry adds once caches are full: between a quarter of the stream and its end."""
    quarter, end = in_own_process(__name__, _url(directory, "memory"), stream.path, stream.ops)
    what = f"bytes of memory; {end >> 20} MiB after {stream.ops:,} ops"
    yield Row("rss_bytes_per_entry", max(0.0, (end - quarter) / (stream.ops * 3 / 4)), what)


def grow(url: str, path: Path, ops: int) -> tuple[int, int]:
    """The most memory that this process had after a quarter of the stream, and at its end."""
    store, done, quarter = Store(url), 0, 0
    for batch in batches(path):
        done += store.ingest([batch], catalogue=False)
        if not quarter and done >= ops / 4:
            quarter = resident_bytes_max()
    return quarter, resident_bytes_max()


def _url(directory: Path, name: str) -> str:
    return f"sqlite:///{directory / name}.db"


if __name__ == "__main__":
    print(json.dumps(grow(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
