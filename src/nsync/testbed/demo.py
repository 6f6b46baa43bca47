"""The demonstration: independent Rucio instances publish open data, and all show and serve all of it.

Everything is done with the stock `rucio` command and judged by the rows in the instances' own databases: first with the
network whole, then with one instance cut off while both sides change, then healed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Callable

from sqlalchemy import Engine, create_engine, func, select, text

from nsync.errors import NsyncError
from nsync.rucio_bridge.snapshot import shared_rows
from nsync.store.schema import conflict
from nsync.testbed import control, stock
from nsync.testbed.layout import Instance, Layout
from nsync.testbed.stock import Dataset
from nsync.testbed.supervisor import Say

VISIBLE_TIMEOUT_S = 90
"""How long the demonstration waits for the instances to agree; seconds are usual."""

POLL_S = 0.1

DIFFERENCES_SHOWN = 5

_OPEN_FILES = text(
    "SELECT count(DISTINCT c.child_name) FROM dids_opendata o"
    " JOIN contents c ON c.scope = o.scope AND c.name = o.name"
    " JOIN replicas r ON r.scope = c.child_scope AND r.name = c.child_name AND r.state = 'A'"
    " WHERE o.scope = :scope AND o.name = :name AND o.state = :state"
)
"""How many files with an available replica an open dataset has: all of them, or it is not there yet."""

_COUNTS = text(
    "WITH open AS (SELECT scope FROM dids_opendata) SELECT"
    " (SELECT count(*) FROM dids WHERE scope IN (SELECT scope FROM open) AND did_type = 'D'),"
    " (SELECT count(*) FROM dids WHERE scope IN (SELECT scope FROM open) AND did_type = 'F'),"
    " (SELECT count(*) FROM replicas WHERE scope IN (SELECT scope FROM open) AND state = 'A')"
)
"""Datasets, files and available replicas in the scopes that hold open data."""

PUBLIC, SUSPENDED = "P", "S"


class DemoFailed(NsyncError):
    """The instances did not do what they should; the text says what differs."""


@dataclass(frozen=True)
class Row:
    """What one instance holds in the end, and how long its datasets took to be seen everywhere."""

    instance: str
    datasets: int
    files: int
    replicas: int
    conflicts: int
    visible_s: float
    """From PUBLIC in its own database to complete at the last peer; the slowest dataset, partition not counted."""


@dataclass(frozen=True)
class Report:
    rows: tuple[Row, ...]
    downloaded_files: int
    """Foreign files that were downloaded and had the SHA-256 they were made with."""
    healed_s: float
    """From the end of the partition to equal rows everywhere."""


def run(layout: Layout, file_count: int, say: Say) -> Report:
    """Play the demonstration on a running testbed of two or more instances. Raises DemoFailed, CommandFailed."""
    with ExitStack() as opened:
        engines = {i.name: create_engine(i.database_url) for i in layout.instances}
        for engine in engines.values():
            opened.callback(engine.dispose)
        return _Story(layout, engines, file_count, say).tell()


class _Story:
    def __init__(self, layout: Layout, engines: dict[str, Engine], file_count: int, say: Say) -> None:
        self._layout = layout
        self._instances = layout.instances
        self._engines = engines
        self._file_count = file_count
        self._say = say
        self._visible_s = dict.fromkeys(engines, 0.0)

    def tell(self) -> Report:
        everybody = [list(self._instances)]
        self._at_each(stock.add_scope, self._instances)
        self._say(f"each instance publishes a dataset of {self._file_count} files with the stock client")
        first = self._publish(1, everybody)
        self._agree(first)
        self._say("the shared rows are equal at all instances")
        downloaded = self._download_foreign(first)
        self._say(f"{downloaded} foreign files downloaded with the stock client; every SHA-256 is right")
        second = self._diverge(first)
        healed_s = self._heal(first, second)
        self._say(f"healed: the shared rows are equal at all instances after {healed_s:.1f} s")
        return Report(tuple(self._count(i) for i in self._instances), downloaded, healed_s)

    def _publish(self, number: int, sides: list[list[Instance]]) -> list[Dataset]:
        """Publish one dataset at each instance, and wait until each is complete everywhere on its side of the network."""
        watches = [_Watch(i, number, self._file_count, side, self._engines) for side in sides for i in side]
        with ThreadPoolExecutor(len(self._instances)) as pool:
            futures = [pool.submit(stock.publish, i, number, self._file_count) for i in self._instances]
            deadline = time.monotonic() + VISIBLE_TIMEOUT_S
            while not all([watch.complete() for watch in watches]):  # a list: each must look, to know its own time
                _raise_failures(futures)
                if time.monotonic() > deadline:
                    raise DemoFailed("; ".join(watch.missing() for watch in watches if not watch.complete()))
                time.sleep(POLL_S)
        for watch in watches:
            self._visible_s[watch.origin] = max(self._visible_s[watch.origin], watch.seconds)
            self._say(f"{watch.origin}: demo-{number} is complete {watch.reach} after {watch.seconds:.1f} s")
        return [future.result() for future in futures]

    def _diverge(self, first: list[Dataset]) -> list[Dataset]:
        """Cut one instance off, change both sides, and check that nothing crossed."""
        home, lone = self._instances[0], self._instances[1]
        control.cut(self._layout, [lone.name])
        self._say(f"{lone.name} is cut off; everybody publishes, and {home.name} suspends its first dataset")
        rest = [i for i in self._instances if i is not lone]
        stock.suspend(home, first[0])
        second = self._publish(2, [rest, [lone]])
        for dataset in second:
            wrong = [lone] if dataset.instance != lone.name else rest
            for instance in wrong:
                if self._files(instance, dataset, PUBLIC):
                    raise DemoFailed(f"{dataset.did} crossed the cut network to {instance.name}")
        if not self._files(lone, first[0], PUBLIC):
            raise DemoFailed(f"the suspension of {first[0].did} crossed the cut network to {lone.name}")
        self._say(f"{lone.name} has seen none of it, and nobody has seen its dataset")
        return second

    def _heal(self, first: list[Dataset], second: list[Dataset]) -> float:
        """Connect all again; the seconds until all is equal, the suspension included."""
        started = time.monotonic()
        control.heal(self._layout)
        self._agree(first[1:] + second, suspended=first[:1])
        return round(time.monotonic() - started, 3)

    def _agree(self, public: list[Dataset], suspended: Iterable[Dataset] = ()) -> None:
        """Wait until all instances hold these datasets in these states, and their shared rows are equal."""
        expected = [(d, PUBLIC) for d in public] + [(d, SUSPENDED) for d in suspended]
        deadline = time.monotonic() + VISIBLE_TIMEOUT_S
        while differences := [*self._incomplete(expected), *self._differences()]:
            if time.monotonic() > deadline:
                raise DemoFailed(f"after {VISIBLE_TIMEOUT_S} s:\n" + "\n".join(differences))
            time.sleep(POLL_S)

    def _incomplete(self, expected: list[tuple[Dataset, str]]) -> Iterator[str]:
        for instance in self._instances:
            for dataset, state in expected:
                found = self._files(instance, dataset, state)
                if found != len(dataset.digests):
                    yield f"{instance.name} shows {found} of {len(dataset.digests)} files of {dataset.did} in state {state}"

    def _differences(self) -> Iterator[str]:
        """How the shared rows of the other instances differ from those of the first."""
        rows = {}
        for instance in self._instances:
            with self._engines[instance.name].connect() as connection:
                rows[instance.name] = shared_rows(connection, instance.name)
        (first, model), *others = rows.items()
        for other, tables in others:
            for table in sorted({*model, *tables}):
                ours, theirs = model.get(table, frozenset()), tables.get(table, frozenset())
                for name, only in ((first, ours - theirs), (other, theirs - ours)):
                    for row in sorted(only, key=repr)[:DIFFERENCES_SHOWN]:
                        yield f"{table}: of {first} and {other}, only {name} has {row}"

    def _download_foreign(self, datasets: list[Dataset]) -> int:
        """Download the next instance's dataset at every instance; how many files that were."""
        foreign = dict(zip([i.name for i in self._instances], datasets[1:] + datasets[:1]))

        def check(instance: Instance) -> None:
            dataset = foreign[instance.name]
            if (found := stock.download(instance, dataset)) != dataset.digests:
                wrong = sorted(name for name in dataset.digests if found.get(name) != dataset.digests[name])
                raise DemoFailed(f"{instance.name}: of {dataset.did} these files are missing or differ: {', '.join(wrong)}")

        self._at_each(check, self._instances)
        return sum(len(dataset.digests) for dataset in foreign.values())

    def _files(self, instance: Instance, dataset: Dataset, state: str) -> int:
        return _open_files(self._engines[instance.name], dataset.scope, dataset.name, state)

    def _count(self, instance: Instance) -> Row:
        with self._engines[instance.name].connect() as connection:
            datasets, files, replicas = connection.execute(_COUNTS).one()
            conflicts = connection.execute(select(func.count()).select_from(conflict)).scalar_one()
        return Row(instance.name, datasets, files, replicas, conflicts, self._visible_s[instance.name])

    def _at_each(self, action: Callable[[Instance], None], instances: Iterable[Instance]) -> None:
        with ThreadPoolExecutor(len(self._instances)) as pool:
            list(pool.map(action, instances))


class _Watch:
    """How one dataset spreads: when it is complete in its origin's database, and when in those of its peers."""

    def __init__(self, origin: Instance, number: int, file_count: int, side: list[Instance], engines: dict[str, Engine]) -> None:
        self.origin = origin.name
        self._scope, self._name, self._file_count = stock.open_scope(origin), f"demo-{number}", file_count
        self._engines = {i.name: engines[i.name] for i in side}
        self._seen: dict[str, float] = {}

    def complete(self) -> bool:
        """Look, and say whether the dataset is complete everywhere."""
        for name, engine in self._engines.items():
            if name not in self._seen and _open_files(engine, self._scope, self._name, PUBLIC) == self._file_count:
                self._seen[name] = time.monotonic()
        return len(self._seen) == len(self._engines)

    @property
    def seconds(self) -> float:
        """From the origin to the last peer, to the precision of the polls."""
        return round(max(0.0, max(self._seen.values()) - self._seen[self.origin]), 3)

    @property
    def reach(self) -> str:
        peers = [name for name in self._engines if name != self.origin]
        return f"at {' and '.join(peers)}" if peers else "at home alone"

    def missing(self) -> str:
        return f"{self._scope}:{self._name} is not complete at {', '.join(sorted({*self._engines} - {*self._seen}))}"


def _open_files(engine: Engine, scope: str, name: str, state: str) -> int:
    with engine.connect() as connection:
        return int(connection.execute(_OPEN_FILES, {"scope": scope, "name": name, "state": state}).scalar_one())


def _raise_failures(futures: Iterable[Future[Dataset]]) -> None:
    """Raise what a publisher raised, without waiting for the others."""
    for future in futures:
        if future.done():
            future.result()
