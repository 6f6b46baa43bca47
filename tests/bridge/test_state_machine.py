"""What holds after any history of three Rucio databases, however their users, daemons, bridges and networks interleave.

Hypothesis chooses the steps; in the end everybody settles, and the promises (tests/support/promises.py) are checked one by one: on SQLite,
where most histories are played, and on a federation of both kinds, of two instances on PostgreSQL and one on SQLite.

Always the same histories are played; `NSYNC_HISTORIES=2000` plays that many new ones on SQLite, and a quarter as many on the other. A
failure prints the shortest history that shows it: write it down as a test named for the promise it breaks.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from nsync.namespace.keys import Did
from tests.support.deeds import ARCHIVES, CONTAINERS, DAEMONS, DATASETS, DOIS, FILES, Act
from tests.support.federation import NAMES
from tests.support.federations import Prepared
from tests.support.promises import keep
from tests.support.story import Story

LONG = "NSYNC_HISTORIES" in os.environ
HISTORIES = int(os.environ.get("NSYNC_HISTORIES", "24"))
STEPS_MAX = 45

PHASES = [Phase.generate] if "NSYNC_NO_SHRINK" in os.environ else [Phase.generate, Phase.shrink]

WHO = st.sampled_from(NAMES)
WHERE = st.sampled_from([*["shared"] * 6, *["own"] * 3, "private"])
COLLECTIONS = (*DATASETS, *CONTAINERS)
ALL_SCOPES = ("atlas.shared", *NAMES, *(f"{name}.private" for name in NAMES))
SIZES = st.sampled_from([1, 1, 1, 2])
METADATA = st.sampled_from(
    [
        ("events", 7),
        ("guid", "0123456789abcdef0123456789abcdef"),
        ("campaign", "mc23"),
        ("datatype", "AOD"),
        ("run_number", 42),
        ("project", "data24"),
        ("hidden", True),
        ("obsolete", True),
        ("transient", True),
    ]
)
JSON = st.sampled_from([("colour", "red"), ("colour", ["a", 1, None]), ("energy", 1.5), ("energy", 13)])
DOCUMENTS = st.sampled_from([{"title": "Higgs"}, {"title": "Top", "year": 2024}])


SYNC: tuple[str, str, str, str, Any] = ("", "everybody hears", "", "", None)


def scope_of(who: str, where: str) -> str:
    return {"shared": "atlas.shared", "own": who}.get(where, f"{who}.private")


class Federation(RuleBasedStateMachine):
    """Three instances on copies of `prepared`."""

    prepared: Prepared
    told: type[Story] = Story

    def __init__(self) -> None:
        super().__init__()
        self.opened = ExitStack()
        directory = Path(self.opened.enter_context(tempfile.TemporaryDirectory()))
        self.story = self.told(self.opened.enter_context(self.prepared.copied(directory)))
        self.broken = True

    def teardown(self) -> None:
        with self.opened:
            if not self.broken:
                keep(self.story)

    def act(self, who: str, what: str, where: str, name: str, other: Any = None) -> None:
        with self.whole():
            self.story.act(Act(who, what, Did(scope_of(who, where), name), other))

    def whole(self) -> Whole:
        return Whole(self)

    # ---- bridges and networks

    @rule(who=WHO)
    def work(self, who: str) -> None:
        with self.whole():
            self.story.work(who)

    @rule(who=WHO, seed=st.sampled_from([0, 0, 0, 1, 2]))
    def hear_everybody(self, who: str, seed: int) -> None:
        with self.whole():
            for other in NAMES:
                if other != who:
                    self.story.fetch(who, other, seed)
            self.story.work(who)

    @rule(pair=st.permutations(NAMES))
    def fetch(self, pair: list[str]) -> None:
        with self.whole():
            self.story.fetch(pair[0], pair[1])

    @rule()
    def everybody_hears(self) -> None:
        with self.whole():
            for who in NAMES:
                self.story.work(who)
                for other in NAMES:
                    if other != who:
                        self.story.fetch(who, other)
                self.story.work(who)

    @rule(who=WHO)
    def restart(self, who: str) -> None:
        self.story.restart(who)

    @rule(who=WHO, daemon=st.sampled_from(sorted(DAEMONS)))
    def daemon(self, who: str, daemon: str) -> None:
        with self.whole():
            self.story.run(who, daemon)

    # ---- files and replicas

    @rule(who=WHO, where=WHERE, name=st.sampled_from(FILES), size=SIZES, what=st.sampled_from(["files", "files", "tape"]))
    def add_replica(self, who: str, where: str, name: str, size: int, what: str) -> None:
        self.act(who, what, where, name, size)

    @rule(who=WHO, where=WHERE, name=st.sampled_from(FILES), what=st.sampled_from(["unreplicate", "untape", "tombstone"]))
    def remove_replica(self, who: str, where: str, name: str, what: str) -> None:
        self.act(who, what, where, name)

    @rule(who=WHO, where=WHERE, name=st.sampled_from(FILES), what=st.sampled_from(["bad", "available", "declare bad"]))
    def judge_replica(self, who: str, where: str, name: str, what: str) -> None:
        self.act(who, what, where, name)

    @rule(who=WHO, number=st.integers(0, 2))
    def move_door(self, who: str, number: int) -> None:
        self.act(who, "move door", "own", "", number)

    # ---- collections

    @rule(
        who=WHO,
        where=WHERE,
        name=st.sampled_from(DATASETS),
        files=st.lists(st.sampled_from(FILES), min_size=1, max_size=3, unique=True),
        what=st.sampled_from(["dataset", "publish"]),
    )
    def add_dataset(self, who: str, where: str, name: str, files: list[str], what: str) -> None:
        self.act(who, what, where, name, tuple(files))

    @rule(
        who=WHO,
        where=WHERE,
        theirs=st.sampled_from([None, None, None, "atlas.shared", *NAMES]),
        name=st.sampled_from(COLLECTIONS),
        child=st.sampled_from([*FILES, *COLLECTIONS]),
        what=st.sampled_from(["nest", "attach", "attach", "detach"]),
    )
    def attach(self, who: str, where: str, theirs: str, name: str, child: str, what: str) -> None:
        if (name in DATASETS) == (child in FILES):
            self.act(who, what, where, name, Did(theirs or scope_of(who, where), child))

    @rule(who=WHO, where=WHERE, name=st.sampled_from(ARCHIVES), child=st.sampled_from(FILES), what=st.sampled_from(["pack", "detach"]))
    def archive(self, who: str, where: str, name: str, child: str, what: str) -> None:
        self.act(who, what, where, name, Did(scope_of(who, where), child))

    @rule(who=WHO, where=WHERE, name=st.sampled_from(COLLECTIONS), what=st.sampled_from(["close", "close", "reopen", "monotonic"]))
    def turn(self, who: str, where: str, name: str, what: str) -> None:
        self.act(who, what, where, name)

    @rule(who=WHO, where=WHERE, name=st.sampled_from([*COLLECTIONS, *FILES]), what=st.sampled_from(["delete", "expire"]))
    def remove(self, who: str, where: str, name: str, what: str) -> None:
        self.act(who, what, where, name)

    # ---- open data, metadata

    @rule(who=WHO, where=WHERE, name=st.sampled_from(COLLECTIONS), what=st.sampled_from(["draft", "public", "suspended"]))
    def publish(self, who: str, where: str, name: str, what: str) -> None:
        self.act(who, what, where, name)

    @rule(who=WHO, where=WHERE, name=st.sampled_from(COLLECTIONS), doi=st.sampled_from(DOIS))
    def give_doi(self, who: str, where: str, name: str, doi: str) -> None:
        self.act(who, "doi", where, name, doi)

    @rule(who=WHO, where=WHERE, name=st.sampled_from(COLLECTIONS), number=st.sampled_from([1, 2]))
    def give_record(self, who: str, where: str, name: str, number: int) -> None:
        self.act(who, "record", where, name, number)

    @rule(who=WHO, where=WHERE, name=st.sampled_from(COLLECTIONS), document=DOCUMENTS)
    def give_document(self, who: str, where: str, name: str, document: dict[str, Any]) -> None:
        self.act(who, "document", where, name, document)

    @rule(who=WHO, where=WHERE, name=st.sampled_from([*FILES, *COLLECTIONS]), said=st.one_of(METADATA, JSON))
    def set_metadata(self, who: str, where: str, name: str, said: tuple[str, Any]) -> None:
        self.act(who, "meta", where, name, said)

    @rule(who=WHO, where=WHERE, name=st.sampled_from([*FILES, *COLLECTIONS]), key=st.sampled_from(["colour", "energy"]))
    def forget_metadata(self, who: str, where: str, name: str, key: str) -> None:
        self.act(who, "forget", where, name, key)

    # ---- local rules

    @rule(who=WHO, scope=st.sampled_from(["atlas.shared", *NAMES]), name=st.sampled_from([*FILES, *COLLECTIONS]))
    def want(self, who: str, scope: str, name: str) -> None:
        with self.whole():
            self.story.act(Act(who, "rule", Did(scope, name)))

    @rule(who=WHO, scope=st.sampled_from(["atlas.shared", *NAMES]), name=st.sampled_from([*FILES, *COLLECTIONS]))
    def want_no_more(self, who: str, scope: str, name: str) -> None:
        with self.whole():
            self.story.act(Act(who, "unrule", Did(scope, name)))


class Whole:
    """Marks a history as broken while a step of it runs: promises are checked only where all of them ended."""

    def __init__(self, machine: Federation) -> None:
        self.machine = machine

    def __enter__(self) -> None:
        self.machine.broken = True

    def __exit__(self, error: object, *_: object) -> None:
        self.machine.broken = error is not None


KNOWN: tuple[tuple[str, str, str, str, Any], ...] = (
    ("atlas", "dataset", "atlas.shared", "d1", ("f1", "f2")),
    ("cms", "files", "cms.private", "f1", 1),
    ("cms", "dataset", "cms.private", "d1", ("f2", "f3")),
    ("belle2", "publish", "belle2.private", "d2", ("f1",)),
    SYNC,
    ("cms", "attach", "atlas.shared", "d1", Did("cms.private", "f1")),
    ("atlas", "close", "atlas.shared", "d1", None),
    ("belle2", "files", "atlas.shared", "f3", 1),
    SYNC,
    ("atlas", "detach", "atlas.shared", "d1", Did("atlas.shared", "f2")),
    SYNC,
    ("atlas", "reopen", "atlas.shared", "d1", None),
    ("atlas", "attach", "atlas.shared", "d1", Did("atlas.shared", "f3")),
    ("atlas", "close", "atlas.shared", "d1", None),
    SYNC,
    ("belle2", "nest", "atlas.shared", "c1", Did("atlas.shared", "c2")),
    ("cms", "delete", "atlas.shared", "d2", None),
    ("belle2", "unreplicate", "atlas.shared", "f3", None),
)
"""A story in which each promise has its part: private names, sizes, counters, a close, removals."""


def test_a_known_history_keeps_the_promises(prepared: dict[str, Path], tmp_path: Path) -> None:
    directory = tmp_path / "known"
    directory.mkdir()
    with Prepared(prepared).copied(directory) as instances:
        tell_known(Story(instances))


def tell_known(story: Story) -> None:
    for act in KNOWN:
        if act is SYNC:
            story.settle()
        else:
            who, what, scope, name, other = act
            story.act(Act(who, what, Did(scope, name), other))
    keep(story)


def play(prepared: Prepared, histories: int, told: type[Story] = Story) -> None:
    machine = type("Federation", (Federation,), {"prepared": prepared, "told": told})
    chosen = settings(
        max_examples=histories,
        stateful_step_count=STEPS_MAX,
        derandomize=not LONG,
        deadline=None,
        database=None,
        phases=PHASES,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=chosen)


@pytest.mark.timeout(300 + 20 * HISTORIES)
def test_any_history_on_sqlite_keeps_the_promises(prepared_sqlite: Prepared) -> None:
    play(prepared_sqlite, HISTORIES)


@pytest.mark.postgres
@pytest.mark.timeout(300 + 20 * HISTORIES)
def test_any_history_on_both_kinds_keeps_the_promises(prepared_mixed: Prepared) -> None:
    play(prepared_mixed, max(1, HISTORIES // 4))
