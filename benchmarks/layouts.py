"""How the log and its key index should lie on disk: candidates, side by side (docs/adr/0009-log-clustered-by-dot.md).

    python -m benchmarks.layouts --ops 1000000 [--batch 65536] [--postgres] [--layouts a,b,c,…] [--directory DIR]

An op is a file DID with identity, parent and replica: three statements in one blob. All candidates get the same ops in
turns of 65536, in an order drawn anew for each turn, so that what else the machine does falls on all of them alike. Each
turn is committed in batches of `--batch` ops. CPU seconds are those of this process and of PostgreSQL's backend, wall
seconds include waiting for the disk. What a candidate must do to make its rows, hashing included, counts.

    a   slot(key = hash16, author) with an index (author, seq): a row a statement
    b   slot(key = the key itself, author), clustered by it, with an index (author, seq): a row a statement
    c   op(log, seq) clustered: a row an op; about(key, log, seq): a row a statement, key = 40 bits of the file's hash
        and 24 bits of the whole key's, so that the rows of one file are neighbours
    c2  c with 64 bits of the whole key's hash: no neighbours
    c3  c with `about` built last, in the order of its keys
    c5  c with `about` as a heap and an index on the key alone
    c6  c with log and seq packed into one integer, the primary key of op
    c7  c with op numbered as it arrives, over all logs: op is only ever appended to, and segments tell where each begins
    c8  c7 with a row for each 16 ops, compressed together; whoever looks one up inflates 16
    c9  c8 with keys that begin with 20 bits of the hash of the first half of the file's name, which the files of a dataset
        have in common, then 24 bits of the file's and 20 of the whole key's
    +s  the rows of a batch sorted by key before they are inserted

a and b get no log here, which they need as well; c has it inside. Two statements of one op may have one key, by chance: it
then has one row.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import msgpack
import zstandard

from benchmarks.databases import Database, Postgres, Sqlite, postgres_server
from benchmarks.names import File, files
from benchmarks.streams import file_statements
from nsync.namespace.keys import Rse, key_bytes

TURN = 1 << 16
LOGS = 4
SEGMENT_OPS = 4096
RSE = Rse("atlas", "DISK")
UPDATES = 1 << 40
"""The seq of the first update."""
LOOKUP_KEYS = 1000
LOOKUPS = 15
CATCH_UP_OPS = 1 << 14
BLOCK = 16
SECRET = bytes(range(16))

Row = tuple[Any, ...]


class Statement(NamedTuple):
    key: bytes
    value: bytes


class Op(NamedTuple):
    """`node` is the file that all statements are about, `stem` the scope and the first half of its name."""

    log: int
    seq: int
    raw: bytes
    node: bytes
    stem: bytes
    statements: tuple[Statement, ...]


class Layout(NamedTuple):
    """Tables, and the rows that ops become in them. `late`: filled from the table `fresh` when all is in."""

    tables: tuple[str, ...]
    rows: Callable[[Sequence[Op]], dict[str, list[Row]]]
    key: Callable[[Op, bytes], Any]
    lookup: str
    catch_up: str
    late: tuple[str, ...] = ()
    block: int = 1
    """Ops in a row that is compressed."""


# ---- the candidates


def hash16(op: Op, key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=16, key=SECRET).digest()


def natural(op: Op, key: bytes) -> bytes:
    return key


def neighbours(op: Op, key: bytes) -> int:
    return (_hash(op.node, 5) << 24 | _hash(key, 3)) - (1 << 63)


def near(op: Op, key: bytes) -> int:
    return ((_hash(op.stem, 3) >> 4 << 24 | _hash(op.node, 3)) << 20 | _hash(key, 3) >> 4) - (1 << 63)


def scattered(op: Op, key: bytes) -> int:
    return _hash(key, 8) - (1 << 63)


def _hash(data: bytes, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=size, key=SECRET).digest(), "big")


def slot(key: Callable[[Op, bytes], Any], clustered: str, sort: bool) -> Layout:
    def rows(ops: Sequence[Op]) -> dict[str, list[Row]]:
        found = [(key(op, s.key), op.log, op.seq, n, _value(s)) for op in ops for n, s in enumerate(op.statements)]
        return {"slot": sorted(found) if sort else found}

    def _value(s: Statement) -> bytes:
        return s.value if key is natural else s.key + s.value

    tables = (
        f"CREATE TABLE slot (key {{blob}}, author INT, seq BIGINT, n INT, value {{blob}}, PRIMARY KEY (key, author)) {clustered}",
        "CREATE UNIQUE INDEX slot_dot ON slot (author, seq, n)",
    )
    return Layout(
        tables,
        rows,
        key,
        "SELECT key, author, seq, value FROM slot WHERE key IN ({keys})",
        "SELECT seq, n, key, value FROM slot WHERE author = 1 AND seq > {seq} AND seq <= {seq} + {ops} ORDER BY seq, n",
    )


def by_dot(key: Callable[[Op, bytes], int], sort: bool, late: bool = False, heap: bool = False) -> Layout:
    def rows(ops: Sequence[Op]) -> dict[str, list[Row]]:
        about = list(dict.fromkeys((key(op, s.key), op.log, op.seq) for op in ops for s in op.statements))
        return {"op": [(op.log, op.seq, op.raw) for op in ops], "fresh" if late else "about": sorted(about) if sort else about}

    clustered = ("CREATE TABLE about (key BIGINT, log INT, seq BIGINT, PRIMARY KEY (key, log, seq)) {clustered}",)
    indexed = ("CREATE TABLE about (key BIGINT, log INT, seq BIGINT)", "CREATE INDEX about_key ON about (key)")
    tables = ("CREATE TABLE op (log INT, seq BIGINT, raw {blob}, PRIMARY KEY (log, seq)) {clustered}", *(indexed if heap else clustered))
    fill = ("INSERT INTO about SELECT key, log, seq FROM fresh ORDER BY key, log, seq", "DROP TABLE fresh")
    return Layout(
        (*tables, "CREATE TABLE fresh (key BIGINT, log INT, seq BIGINT)") if late else tables,
        rows,
        key,
        "SELECT a.key, a.log, a.seq, o.raw FROM about a JOIN op o ON o.log = a.log AND o.seq = a.seq WHERE a.key IN ({keys})",
        "SELECT seq, raw FROM op WHERE log = 1 AND seq > {seq} AND seq <= {seq} + {ops} ORDER BY seq",
        fill if late else (),
    )


def by_number(
    number: Callable[[Op], int], begins: int, late: bool = False, block: int = 1, key: Callable[[Op, bytes], int] = neighbours
) -> Layout:
    """c6 to c9; `begins` is the number before the first op of log 1."""

    def rows(ops: Sequence[Op]) -> dict[str, list[Row]]:
        about = list(dict.fromkeys((key(op, s.key), number(op)) for op in ops for s in op.statements))
        if block == 1:
            stored: list[Row] = [(number(op), op.raw) for op in ops]
        else:
            stored = [(number(ops[i]), deflated([op.raw for op in ops[i : i + block]])) for i in range(0, len(ops), block)]
        return {"op": stored, "fresh" if late else "about": about if late else sorted(about)}

    tables = (
        "CREATE TABLE op (dot {int64} PRIMARY KEY, raw {blob})",
        "CREATE TABLE about (key BIGINT, dot BIGINT, PRIMARY KEY (key, dot)) {clustered}",
    )
    fill = ("INSERT INTO about SELECT key, dot FROM fresh ORDER BY key, dot", "DROP TABLE fresh")
    first = "(SELECT max(dot) FROM op WHERE dot <= a.dot)"
    return Layout(
        (*tables, "CREATE TABLE fresh (key BIGINT, dot BIGINT)") if late else tables,
        rows,
        key,
        f"SELECT a.key, a.dot, o.raw FROM about a JOIN op o ON o.dot = {'a.dot' if block == 1 else first} WHERE a.key IN ({{keys}})",
        f"SELECT dot, raw FROM op WHERE dot > {begins} + {{seq}} AND dot <= {begins} + {{seq}} + {{ops}} ORDER BY dot",
        fill if late else (),
        block,
    )


def deflated(raw: list[bytes]) -> bytes:
    return _COMPRESSOR.compress(msgpack.packb(raw))


def inflated(raw: bytes) -> list[bytes]:
    found: list[bytes] = msgpack.unpackb(_DECOMPRESSOR.decompress(raw))
    return found


_COMPRESSOR, _DECOMPRESSOR = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()


def packed(op: Op) -> int:
    return op.log << 48 | op.seq


def arrival(op: Op) -> int:
    """The place in the stream that `ops` makes; updates come after everything."""
    turn, place = divmod(op.seq - 1, SEGMENT_OPS)
    return op.seq if op.seq >= UPDATES else (turn * LOGS + op.log - 1) * SEGMENT_OPS + place + 1


LAYOUTS = {
    "a": slot(hash16, "", False),
    "a+s": slot(hash16, "", True),
    "b": slot(natural, "{clustered}", False),
    "b+s": slot(natural, "{clustered}", True),
    "c": by_dot(neighbours, False),
    "c+s": by_dot(neighbours, True),
    "c2": by_dot(scattered, False),
    "c2+s": by_dot(scattered, True),
    "c3": by_dot(neighbours, False, late=True),
    "c5+s": by_dot(neighbours, True, heap=True),
    "c6+s": by_number(packed, 1 << 48),
    "c7+s": by_number(arrival, 0),
    "c7 late": by_number(arrival, 0, late=True),
    "c8+s": by_number(arrival, 0, block=BLOCK),
    "c9+s": by_number(arrival, 0, block=BLOCK, key=near),
    "c8 late": by_number(arrival, 0, late=True, block=BLOCK),
}


# ---- the ops


def ops(seed: int) -> Iterator[Op]:
    """Logs take turns of a segment each."""
    logs = [(number, files(seed + number)) for number in range(1, LOGS + 1)]
    first = 1
    while True:
        for log, source in logs:
            for seq in range(first, first + SEGMENT_OPS):
                yield make_op(log, seq, next(source))
        first += SEGMENT_OPS


def make_op(log: int, seq: int, file: File) -> Op:
    said = file_statements(file, RSE)
    keys, values = [key_bytes(s.key) for s in said], [msgpack.packb(s.value) for s in said]
    return Op(
        log,
        seq,
        msgpack.packb((1, *said)),
        keys[0],
        f"{file.scope}:{file.name[: len(file.name) // 2]}".encode(),
        tuple(map(Statement, keys, values)),
    )


# ---- measuring


class Subject:
    """A layout in a database, and what it took so far."""

    def __init__(self, name: str, layout: Layout, database: Database) -> None:
        self.name, self.layout, self.database = name, layout, database
        self.turns: list[tuple[float, float]] = []
        for table in layout.tables:
            database.execute(database.dialect(table))

    def timed(self, work: Callable[[], Any]) -> tuple[float, float]:
        """(CPU, wall) seconds."""
        cpu, wall = self.database.cpu_s(), time.perf_counter()
        work()
        return self.database.cpu_s() - cpu, time.perf_counter() - wall

    def feed(self, turn: Sequence[Op], batch: int) -> None:
        def work() -> None:
            for start in range(0, len(turn), batch):
                with self.database.transaction():
                    for table, rows in self.layout.rows(turn[start : start + batch]).items():
                        self.database.insert(table, rows)

        self.turns.append(self.timed(work))

    def finish(self) -> tuple[float, float]:
        def work() -> None:
            with self.database.transaction():
                for statement in self.layout.late:
                    self.database.execute(statement)

        return self.timed(work) if self.layout.late else (0.0, 0.0)

    def update(self, turn: Sequence[Op], batch: int) -> tuple[float, float]:
        """New statements about keys that are there: a later row for the log, another value for a slot."""

        def work() -> None:
            for start in range(0, len(turn), batch):
                with self.database.transaction():
                    for table, rows in self.layout.rows(turn[start : start + batch]).items():
                        if table == "slot":
                            self.database.upsert_slots(rows)
                        else:
                            self.database.insert("about" if table == "fresh" else table, rows)

        return self.timed(work)

    def look_up(self, sample: Sequence[Op], rng: random.Random) -> tuple[float, float]:
        chosen = rng.sample(sample, LOOKUP_KEYS)
        keys = [self.layout.key(op, rng.choice(op.statements).key) for op in chosen]
        found: list[Row] = []
        spent = self.timed(lambda: found.extend(self._opened(self.database.look_up(self.layout.lookup, keys))))
        assert len({row[0] for row in found}) == len(set(keys)), f"{self.name}: {len(found)} rows of {LOOKUP_KEYS} keys"
        return spent

    def catch_up(self, seq: int) -> tuple[float, float]:
        found: list[Row] = []
        query = self.layout.catch_up.format(seq=seq, ops=CATCH_UP_OPS)
        spent = self.timed(lambda: found.extend(self._opened(self.database.query(query))))
        assert len({row[0] for row in found}) * self.layout.block == CATCH_UP_OPS, f"{self.name}: {len(found)} rows"
        return spent

    def _opened(self, rows: list[Row]) -> list[Row]:
        return rows if self.layout.block == 1 else [(*row[:-1], inflated(row[-1])) for row in rows]


def measure(subjects: Sequence[Subject], n: int, batch: int, seed: int) -> dict[str, dict[str, float]]:
    rng, source = random.Random(seed), ops(seed)
    sample: list[Op] = []
    for number in range(n // TURN):
        turn = [next(source) for _ in range(TURN)]
        sample += rng.sample(turn, TURN // 100)
        for subject in rng.sample(subjects, len(subjects)):
            os.sync()
            subject.feed(turn, batch)
        print(f"\r{(number + 1) * TURN:,} ops", end="", file=sys.stderr)
    print(f"; {statistics.mean(len(op.raw) for op in sample):.0f} bytes an op", file=sys.stderr)
    found = {s.name: rates(s, s.finish(), n) for s in subjects}
    changes = [
        Op(op.log, UPDATES + i, msgpack.packb((1, s.key, s.value)), op.node, op.stem, (s,))
        for i, (op, s) in enumerate((op, rng.choice(op.statements)) for op in rng.sample(sample, len(sample)))
    ]
    for subject in rng.sample(subjects, len(subjects)):
        os.sync()
        cpu, wall = subject.update(changes, batch)
        found[subject.name].update(update_per_cpu_s=len(changes) / cpu, update_per_s=len(changes) / wall)
    reads: dict[str, list[tuple[float, float, float]]] = {s.name: [] for s in subjects}
    for _ in range(LOOKUPS):
        seq = rng.randrange(n // LOGS - CATCH_UP_OPS) // BLOCK * BLOCK
        for subject in rng.sample(subjects, len(subjects)):
            reads[subject.name].append((*subject.look_up(sample, rng), subject.catch_up(seq)[0]))
    for name, spent in reads.items():
        cpu, wall, scan = (statistics.median(column) for column in zip(*spent))
        found[name].update(lookup_ms_cpu=cpu * 1e3, lookup_ms=wall * 1e3, catch_up_ops_per_cpu_s=CATCH_UP_OPS / scan)
    return found


def rates(subject: Subject, late: tuple[float, float], n: int) -> dict[str, float]:
    """Ops a second over all, and in the first and last quarter million; `late` belongs to all of them."""
    some = max(1, min(4, len(subject.turns) // 4))

    def rate(turns: Sequence[tuple[float, float]], which: int) -> float:
        return TURN * len(turns) / (sum(t[which] for t in turns) + late[which] * len(turns) / len(subject.turns))

    done = subject.turns
    return {
        "ops_per_cpu_s": rate(done, 0),
        "ops_per_s": rate(done, 1),
        "first_per_cpu_s": rate(done[:some], 0),
        "last_per_cpu_s": rate(done[-some:], 0),
        "first_per_s": rate(done[:some], 1),
        "last_per_s": rate(done[-some:], 1),
        "late_s": late[1],
        "bytes_per_op": subject.database.size() / (TURN * len(done)),
    }


def table(found: dict[str, dict[str, float]]) -> str:
    columns = {name: None for row in found.values() for name in row}
    lines = ["| layout | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in found.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[c]:,.1f}" if row[c] < 1000 else f"{row[c]:,.0f}" for c in columns) + " |")
    return "\n".join(lines)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ops", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=TURN)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    parser.add_argument("--directory", type=Path, help="where the databases lie while they are measured")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.directory)))
        open_database: Callable[[str], Database] = lambda name: Sqlite(directory / f"{name}.db")  # noqa: E731
        if options.postgres:
            url = stack.enter_context(postgres_server())
            open_database = lambda name: Postgres(url, name)  # noqa: E731
        subjects = [
            Subject(name, LAYOUTS[name], stack.enter_context(open_database(name.replace("+", "_").replace(" ", "_"))))
            for name in options.layouts.split(",")
        ]
        n = options.ops // TURN * TURN
        found = measure(subjects, n, options.batch, options.seed)
    print(json.dumps({"ops": n, "batch": options.batch, "postgres": options.postgres, "layouts": found}))
    print(table(found))


if __name__ == "__main__":
    main()
