"""What holds after any history of three Rucio databases, however their users, daemons, bridges and networks interleave.

Hypothesis chooses the steps; in the end everybody settles, and the promises (tests/support/promises.py) are checked one by one: on SQLite,
where most histories are played, and on a federation of both kinds, of two instances on PostgreSQL and one on SQLite.

Always the same histories are played; `NSYNC_HISTORIES=2000` plays that many new ones on SQLite, and a quarter as many on the other. A
failure prints the shortest history that shows it: write it down as a test named for the promise it breaks.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Optional, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from nsync.namespace.keys import Did
from tests.support.deeds import ARCHIVES, CONTAINERS, DAEMONS, DATASETS, DEEDS, DOIS, FILES, Act
from tests.support.federation import NAMES
from tests.support.federations import Prepared
from tests.support.instances import Instance
from tests.support.promises import keep
from tests.support.story import Story

T = TypeVar("T")

LONG = "NSYNC_HISTORIES" in os.environ
HISTORIES = int(os.environ.get("NSYNC_HISTORIES", "24"))
STEPS_MAX = 45

PHASES = [Phase.generate] if "NSYNC_NO_SHRINK" in os.environ else [Phase.generate, Phase.shrink]

WHO = st.sampled_from(NAMES)
WHERE = st.sampled_from([*["shared"] * 6, *["own"] * 3, "private"])
COLLECTIONS = (*DATASETS, *CONTAINERS)
EVERYTHING = (*COLLECTIONS, *FILES)
SIZES = st.sampled_from([1, 1, 1, 2])
SOME_FILES = st.lists(st.sampled_from(FILES), min_size=1, max_size=3, unique=True).map(tuple)
WHICH = st.integers(0, 23)
"""Of what is there, counted around: most of what users ask for is then something that Rucio can do."""
NAMES_OF: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("files", "tape"), FILES),
    **dict.fromkeys(("monotonic", "dataset", "publish"), DATASETS),
    "collection": COLLECTIONS,
    "nest": CONTAINERS,
    "pack": ARCHIVES,
}
"""What users make, and under which names."""
OF_REPLICAS = ("unreplicate", "untape", "tombstone", "bad", "available", "declare bad")
METADATA: Sequence[tuple[str, Any]] = (
    ("events", 7),
    ("guid", "0123456789abcdef0123456789abcdef"),
    ("campaign", "mc23"),
    ("datatype", "AOD"),
    ("run_number", 42),
    ("project", "data24"),
    ("hidden", True),
    ("obsolete", True),
    ("transient", True),
    ("colour", "red"),
    ("colour", ["a", 1, None]),
    ("energy", 1.5),
    ("energy", 13),
)
JSON_KEYS = ("colour", "energy")
OPEN_DATA: Mapping[str, Sequence[Any]] = {
    "doi": DOIS,
    "record": (1, 2),
    "document": ({"title": "Higgs"}, {"title": "Top", "year": 2024}),
}

PEOPLED: Sequence[tuple[str, str, str, str, Any]] = (
    ("atlas", "publish", "atlas.shared", "d1", ("f1", "f2")),
    ("atlas", "nest", "atlas.shared", "c1", Did("atlas.shared", "d1")),
    ("atlas", "draft", "atlas.shared", "c1", None),
    ("cms", "dataset", "cms", "d1", ("f1", "f2")),
    ("cms", "dataset", "cms.private", "d2", ("f3",)),
    ("cms", "pack", "cms", "a1.zip", Did("cms", "f3")),
    ("belle2", "tape", "belle2", "f1", 1),
    ("belle2", "dataset", "belle2", "d2", ("f2",)),
)
"""What most histories begin with."""

SYNC: tuple[str, str, str, str, Any] = ("", "everybody hears", "", "", None)


def pick(found: Sequence[T], which: int) -> Optional[T]:
    return found[which % len(found)] if found else None


def scope_of(who: str, where: str) -> str:
    return {"shared": "atlas.shared", "own": who}.get(where, f"{who}.private")


class Federation(RuleBasedStateMachine):
    """Three instances on copies of `prepared`."""

    prepared: Prepared
    told: type[Story] = Story
    done: Counter[str]
    """Of all histories, by deed, how often Rucio did it."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = ExitStack()
        directory = Path(self.opened.enter_context(tempfile.TemporaryDirectory()))
        self.story = self.told(self.opened.enter_context(self.prepared.copied(directory)))
        self.broken = True

    def teardown(self) -> None:
        with self.opened:
            self.done.update(self.story.done)
            if not self.broken:
                keep(self.story)

    @initialize(peopled=st.sampled_from([True, True, True, False]))
    def people(self, peopled: bool) -> None:
        for who, what, scope, name, other in PEOPLED if peopled else ():
            self.act(who, what, Did(scope, name), other)
        self.everybody_hears()

    def act(self, who: str, what: str, on: Did, other: Any = None) -> None:
        with self.whole():
            self.story.act(Act(who, what, on, other))

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

    # ---- users: few rules of many deeds, since Hypothesis leaves some rules out of each history

    @rule(who=WHO, where=WHERE, what=st.sampled_from(sorted(NAMES_OF)), which=WHICH, files=SOME_FILES, size=SIZES)
    def make(self, who: str, where: str, what: str, which: int, files: tuple[str, ...], size: int) -> None:
        scope = scope_of(who, where)
        child = Did(scope, files[0] if what == "pack" else COLLECTIONS[which % len(COLLECTIONS)])
        other = {"files": size, "tape": size, "nest": child, "pack": child}.get(what, files)
        self.act(who, what, Did(scope, NAMES_OF[what][which % len(NAMES_OF[what])]), other)

    @rule(who=WHO, what=st.sampled_from(["attach", "attach", "detach", "close", "close", "reopen"]), which=WHICH, child=WHICH)
    def change_collection(self, who: str, what: str, which: int, child: int) -> None:
        if what == "detach":
            columns = "scope, name, child_scope, child_name"
            rows = self.ask(who, f"SELECT {columns} FROM contents UNION ALL SELECT {columns} FROM archive_contents")
            if row := pick(rows, which):
                self.act(who, what, Did(*row[:2]), Did(*row[2:]))
        elif on := pick(self.there(who, COLLECTIONS), which):
            children = self.there(who, FILES if on.name in DATASETS else COLLECTIONS)
            self.act(who, what, on, pick([one for one in children if one != on], child) or on)

    @rule(who=WHO, what=st.sampled_from([*OF_REPLICAS, "move door"]), which=WHICH)
    def change_replica(self, who: str, what: str, which: int) -> None:
        if on := pick(self.there(who, FILES), which):
            self.act(who, what, on, which % 3)

    @rule(who=WHO, what=st.sampled_from(["draft", "public", "public", "suspended", *OPEN_DATA]), which=WHICH, value=WHICH)
    def open_data(self, who: str, what: str, which: int, value: int) -> None:
        if on := pick(self.there(who, COLLECTIONS), which):
            self.act(who, what, on, pick(OPEN_DATA.get(what, ()), value))

    @rule(who=WHO, what=st.sampled_from(["meta", "meta", "meta", "forget"]), which=WHICH, value=WHICH)
    def metadata(self, who: str, what: str, which: int, value: int) -> None:
        if on := pick(self.there(who, EVERYTHING), which):
            self.act(who, what, on, pick(METADATA if what == "meta" else JSON_KEYS, value))

    @rule(who=WHO, what=st.sampled_from(["rule", "rule", "unrule", "delete", "expire"]), which=WHICH)
    def local(self, who: str, what: str, which: int) -> None:
        if on := pick(self.ruled(who) if what == "unrule" else self.there(who, EVERYTHING), which):
            self.act(who, what, on)

    def ruled(self, who: str) -> list[Did]:
        return [Did(*row) for row in self.ask(who, "SELECT scope, name FROM rules")]

    def there(self, who: str, names: Sequence[str]) -> list[Did]:
        """The DIDs of these names in its database."""
        return [Did(*row) for row in self.ask(who, "SELECT scope, name FROM dids") if row[1] in names]

    def ask(self, who: str, query: str) -> list[tuple[Any, ...]]:
        return sorted(self.story.instances[who].query(query))


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
        tell(Story(instances), KNOWN)


def test_a_guid_leaves_the_events_of_closed_collections(federation: list[Instance]) -> None:
    """Rucio writes 0 where it closes what has none; they were added up anew, to NULL, wherever a guest's GUID was written."""
    tell(Story(federation), (*PEOPLED, SYNC, ("belle2", "meta", "atlas.shared", "f2", METADATA[1])))


def tell(story: Story, acts: Sequence[tuple[str, str, str, str, Any]]) -> None:
    for act in acts:
        if act is SYNC:
            story.settle()
        else:
            who, what, scope, name, other = act
            story.act(Act(who, what, Did(scope, name), other))
    keep(story)


def play(prepared: Prepared, histories: int, told: type[Story] = Story) -> Counter[str]:
    """Returns how often Rucio did what users asked for."""
    done: Counter[str] = Counter()
    machine = type("Federation", (Federation,), {"prepared": prepared, "told": told, "done": done})
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
    return done


@pytest.mark.timeout(300 + 20 * HISTORIES)
def test_any_history_on_sqlite_keeps_the_promises(prepared_sqlite: Prepared) -> None:
    done = play(prepared_sqlite, HISTORIES)
    assert len(missing := DEEDS.keys() - +done) <= 3, f"hardly anybody could do these: {missing}"
    assert done.total() >= 8 * HISTORIES, f"Rucio refused nearly everything: {done}"


@pytest.mark.postgres
@pytest.mark.timeout(300 + 20 * HISTORIES)
def test_any_history_on_both_kinds_keeps_the_promises(prepared_mixed: Prepared) -> None:
    play(prepared_mixed, max(1, HISTORIES // 4))
