"""The bridge with much: a namespace published for the first time, a changeset of a million files, and nothing to do beside a million rows.

What is measured is a process of its own, which the database was made for, so that nothing else was in its memory:

    python -m benchmarks.bridge_scale publish DATABASE    # share a scope that is full, until idle; then turns with nothing to do
    python -m benchmarks.bridge_scale write STREAM FILES
    python -m benchmarks.bridge_scale receive DATABASE STREAM    # the changeset in a file of frames, until its rows are written
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import instances
from benchmarks.instances import SCOPE, count, fill, settle_disk, sow
from benchmarks.memory import in_own_process, resident_bytes_max
from benchmarks.rows import Row

NAMES_PUBLISH = ("first_publish_rows_per_s", "first_publish_rows_per_s_sqlite", "first_publish_rss_mib", "idle_cycle_ms")
NAMES_RECEIVE = ("rss_mib_1m_file_changeset",)

ROWS_A_FILE = 3
ROWS_MAX, ROWS_MIN = 1_000_000, 3000
RECEIVED_MAX, RECEIVED_MIN = 1_000_000, 1000
IDLE_TURNS = 200
MIB = 1 << 20


# ---- a namespace that was there before


def measure_publish(directory: Path, entries: int) -> Iterator[Row]:
    n = max(ROWS_MIN, min(entries // 10, ROWS_MAX)) // ROWS_A_FILE
    with instances.on_postgres("atlas") as atlas:
        on_postgres = _published(atlas, n)
    yield _publish_row(NAMES_PUBLISH[0], n, on_postgres)
    with instances.on_sqlite(directory, "atlas") as atlas:
        on_sqlite = _published(atlas, n)
    yield _publish_row(NAMES_PUBLISH[1], n, on_sqlite)
    peak = max(on_postgres["rss"], on_sqlite["rss"]) / MIB
    yield Row(
        NAMES_PUBLISH[2], peak, f"MiB at most, of the process that published them; it began with {on_postgres['rss_before'] / MIB:.0f}"
    )
    (worse, name), (better, _) = sorted(((on_postgres["idle_ms"], "PostgreSQL"), (on_sqlite["idle_ms"], "SQLite")), reverse=True)
    what = (
        f"ms for a look with nothing to do, {n * ROWS_A_FILE:,} rows shared, on {name}; on the other {better:.3g}; medians of {IDLE_TURNS}"
    )
    yield Row(NAMES_PUBLISH[3], worse, what)


def _publish_row(name: str, n: int, found: Mapping[str, float]) -> Row:
    what = f"rows of Rucio a second, {n:,} files of {ROWS_A_FILE} that were there before their scope was shared, {found['changesets']:.0f} changesets"
    return Row(name, n * ROWS_A_FILE / found["s"], what)


def _published(atlas: Any, n: int) -> dict[str, float]:
    sow(atlas)
    atlas.work()
    fill(atlas, instances.files(n))
    settle_disk(atlas)
    found = in_own_process("benchmarks.bridge_scale", "publish", _place(atlas))
    shown = atlas.query("SELECT count(*) FROM nsync_entry")[0][0]
    assert shown >= n * ROWS_A_FILE, f"{shown} of {n * ROWS_A_FILE} are shown"
    return dict(found)


def _place(instance: Any) -> str:
    if instance.engine.dialect.name == "sqlite":
        instance.checkpoint()
        return str(instance.path)
    return str(instances.server().url(instance.engine.url.database))


def _publish(place: str) -> dict[str, float]:
    atlas, before = _instance(place, "atlas"), resident_bytes_max()
    began, done = time.perf_counter(), 0
    atlas.bridge.share([SCOPE])
    while atlas.query("SELECT count(*) FROM nsync_audit") != [(0,)] or not done:
        done += atlas.work()
    seconds, peak = time.perf_counter() - began, resident_bytes_max()
    turns = []
    for _ in range(IDLE_TURNS):
        atlas.now_ms += 1000
        looked = time.perf_counter()
        assert atlas.bridge.work(atlas.now_ms).idle
        turns.append((time.perf_counter() - looked) * 1000)
    return {"s": seconds, "changesets": done, "rss": peak, "rss_before": before, "idle_ms": statistics.median(turns)}


def _instance(place: str, name: str) -> Any:
    """The instance on the database that is at `place`, as it is."""
    from sqlalchemy.orm import sessionmaker
    from tests.support.federation import AUTHORITY, CHARTER, KEYS
    from tests.support.instances import EXPRESSION, Instance, engine_of
    from tests.support.rucio_postgres import engine_of as postgres_engine_of

    from nsync.auth.keys import verify
    from nsync.rucio_bridge.bridge import Bridge

    made = object.__new__(Instance)
    made.name, made.now_ms = name, NOW_MS
    made.engine = postgres_engine_of(place) if "://" in place else engine_of(Path(place))
    made.sessions = sessionmaker(bind=made.engine)
    me = CHARTER.by_name(name)
    assert me is not None
    made.bridge = Bridge(made.engine, AUTHORITY, me, KEYS[name].sign, verify, EXPRESSION)
    return made


NOW_MS = 1_800_000_000_000
"""Later than what wrote the database before; its audits were made then."""


# ---- one changeset


def measure_receive(directory: Path, entries: int) -> Iterator[Row]:
    n = max(RECEIVED_MIN, min(entries // 10, RECEIVED_MAX))
    stream = directory / "stream"
    in_own_process("benchmarks.bridge_scale", "write", stream, n)
    with instances.on_postgres("cms") as cms:
        cms.work()
        found = in_own_process("benchmarks.bridge_scale", "receive", _place(cms), stream)
        assert count(cms) == n, f"{count(cms)} files are there"
    what = f"MiB at most, of the process that stored, applied and wrote one changeset of {n:,} files on PostgreSQL; it began with {found['rss_before'] / MIB:.0f}; {n / found['s']:,.0f} files a second"
    yield Row(NAMES_RECEIVE[0], found["rss"] / MIB, what)


def _write(path: str, n: str) -> dict[str, float]:
    """One changeset of atlas: a closed dataset of `n` files, each with parent and replica, in ops of 140 bytes: a changeset has 256 MiB
    at most, so a million files with long names are two."""
    from tests.support.federation import CHARTER, KEYS

    from benchmarks.streams import EPOCH_MS, LENGTH
    from nsync.clock import Stamp
    from nsync.log.segment import EMPTY, build_changeset
    from nsync.namespace.keys import CLOSED, DATASET, FILE, PROTOCOLS, Attachment, Attribute, Did, Identity, Protocol, Replica, Rse, Scope
    from nsync.namespace.ops import Assert, encode_op

    rng, rse, dataset = random.Random(1), Rse("atlas", "DISK"), Did(SCOPE, instances.DATASET)
    door = Protocol("root", "eos.example.org", 1094, "/eos/", "rucio.rse.protocols.gfal.Default", 1, 1, 1)
    ops = [
        encode_op([Assert(rse, True), Assert(Attribute(rse, PROTOCOLS), (door,))]),
        encode_op([Assert(Scope(SCOPE), True)]),
        encode_op([Assert(dataset, Identity(DATASET))]),
    ]
    for number in range(int(n)):
        did, digest = Did(SCOPE, f"f.{number:07d}.root"), rng.getrandbits(128).to_bytes(16, "big")
        identity = Identity(FILE, rng.getrandbits(31), rng.getrandbits(32).to_bytes(4, "big"), digest)
        ops.append(encode_op([Assert(did, identity), Assert(Attachment(dataset, did), True), Assert(Replica(did, rse), f"{number:07d}")]))
    ops.append(encode_op([Assert(Attribute(dataset, CLOSED), True)]))
    author = CHARTER.by_name("atlas")
    assert author is not None
    with Path(path).open("wb") as file:
        for segment in build_changeset(
            ops,
            federation=CHARTER.federation,
            charter_version=CHARTER.version,
            author=author.author,
            tip=EMPTY,
            stamp=Stamp(EPOCH_MS, 0),
            deps=[],
            sign=KEYS["atlas"].sign,
        ):
            file.write(LENGTH.pack(len(segment.frame)) + segment.frame)
    return {"ops": len(ops), "bytes": sum(map(len, ops))}


def _receive(place: str, path: str) -> dict[str, float]:
    from benchmarks.streams import batches

    cms, before = _instance(place, "cms"), resident_bytes_max()
    began = time.perf_counter()
    for frames in batches(Path(path)):
        assert not cms.bridge.receive(frames, "atlas").rejected
    assert cms.work() == 1
    return {"s": time.perf_counter() - began, "rss": resident_bytes_max(), "rss_before": before}


def main(what: str, *arguments: str) -> None:
    parts: Mapping[str, Callable[..., dict[str, float]]] = {"publish": _publish, "write": _write, "receive": _receive}
    print(json.dumps(parts[what](*arguments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
