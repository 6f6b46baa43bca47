"""Histories of users' changes on one Rucio database or three, drawn by Hypothesis, and the promises that hold after each."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Union

from hypothesis import strategies as st
from rucio.db.sqla.constants import DIDType, OpenDataDIDState

from nsync.log.segment import decode_frame
from nsync.namespace.keys import Attachment, Did, Fact, Replica, Rse, Scope, fact_of
from nsync.namespace.ops import decode_op
from nsync.rucio_bridge.rows import matches
from tests.support.database import contents
from tests.support.federation import NAMES
from tests.support.federations import SHARED
from tests.support.instances import REFUSALS, Instance, everything, settle

LONG = "NSYNC_HISTORIES" in os.environ
HISTORIES = int(os.environ.get("NSYNC_HISTORIES", "60"))

FILES, DATASETS, CONTAINERS = ("f1", "f2", "f3"), ("d1", "d2"), ("c1", "c2")
DOIS = ("10.5072/ATLAS.1", "10.5072/CMS.1")

# ---- histories


class Act(NamedTuple):
    """A user of instance `who` does `what`."""

    who: str
    what: str
    on: Did
    other: Any = None


class Work(NamedTuple):
    """The bridge of `who` publishes and applies what there is."""

    who: str


class Fetch(NamedTuple):
    """`who` takes everything that `source` has; with a seed, some twice, in any order and grouping."""

    who: str
    source: str
    seed: int = 0


Step = Union[Act, Work, Fetch]


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Half of them acts, and most of these in the shared scope."""
    who, kind = draw(st.sampled_from(NAMES)), draw(st.integers(0, 9))
    if kind < 2:
        return Work(who)
    if kind < 5:
        return Fetch(who, draw(st.sampled_from([name for name in NAMES if name != who])), draw(st.sampled_from([0, 0, 0, 1, 2])))
    mine = draw(st.sampled_from([*["atlas.shared"] * 6, *[who] * 3, f"{who}.private"]))
    theirs = draw(st.sampled_from([*[mine] * 5, "atlas.shared", *NAMES]))
    what = draw(st.sampled_from(WHAT))
    parent = Did(mine, draw(st.sampled_from(DATASETS if what in ("dataset", "publish") else (*DATASETS, *CONTAINERS))))
    child = Did(theirs, draw(st.sampled_from(FILES if parent.name in DATASETS else (*DATASETS, *CONTAINERS))))
    if what in ("files", "unreplicate", "delete file"):
        return Act(who, what.split()[0], Did(mine, draw(st.sampled_from(FILES))), draw(st.sampled_from([1, 1, 1, 2])))
    if what in ("dataset", "publish"):
        return Act(who, what, parent, tuple(draw(st.lists(st.sampled_from(FILES), min_size=1, max_size=3, unique=True))))
    if what in ("attach", "detach", "nest"):
        return Act(who, what, parent, child)
    return Act(who, what, parent, draw(st.sampled_from(DOIS)) if what == "doi" else None)


WHAT = (
    *("files", "files", "dataset", "dataset", "publish", "publish", "nest", "nest", "attach", "attach", "attach", "detach"),
    *("close", "close", "reopen", "draft", "public", "suspended", "doi", "delete", "delete file", "unreplicate"),
)
HISTORY = st.lists(steps(), min_size=25, max_size=60)

# ---- playing them


def do(instance: Instance, act: Act) -> None:
    """What Rucio refuses does not happen."""
    for step in _DEEDS[act.what]:
        with suppress(*REFUSALS):
            step(instance, act.on, act.other)


def _files(instance: Instance, did: Did, size: int) -> None:
    """Rucio takes a replica whose size is not its file's, if only the caller gives it: an upload compares them."""
    known = instance.query("SELECT bytes FROM dids WHERE scope = :scope AND name = :name", scope=did.scope, name=did.name)
    if known in ([], [(size,)]):
        instance.add_files(did.scope, [did.name], size, f"{size:08d}")


def _collection(instance: Instance, did: Did, _: Any) -> None:
    instance.add_did(did.scope, did.name, DIDType.CONTAINER if did.name in CONTAINERS else DIDType.DATASET)


def _made(instance: Instance, _: Did, child: Did) -> None:
    """The child too, where this instance may make one."""
    if child.scope in (instance.name, "atlas.shared", f"{instance.name}.private"):
        (_files if child.name in FILES else _collection)(instance, child, 1)


def _attach(instance: Instance, did: Did, child: Did) -> None:
    instance.attach(did.scope, did.name, [(child.scope, child.name)])


def _fill(instance: Instance, did: Did, names: Sequence[str]) -> None:
    for name in names:
        _files(instance, Did(did.scope, name), 1)
    instance.attach(did.scope, did.name, [(did.scope, name) for name in names])


def _state(state: OpenDataDIDState) -> Callable[[Instance, Did, Any], None]:
    return lambda instance, did, _: instance.set_open_data(did.scope, did.name, state=state)


_close: Callable[[Instance, Did, Any], None] = lambda i, did, _: i.set_open(did.scope, did.name, False)  # noqa: E731
_draft: Callable[[Instance, Did, Any], None] = lambda i, did, _: i.add_open_data(did.scope, did.name)  # noqa: E731
_public = _state(OpenDataDIDState.PUBLIC)

_DEEDS: dict[str, list[Callable[[Instance, Did, Any], None]]] = {
    "files": [_files],
    "collection": [_collection],
    "dataset": [_collection, _fill],
    "publish": [_collection, _fill, _close, _draft, _public],
    "nest": [_collection, _made, _attach],
    "attach": [_attach],
    "detach": [lambda i, did, child: i.detach(did.scope, did.name, [(child.scope, child.name)])],
    "close": [_close],
    "reopen": [lambda i, did, _: i.set_open(did.scope, did.name, True)],
    "draft": [_draft],
    "public": [_public],
    "suspended": [_state(OpenDataDIDState.SUSPENDED)],
    "doi": [_draft, lambda i, did, doi: i.set_open_data(did.scope, did.name, doi=doi)],
    "delete": [lambda i, did, _: i.delete_did(did.scope, did.name)],
    "unreplicate": [lambda i, did, _: i.delete_replicas(did.scope, [did.name])],
}


class Changes:
    """What the users of one instance did to its rows: where its rows may differ from the catalogue, and only there (R7.5)."""

    def __init__(self) -> None:
        self.added: set[Fact] = set()
        self.removed: set[Fact] = set()
        self.changed: set[Fact] = set()
        self.reachable: set[Did] = set()
        """Everything that was below a DID that is or was PUBLIC."""

    def note(self, before: dict[Fact, object], after: dict[Fact, object]) -> None:
        self.added |= after.keys() - before.keys()
        self.removed |= before.keys() - after.keys()
        self.changed |= {fact for fact in before.keys() & after.keys() if before[fact] != after[fact]}

    def note_reachable(self, instance: Instance) -> None:
        found = {Did(*row) for row in instance.query("SELECT scope, name FROM dids_opendata WHERE state <> 'D'")}
        edges = [fact for fact in rows_of(instance) if isinstance(fact, Attachment)]
        while more := {edge.child for edge in edges if edge.parent in found} - found:
            found |= more
        self.reachable |= found


def rows_of(instance: Instance) -> dict[Fact, object]:
    """Every DID, attachment and local replica of the database, with what may change of it."""
    found: dict[Fact, object] = {}
    with instance.engine.connect() as connection:
        run = connection.exec_driver_sql
        for scope, name, *rest in run(
            "SELECT d.scope, d.name, d.did_type, d.is_open, o.state, i.doi FROM dids d LEFT JOIN dids_opendata o USING (scope, name) "
            "LEFT JOIN dids_opendata_doi i USING (scope, name)"
        ):
            found[Did(scope, name)] = tuple(rest)
        for scope, name, child_scope, child_name in run("SELECT scope, name, child_scope, child_name FROM contents"):
            found[Attachment(Did(scope, name), Did(child_scope, child_name))] = ()
        for scope, name, rse in run("SELECT r.scope, r.name, s.rse FROM replicas r JOIN rses s ON s.id = r.rse_id"):
            origin, _, name_there = rse.partition("_")
            place = Rse(origin.lower(), name_there) if name_there else Rse(instance.name, rse)
            found[Replica(Did(scope, name), place)] = ()
    return found


class Story:
    """Three instances, and what their users did."""

    def __init__(self, prepared: dict[str, Path], directory: Path) -> None:
        self.instances = {name: Instance(prepared[name], directory, name, shared, durable=False) for name, shared in SHARED.items()}
        for index, instance in enumerate(self.instances.values()):
            instance.now_ms += 10_000 + (0, 9_000, -9_000)[index]  # clocks are not equal
        self.changes = {name: Changes() for name in NAMES}

    def play(self, history: Sequence[Step]) -> None:
        for step in history:
            instance = self.instances[step.who]
            if isinstance(step, Act):
                before = rows_of(instance)
                do(instance, step)
                self.changes[step.who].note(before, rows_of(instance))
                self.changes[step.who].note_reachable(instance)
            elif isinstance(step, Work):
                instance.work()
                self.changes[step.who].note_reachable(instance)
            elif step.who != step.source:
                fetch(instance, self.instances[step.source], step.seed)

    def settle(self) -> None:
        settle(list(self.instances.values()))
        for instance in self.instances.values():
            instance.bridge.retry_parked(instance.now_ms)  # as the node does now and then: what some rows waited for came later
        settle(list(self.instances.values()))

    def close(self) -> None:
        for instance in self.instances.values():
            instance.close()


def fetch(reader: Instance, source: Instance, seed: int) -> None:
    if not seed:
        reader.fetch(source)
        return
    rng = random.Random(seed)
    frames = source.frames()
    frames += rng.sample(frames, len(frames) // 2)
    rng.shuffle(frames)
    while frames:
        size = rng.randint(1, 4)
        batch, frames = frames[:size], frames[size:]
        reader.bridge.receive(batch, source.name)
        if rng.random() < 0.3:
            reader.work()


# ---- what must hold


def check_one_state(story: Story) -> None:
    states = [contents(instance.engine) for instance in story.instances.values()]
    for part in ("heads", "slots", "catalogue", "conflicts"):
        for state in states[1:]:
            assert state[part] == states[0][part], part


def check_rows_are_the_catalogue(story: Story) -> None:
    for name, instance in story.instances.items():
        changes, parked = story.changes[name], instance.parked()
        catalogue = instance.catalogue()
        written = instance.written(catalogue.keys())
        for fact, entry in catalogue.items():
            if fact in parked:
                continue
            if fact not in written:
                assert fact in changes.removed, f"{name} lacks {fact}"
            elif not matches(entry, written[fact]):
                assert fact in changes.changed | changes.added, f"{name}: {fact} is {written[fact]}, not {entry}"
        for fact in rows_of(instance).keys() - catalogue.keys() - parked.keys():
            assert fact in changes.added, f"{name} still has {fact}"


def check_shared_rows_are_equal(story: Story) -> None:
    """But for what an instance cannot take in, or changed without the right to."""
    excused: set[Fact] = set()
    for name, instance in story.instances.items():
        changes = story.changes[name]
        catalogue = instance.catalogue()
        written = instance.written(catalogue.keys())
        drift = {fact for fact, entry in catalogue.items() if not matches(entry, written.get(fact))}
        drift |= (rows_of(instance).keys() & changes.added) - catalogue.keys()
        excused |= instance.parked().keys() | drift
    excused_dids = {did for fact in excused for did in _dids_of(fact)}
    edges = {fact for instance in story.instances.values() for fact in rows_of(instance) if isinstance(fact, Attachment)}
    while above := {edge.parent for edge in edges if edge.child in excused_dids} - excused_dids:
        excused_dids |= above  # their sizes differ
    excused_names = {(did.scope, did.name) for did in excused_dids} | {(fact.scope,) for fact in excused if isinstance(fact, Scope)}
    first, *others = [_without(instance.rows(), excused_names) for instance in story.instances.values()]
    for rows in others:
        for table in first:
            assert rows[table] == first[table], f"{table}: {sorted(rows[table] ^ first[table], key=repr)}"


def _dids_of(fact: Fact) -> tuple[Did, ...]:
    if isinstance(fact, Attachment):
        return (fact.parent, fact.child)
    return (fact.did,) if isinstance(fact, Replica) else (fact,) if isinstance(fact, Did) else ()


def _without(rows: dict[str, frozenset[tuple[object, ...]]], names: set[tuple[str, ...]]) -> dict[str, frozenset[tuple[object, ...]]]:
    names_of = {"scopes": lambda row: {row}, "contents": lambda row: {row[:2], row[2:4]}}
    return {
        table: frozenset(row for row in found if not names_of.get(table, lambda row: {row[:2]})(row) & names)
        for table, found in rows.items()
    }


_NEVER = {
    "an attachment has no parent": (
        "SELECT c.name FROM contents c LEFT JOIN dids d ON d.scope = c.scope AND d.name = c.name WHERE d.name IS NULL"
    ),
    "an attachment has no child": (
        "SELECT c.child_name FROM contents c LEFT JOIN dids d ON d.scope = c.child_scope AND d.name = c.child_name WHERE d.name IS NULL"
    ),
    "a replica has no file": "SELECT r.name FROM replicas r LEFT JOIN dids d ON d.scope = r.scope AND d.name = r.name WHERE d.name IS NULL",
    "a count of locks is wrong": (
        "SELECT r.name FROM replicas r WHERE r.lock_cnt <> "
        "(SELECT count(*) FROM locks l WHERE l.scope = r.scope AND l.name = r.name AND l.rse_id = r.rse_id)"
    ),
    "a foreign replica could be deleted": (
        "SELECT r.name FROM replicas r JOIN rse_attr_map a ON a.rse_id = r.rse_id AND a.key = 'nsync_origin' WHERE r.tombstone IS NOT NULL"
    ),
    "a foreign replica differs from its file": (
        "SELECT r.name FROM replicas r JOIN rse_attr_map a ON a.rse_id = r.rse_id AND a.key = 'nsync_origin' "
        "JOIN dids d ON d.scope = r.scope AND d.name = r.name WHERE r.bytes <> d.bytes OR r.adler32 <> d.adler32 OR r.state <> 'A'"
    ),
    "an attachment copies another size than its file's": (
        "SELECT c.child_name FROM contents c JOIN dids d ON d.scope = c.child_scope AND d.name = c.child_name "
        "WHERE c.child_type = 'F' AND (c.bytes <> d.bytes OR c.adler32 <> d.adler32)"
    ),
    "a foreign RSE can be written": (
        "SELECT s.rse FROM rses s JOIN rse_attr_map a ON a.rse_id = s.id AND a.key = 'nsync_origin' "
        "WHERE s.availability_write OR s.availability_delete OR s.deterministic"
    ),
    "foreign keys are broken": "PRAGMA foreign_key_check",
}


def check_databases_are_whole(story: Story) -> None:
    for name, instance in story.instances.items():
        for fault, query in _NEVER.items():
            assert instance.query(query) == [], f"{name}: {fault}"


def check_public_data_are_closed(story: Story) -> None:
    query = (
        "SELECT d.scope, d.name FROM dids d JOIN dids_opendata o ON o.scope = d.scope AND o.name = d.name "
        "WHERE o.state = 'P' AND d.is_open AND d.did_type <> 'F'"
    )
    for name, instance in story.instances.items():
        opened = {Did(*row) for row in instance.query(query)}
        assert opened <= story.changes[name].changed | instance.parked().keys(), f"{name}: public and open"


def check_sizes_of_closed_collections(story: Story) -> None:
    query = (
        "SELECT d.scope, d.name, coalesce(d.bytes, 0), coalesce(d.length, 0), coalesce(sum(c.bytes), 0), count(c.child_name) FROM dids d "
        "LEFT JOIN contents c ON c.scope = d.scope AND c.name = d.name WHERE d.did_type = 'D' AND NOT d.is_open GROUP BY d.scope, d.name"
    )
    for name, instance in story.instances.items():
        for scope, dataset, size, length, sum_of_sizes, count in instance.query(query):
            assert (size, length) == (sum_of_sizes, count), f"{name}: {scope}:{dataset}"


def check_counters(story: Story) -> None:
    """Each change of a foreign RSE is counted once: what `rse_usage` and what waits to be added to it make its replicas."""
    query = (
        "SELECT s.rse, (SELECT count(*) FROM replicas r WHERE r.rse_id = s.id), "
        "(SELECT coalesce(sum(u.files), 0) FROM updated_rse_counters u WHERE u.rse_id = s.id) + "
        "(SELECT coalesce(sum(g.files), 0) FROM rse_usage g WHERE g.rse_id = s.id AND g.source = 'rucio') FROM rses s"
    )
    for name, instance in story.instances.items():
        for rse, count, counted in instance.query(query):
            assert count == counted, f"{name}: {rse}"


def check_private_names_stay(story: Story) -> None:
    """No segment names what was never below open data (R7.2)."""
    (atlas, *_) = story.instances.values()
    said = {s.key for frame in atlas.frames() for op in decode_frame(frame).ops for s in decode_op(op)}
    named = {did for key in said for did in _dids_of(fact_of(key))}
    for name in NAMES:
        private = {did for did in named if did.scope == f"{name}.private"}
        assert private <= story.changes[name].reachable, f"{name} told {private - story.changes[name].reachable}"


def check_a_further_cycle_writes_nothing(story: Story) -> None:
    before = {name: everything(instance) for name, instance in story.instances.items()}
    settle(list(story.instances.values()))
    for name, instance in story.instances.items():
        instance.bridge.retry_parked(instance.now_ms)
        after = everything(instance)
        for table in after:
            assert after[table] == before[name][table], f"{name}: {table}"


CHECKS = (
    check_one_state,
    check_rows_are_the_catalogue,
    check_shared_rows_are_equal,
    check_databases_are_whole,
    check_public_data_are_closed,
    check_sizes_of_closed_collections,
    check_counters,
    check_private_names_stay,
    check_a_further_cycle_writes_nothing,
)


def keep_promises(prepared: dict[str, Path], history: Sequence[Step], tell: type[Story] = Story) -> None:
    """Play `history` on fresh databases, and check every promise."""
    with tempfile.TemporaryDirectory() as directory:
        story = tell(prepared, Path(directory))
        try:
            story.play(history)
            story.settle()
            for promise in CHECKS:
                promise(story)
        finally:
            story.close()


def sync() -> list[Step]:
    """Everybody gets everything, but for the last acknowledgements."""
    return [step for _ in range(2) for who in NAMES for step in (Work(who), *(Fetch(who, other) for other in NAMES), Work(who))]


def shared(name: str) -> Did:
    return Did("atlas.shared", name)


KNOWN: list[Step] = [
    Act("atlas", "dataset", shared("d1"), ("f1", "f2")),
    Act("cms", "files", Did("cms.private", "f1"), 1),
    Act("cms", "dataset", Did("cms.private", "d1"), ("f2", "f3")),
    Act("belle2", "publish", Did("belle2.private", "d2"), ("f1",)),
    *sync(),
    Act("cms", "attach", shared("d1"), Did("cms.private", "f1")),
    Act("atlas", "close", shared("d1")),
    Act("belle2", "files", shared("f3"), 1),
    *sync(),
    Act("atlas", "detach", shared("d1"), shared("f2")),
    *sync(),
    Act("atlas", "reopen", shared("d1")),
    Act("atlas", "attach", shared("d1"), shared("f3")),
    Act("atlas", "close", shared("d1")),
    *sync(),
    Act("belle2", "nest", shared("c1"), shared("c2")),
    Act("cms", "delete", shared("d2")),
    Act("belle2", "unreplicate", shared("f3")),
]
"""A story in which each promise has its part: private names, sizes, counters, a close, removals."""
