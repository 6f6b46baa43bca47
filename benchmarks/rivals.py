"""General CRDT maps with the same entries: name → the bytes of the op, about 200. In memory, not signed, not checked, not durable.

    python -m benchmarks.rivals pycrdt 1000000    # one of them, in a process of its own: what its memory grows to

A delta is what a peer that lacks one changed entry in a hundred would be sent, and applying it what that peer does.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Callable, NamedTuple, Protocol

import msgpack

from benchmarks.memory import in_own_process, resident_bytes
from benchmarks.names import files
from benchmarks.rows import Row, not_run, timed

ENTRIES_MAX = 1_000_000
"""Beyond that they need gigabytes."""
VALUE_BYTES = 200
CHANGED = 100
"""One entry in so many is in the delta."""
INSERTED_AT_ONCE = 1 << 14

Entries = Sequence[tuple[str, bytes]]


class Map(Protocol):
    """A replicated map."""

    def insert(self, entries: Entries) -> None: ...
    def state(self) -> bytes: ...
    def snapshot(self) -> bytes: ...
    def since(self, state: bytes) -> bytes: ...
    def apply(self, update: bytes) -> None: ...
    def get(self, key: str) -> Any: ...


class Pycrdt:
    """Yjs in Rust: a Map in a Doc."""

    def __init__(self) -> None:
        pycrdt: Any = import_module("pycrdt")
        self._doc = pycrdt.Doc()
        self._map = self._doc.get("entries", type=pycrdt.Map)

    def insert(self, entries: Entries) -> None:
        for start in range(0, len(entries), INSERTED_AT_ONCE):
            with self._doc.transaction():
                for key, value in entries[start : start + INSERTED_AT_ONCE]:
                    self._map[key] = value

    def state(self) -> bytes:
        return bytes(self._doc.get_state())

    def snapshot(self) -> bytes:
        return bytes(self._doc.get_update())

    def since(self, state: bytes) -> bytes:
        return bytes(self._doc.get_update(state))

    def apply(self, update: bytes) -> None:
        self._doc.apply_update(update)

    def get(self, key: str) -> Any:
        return self._map[key]


class Loro:
    """A LoroMap in a LoroDoc."""

    def __init__(self) -> None:
        self._loro: Any = import_module("loro")
        self._doc = self._loro.LoroDoc()
        self._map = self._doc.get_map("entries")

    def insert(self, entries: Entries) -> None:
        for start in range(0, len(entries), INSERTED_AT_ONCE):
            for key, value in entries[start : start + INSERTED_AT_ONCE]:
                self._map.insert(key, value)
            self._doc.commit()

    def state(self) -> bytes:
        return bytes(self._doc.oplog_vv.encode())

    def snapshot(self) -> bytes:
        return bytes(self._doc.export(self._loro.ExportMode.Snapshot()))

    def since(self, state: bytes) -> bytes:
        return bytes(self._doc.export(self._loro.ExportMode.Updates(self._loro.VersionVector.decode(state))))

    def apply(self, update: bytes) -> None:
        self._doc.import_(update)

    def get(self, key: str) -> Any:
        return self._map.get(key).value


RIVALS: dict[str, Callable[[], Map]] = {"pycrdt": Pycrdt, "loro": Loro}


class Rates(NamedTuple):
    """Entries a CPU second, and bytes of memory an entry."""

    insert: float
    delta_apply: float
    rss: float


def entries(n: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`n` names with about 200 bytes each: what an op says beside the name, filled up with random bytes."""
    rng = random.Random(seed)
    for file in islice(files(seed), n):
        said = msgpack.packb((file.size, file.adler32, file.md5, file.dataset, file.path[-40:]))
        yield f"{file.scope}:{file.name}", said + rng.randbytes(max(0, VALUE_BYTES - len(said)))


def run(make: Callable[[], Map], n: int) -> Rates:
    """Insert `n` entries, give them to a peer, change one in a hundred, and let the peer apply the delta."""
    some = list(entries(n, 1))
    changed = [(key, value[::-1]) for key, value in random.Random(2).sample(some, n // CHANGED)]
    before, here = resident_bytes(), make()
    inserted = timed(lambda: here.insert(some))
    rss = (resident_bytes() - before) / n
    there = make()
    there.apply(here.snapshot())
    assert there.get(some[0][0]) == some[0][1]  # some read lazily
    state = there.state()
    here.insert(changed)
    delta = here.since(state)

    def apply() -> None:
        there.apply(delta)
        assert there.get(changed[0][0]) == changed[0][1]

    return Rates(n / inserted.cpu_s, len(changed) / timed(apply).cpu_s, rss)


def absent(name: str) -> str:
    """Why a rival cannot be measured; empty if it can."""
    return "" if find_spec(name) else f"{name} is not installed; pip install -e '.[bench]'"


@lru_cache
def measured(name: str, n: int) -> Rates:
    """`run` in a process of its own."""
    return Rates(**in_own_process(__name__, name, n))


NAMES = tuple(f"{name}_{what}" for name in RIVALS for what in ("insert_per_s", "delta_apply_per_s", "rss_bytes_per_entry"))


def measure(directory: Path, entries: int) -> Iterator[Row]:
    n = min(entries, ENTRIES_MAX)
    for name in RIVALS:
        if why := absent(name):
            yield from not_run([row for row in NAMES if row.startswith(name)], why)
            continue
        rates = measured(name, n)
        yield Row(f"{name}_insert_per_s", rates.insert, f"entries of {VALUE_BYTES} bytes into {n:,}")
        yield Row(f"{name}_delta_apply_per_s", rates.delta_apply, f"changed entries, one in {CHANGED} of {n:,}")
        yield Row(f"{name}_rss_bytes_per_entry", rates.rss, "bytes of memory")


if __name__ == "__main__":
    print(json.dumps(run(RIVALS[sys.argv[1]], int(sys.argv[2]))._asdict()))
