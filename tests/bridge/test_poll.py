"""Capture without triggers, on both back-ends: what a poll finds, what only an audit finds, and that nothing is lost for ever."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rucio.common.types import InternalScope
from rucio.db.sqla import models
from rucio.db.sqla.constants import DIDType, OpenDataDIDState
from sqlalchemy import insert, text, update

from nsync.namespace.keys import Attachment, Did
from nsync.rucio_bridge import poll as polls
from nsync.rucio_bridge import triggers
from nsync.transport.times import wall_ms
from tests.bridge.test_state_machine import KNOWN, play, tell
from tests.support.deeds import DATASETS, DOIS, FILES, Act, do
from tests.support.federations import Prepared, lone
from tests.support.instances import ROOT, Instance
from tests.support.polled import ask_for_audit, poll, published, unpoll, work, work_with_audit
from tests.support.story import Story

OVERLAP_S = 60.0


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def back_end(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def atlas(request: pytest.FixtureRequest, back_end: str, tmp_path: Path) -> Iterator[Instance]:
    """An instance that shares its scope, which has the dataset d1 with the file f1; it polls, and all is published."""
    with lone(request, back_end, tmp_path) as instance:
        poll(instance, OVERLAP_S)
        instance.add_scope("atlas")
        instance.add_scope("private")
        instance.add_files("atlas", ["f1"])
        instance.add_did("atlas", "d1")
        instance.attach("atlas", "d1", [("atlas", "f1")])
        work(instance)
        assert {Did("atlas", "d1"), Did("atlas", "f1")} < instance.catalogue().keys()
        yield instance


def late(instance: Instance, seconds: float, name: str) -> None:
    """A dataset whose row was stamped `seconds` ago, and which is committed only now."""
    stamp = datetime.utcnow() - timedelta(seconds=seconds)
    with instance.session() as session:
        known: dict[str, Any] = {"account": ROOT, "did_type": DIDType.DATASET, "is_open": True, "created_at": stamp, "updated_at": stamp}
        session.execute(insert(models.DataIdentifier.__table__).values(scope=InternalScope("atlas"), name=name, **known))


# ---- what a poll finds


def test_what_users_do_is_found_and_published_once(atlas: Instance) -> None:
    atlas.publish_dataset("atlas", "d2", doi="10.5072/D2")
    assert published(work(atlas)) > 4
    found = atlas.catalogue()
    assert {Did("atlas", "d2"), Did("atlas", "d2.f0"), Attachment(Did("atlas", "d2"), Did("atlas", "d2.f0"))} < found.keys()
    assert found[Did("atlas", "d2")].opendata == "PUBLIC" and found[Did("atlas", "d2")].doi == "10.5072/D2"  # type: ignore[union-attr]
    assert published(work(atlas)) == 0, "what was found once more says nothing new"
    atlas.set_open_data("atlas", "d2", state=OpenDataDIDState.SUSPENDED)
    assert published(work(atlas)) == 1
    with atlas.engine.connect() as connection:
        assert not triggers.installed(connection)


def test_what_is_not_shared_stays_here(atlas: Instance) -> None:
    atlas.add_did("private", "d1")
    assert published(work(atlas)) == 0 and Did("private", "d1") not in atlas.catalogue()
    atlas.add_open_data("private", "d1")
    assert published(work(atlas)) == 0


def test_a_slow_commit_within_the_overlap_is_published_by_the_poll(atlas: Instance) -> None:
    late(atlas, OVERLAP_S / 2, "late")
    assert published(work(atlas)) == 1 and Did("atlas", "late") in atlas.catalogue()


def test_a_slower_commit_is_published_by_the_next_audit(atlas: Instance) -> None:
    late(atlas, OVERLAP_S + 10, "late")
    assert published(work(atlas)) == 0
    assert published(work_with_audit(atlas)) == 1 and Did("atlas", "late") in atlas.catalogue()


@pytest.mark.postgres
@pytest.mark.parametrize("back_end", ["postgresql"])
def test_a_transaction_that_stays_open_while_others_are_polled(atlas: Instance) -> None:
    """The overlap is shorter than it lasts: the poll misses it, and the audit does not, even one that begins before it commits."""
    poll(atlas, 0.0)
    with atlas.sessions.begin() as slow:
        slow.execute(update(models.DataIdentifier.__table__).where(models.DataIdentifier.name == "d1").values(is_open=False))
        atlas.add_did("atlas", "d2")
        assert published(work(atlas)) == 1
        work_with_audit(atlas)
    assert published(work(atlas)) == 1, "the audit waited for it"
    assert atlas.catalogue()[Did("atlas", "d1")].closed  # type: ignore[union-attr]


@pytest.mark.postgres
@pytest.mark.parametrize("back_end", ["postgresql"])
def test_a_transaction_that_commits_within_the_overlap(atlas: Instance) -> None:
    with atlas.sessions.begin() as slow:
        slow.execute(update(models.DataIdentifier.__table__).where(models.DataIdentifier.name == "d1").values(is_open=False))
        atlas.add_did("atlas", "d2")
        assert published(work(atlas)) == 1
    assert published(work(atlas)) == 1 and atlas.catalogue()[Did("atlas", "d1")].closed  # type: ignore[union-attr]


def test_what_is_deleted_is_found_by_an_audit(atlas: Instance) -> None:
    atlas.detach("atlas", "d1", [("atlas", "f1")])
    assert published(work(atlas)) == 0
    assert published(work_with_audit(atlas)) == 1
    assert Attachment(Did("atlas", "d1"), Did("atlas", "f1")) not in atlas.catalogue()


def test_audits_come_by_themselves(atlas: Instance) -> None:
    poll(atlas, OVERLAP_S, audit_interval_s=3600)
    atlas.detach("atlas", "d1", [("atlas", "f1")])
    assert published(work(atlas)) == 0
    assert published(work(atlas, later_s=3600)) == 1


# ---- parts, marks


def test_a_sweep_goes_on_where_it_was(atlas: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts are changesets, and a process that begins anew goes on with them; none is left out and none is said twice."""
    monkeypatch.setattr(polls, "ROWS_MAX", 7)
    atlas.add_files("atlas", [f"g{i:02d}" for i in range(40)])
    first = atlas.bridge.work(wall_ms())
    assert first.published and not first.idle
    poll(atlas, OVERLAP_S)
    done = work(atlas)
    assert len([worked for worked in done if worked.published]) > 3
    assert {Did("atlas", f"g{i:02d}") for i in range(40)} < atlas.catalogue().keys()
    assert published(work(atlas)) == 0


def test_rows_of_one_stamp_are_not_divided(atlas: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a bulk load by SQL makes them: more than there is room for in one part."""
    atlas.add_files("atlas", [f"g{i:02d}" for i in range(30)])
    with atlas.session() as session:
        session.execute(text("UPDATE dids SET updated_at = (SELECT max(updated_at) FROM dids)"))
    monkeypatch.setattr(polls, "ROWS_MAX", 7)
    work(atlas)
    assert {Did("atlas", f"g{i:02d}") for i in range(30)} < atlas.catalogue().keys()


def test_what_is_rolled_back_is_swept_again(atlas: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    poll(atlas, 0.0)
    work(atlas)
    atlas.add_did("atlas", "d2")

    def fails(*_: object) -> object:
        raise RuntimeError("planted")

    with monkeypatch.context() as planted:
        planted.setattr(atlas.bridge, "_acknowledge", fails)
        with pytest.raises(RuntimeError, match="planted"):
            atlas.bridge.work(wall_ms())
    assert published(work(atlas)) == 1


# ---- what others said meanwhile


def test_what_users_did_unheard_is_not_overwritten(template_database: Path, tmp_path: Path) -> None:
    """atlas deletes what cms changes meanwhile. Nothing has swept atlas' rows when it applies what cms says."""
    atlas, cms = (Instance(template_database, tmp_path, name, ["atlas.shared"], durable=False) for name in ("atlas", "cms"))
    atlas.add_scope("atlas.shared")
    atlas.add_files("atlas.shared", ["f1"])
    atlas.add_did("atlas.shared", "d1")
    for _ in range(2):
        for one, other in ((atlas, cms), (cms, atlas)):
            work(one)
            other.fetch(one)
    poll(atlas)
    work(atlas)
    with cms.session() as session:
        session.execute(text("UPDATE dids SET project = 'cms' WHERE name = 'd1'"))
    work(cms)
    atlas.fetch(cms)
    with atlas.session() as session:
        session.execute(text("DELETE FROM dids WHERE name = 'd1'"))
    assert published(work(atlas)) == 1
    assert Did("atlas.shared", "d1") not in atlas.catalogue(), "the deletion was said before the row could be written again"
    assert atlas.query("SELECT name FROM dids WHERE name = 'd1'") == []


# ---- histories


WHAT = (
    *("files", "files", "dataset", "dataset", "publish", "publish", "attach", "attach", "attach", "detach"),
    *("close", "close", "reopen", "draft", "public", "suspended", "doi"),
)


def acts(seed: int) -> list[Act]:
    """What users of one instance do, with few names. A name that is deleted is not made anew: of that a poll sees less."""
    rng = random.Random(seed)
    found = []
    for kind in rng.choices(WHAT, k=60):
        parent = Did(rng.choice(["atlas", "atlas", "private"]), rng.choice(DATASETS))
        file = Did(rng.choice([parent.scope, "atlas"]), rng.choice(FILES))
        other: Any = {"files": 1, "doi": rng.choice(DOIS)}.get(kind, file)
        if kind in ("dataset", "publish"):
            other = rng.sample(FILES, 2)
        found.append(Act("atlas", kind, file if kind == "files" else parent, other))
    return [*found, Act("atlas", "delete", Did("atlas", "d2")), Act("atlas", "unreplicate", Did("atlas", rng.choice(FILES)))]


@pytest.mark.parametrize("seed", [1, 2])
def test_any_history_ends_as_with_triggers(request: pytest.FixtureRequest, back_end: str, tmp_path: Path, seed: int) -> None:
    ends = []
    for polled in (False, True):
        (directory := tmp_path / str(polled)).mkdir()
        with lone(request, back_end, directory) as instance:
            instance.add_scope("atlas")
            instance.add_scope("private")
            if polled:
                poll(instance, OVERLAP_S)
            for at, act in enumerate(acts(seed)):
                do(instance, act)
                if at % 7 == seed:
                    work(instance)
            (work_with_audit if polled else work)(instance)
            ends.append((instance.catalogue(), instance.rows()))
    assert ends[1] == ends[0]
    assert len(ends[0][0]) > 5


class PolledStory(Story):
    """atlas polls, and its sweeps find everything; cms polls, and its sweeps find nothing; belle2 has triggers."""

    def local(self, who: str, what: Callable[[Instance], None]) -> None:
        super().local(who, what)
        if who in OVERLAPS_S:
            poll(self.instances[who], OVERLAPS_S[who])

    def settle(self) -> None:
        for name in OVERLAPS_S:
            ask_for_audit(self.instances[name])
        super().settle()
        for name in OVERLAPS_S:
            unpoll(self.instances[name])


OVERLAPS_S = {"atlas": 0, "cms": -1e9}
"""Time in stories is long before what Rucio stamps."""


def test_a_known_history_of_which_two_are_polled_keeps_the_promises(prepared_sqlite: Prepared, tmp_path: Path) -> None:
    with prepared_sqlite.copied(tmp_path) as instances:
        tell(PolledStory(instances), KNOWN)


@pytest.mark.timeout(300)
def test_any_history_of_which_two_are_polled_keeps_the_promises(prepared_sqlite: Prepared) -> None:
    play(prepared_sqlite, 3, PolledStory)
