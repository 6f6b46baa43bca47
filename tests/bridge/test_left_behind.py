"""What Materialise leaves beside the rows that everybody sees: histories, marks, sizes of locks, and the metadata of what is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from rucio.common.types import InternalScope
from rucio.core import did as core_did
from rucio.core.rule import add_rule
from sqlalchemy import text

from nsync.rucio_bridge import closing
from tests.support.federations import Prepared
from tests.support.instances import ROOT, Instance, settle

SHARED = "atlas.shared"


@pytest.fixture
def on_postgres(prepared_postgresql: Prepared, tmp_path: Path) -> Iterator[list[Instance]]:
    """Rucio has JSON there."""
    with prepared_postgresql.copied(tmp_path) as made:
        yield made


def set_json(instance: Instance, scope: str, name: str, key: str, value: str) -> None:
    with instance.session() as session:
        core_did.set_metadata(InternalScope(scope), name, key, value, session=session)


def rule_on(instance: Instance, scope: str, name: str, notify: str | None = None) -> None:
    with instance.session() as session:
        dids = [{"scope": InternalScope(scope), "name": name}]
        add_rule(dids, ROOT, 1, "DISK", "DATASET", None, None, False, None, notify=notify, session=session)


def test_what_is_detached_is_in_rucios_history_and_locks_have_the_new_size(either: list[Instance]) -> None:
    atlas, cms, _ = either
    cms.publish_dataset("cms", "d1", files=3)
    settle(either)
    rule_on(atlas, "cms", "d1")
    size = "SELECT length, bytes FROM dataset_locks WHERE name = 'd1'"
    assert atlas.query(size) == [(3, 30)]
    cms.detach("cms", "d1", [("cms", "d1.f0")])
    settle(either)
    gone = "SELECT scope, name, child_scope, child_name, did_type, child_type, bytes FROM contents_history"
    assert atlas.query(f"{gone} WHERE deleted_at IS NOT NULL AND did_created_at IS NOT NULL") == [
        ("cms", "d1", "cms", "d1.f0", "D", "F", 10)
    ]
    assert atlas.query(size) == [(2, 20)]


def test_archives_and_what_is_in_them_are_marked_and_remembered(either: list[Instance]) -> None:
    _, cms, belle2 = either
    cms.add_files("cms", ["a.zip", "f1"])
    cms.add_did("cms", "d1")
    cms.attach("cms", "d1", [("cms", "a.zip")])
    cms.attach("cms", "a.zip", [("cms", "f1")])
    settle(either)
    marks = "SELECT name, coalesce(is_archive, FALSE), coalesce(constituent, FALSE) FROM dids WHERE scope = 'cms' ORDER BY name"
    assert belle2.query(marks) == [("a.zip", True, False), ("d1", True, False), ("f1", False, True)]
    assert belle2.query("SELECT name, child_name, bytes FROM archive_contents") == [("a.zip", "f1", 10)]
    with cms.session() as session:
        session.execute(text("DELETE FROM archive_contents"))
    settle(either)
    assert belle2.query("SELECT name FROM archive_contents") == []
    assert belle2.query("SELECT name, child_name, bytes FROM archive_contents_history") == [("a.zip", "f1", 10)]


def test_who_has_a_rule_is_notified_of_a_close(either: list[Instance], monkeypatch: pytest.MonkeyPatch) -> None:
    atlas, cms, _ = either
    cms.add_did("cms", "d1")
    cms.add_did("cms", "d2")
    settle(either)
    rule_on(atlas, "cms", "d1")
    told: list[str] = []
    monkeypatch.setattr(closing, "generate_rule_notifications", lambda rule, session: told.append(rule.name))
    for name in ("d1", "d2"):
        cms.set_open("cms", name, False)
    settle(either)
    assert told == ["d1"]


def test_the_json_of_what_left_goes_too(on_postgres: list[Instance]) -> None:
    atlas, cms, _ = on_postgres
    cms.add_did("cms", "d1")
    set_json(cms, "cms", "d1", "colour", "red")
    settle(on_postgres)
    assert atlas.query("SELECT meta->>'colour' FROM did_meta") == [("red",)]
    with cms.session() as session:
        session.execute(text("DELETE FROM did_meta"))
        session.execute(text("DELETE FROM dids WHERE name = 'd1'"))
    settle(on_postgres)
    assert atlas.query("SELECT 1 FROM did_meta") == atlas.query("SELECT 1 FROM dids WHERE name = 'd1'") == [] and atlas.parked() == {}


def test_what_local_users_said_of_it_holds_it(on_postgres: list[Instance]) -> None:
    atlas, cms, _ = on_postgres
    cms.add_did("cms", "d1")
    set_json(cms, "cms", "d1", "colour", "red")
    settle(on_postgres)
    set_json(atlas, "cms", "d1", "ours", "yes")
    with cms.session() as session:
        session.execute(text("DELETE FROM did_meta"))
        session.execute(text("DELETE FROM dids WHERE name = 'd1'"))
    settle(on_postgres)
    assert atlas.query("SELECT meta->>'ours' FROM did_meta") == [("yes",)]
    assert [reason for reason in atlas.parked().values() if "local metadata hold it" in reason]


def test_the_json_of_a_home_s_own_did_stays_when_a_guest_takes_its_claim_back(on_postgres: list[Instance]) -> None:
    atlas, cms, _ = on_postgres
    atlas.bridge.share(["atlas"])  # atlas.shared is its scope, and it shares nothing of it
    atlas.add_did(SHARED, "d1")
    set_json(atlas, SHARED, "d1", "colour", "red")
    settle(on_postgres)
    cms.add_did(SHARED, "d1")
    set_json(cms, SHARED, "d1", "colour", "red")
    settle(on_postgres)
    with cms.session() as session:
        session.execute(text("DELETE FROM did_meta"))
        session.execute(text("DELETE FROM dids WHERE name = 'd1'"))
    settle(on_postgres)
    assert atlas.query("SELECT account FROM dids WHERE name = 'd1'") == [("root",)]
    assert atlas.query("SELECT meta->>'colour' FROM did_meta") == [("red",)]
