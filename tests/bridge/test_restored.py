"""A database that was restored from a copy signs nothing more, goes on applying, and publishes again as the next incarnation (R4.6)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nsync.authority.documents import sign
from nsync.errors import ConfigError
from nsync.log.stored import Head
from nsync.namespace.keys import Did
from tests.support.federation import AUTHOR, CHARTER, NAMES, ROOTS, charter_document
from tests.support.instances import Instance, settle

CMS = AUTHOR["cms"]


def amended(final: Head, version: int = 2) -> str:
    """The charter of the tests, and an amendment: a new incarnation of cms, whose log before it ended at `final`."""
    body = json.loads(charter_document())["charter"]
    entry = body["members"][NAMES.index("cms")]["instances"][0]
    past = {"key": entry["key"], "incarnation": entry["incarnation"], "final": [final.seq, final.hash.hex()]}
    entry.update(incarnation=bytes([7] * 16).hex(), past=[past])
    document = {"charter": {**body, "version": version, "federation": CHARTER.federation.hex(), "previous": CHARTER.hash.hex()}}
    document["signatures"] = {}
    for name in NAMES:
        document = sign(document, ROOTS[name])
    return json.dumps([json.loads(charter_document()), document])


def adopt(instances: list[Instance], text: str) -> None:
    for instance in instances:
        instance.bridge.adopt(text, instance.now_ms)


def back_up(instance: Instance) -> Path:
    instance.checkpoint()
    return Path(shutil.copyfile(instance.path, instance.path.with_suffix(".backup")))


def restore(instance: Instance, backup: Path) -> None:
    instance.checkpoint()
    instance.close()
    shutil.copyfile(backup, instance.path)


def publish(instance: Instance, name: str) -> None:
    instance.add_did(instance.name, name)
    instance.work()


def restored(federation: list[Instance]) -> Head:
    """cms publishes d1, is backed up, publishes d2, which all get, and is restored; returns the end of its log elsewhere."""
    adopt(federation, charter_document())
    atlas, cms, _ = federation
    publish(cms, "d1")
    backup = back_up(cms)
    publish(cms, "d2")
    settle(federation)
    restore(cms, backup)
    (head,) = [head for head in atlas.bridge.heads() if head.author == CMS]
    return head


def shown(instance: Instance) -> set[str]:
    return {fact.name for fact in instance.catalogue() if isinstance(fact, Did) and fact.scope in ("cms", "atlas")}


def test_a_restored_instance_goes_on_applying_and_publishes_as_its_next_incarnation(
    federation: list[Instance], caplog: pytest.LogCaptureFixture
) -> None:
    atlas, cms, belle2 = federation
    final = restored(federation)
    cms.add_did("cms", "d3")
    publish(atlas, "a1")
    cms.fetch(atlas)
    cms.work()
    settle(federation)
    assert shown(cms) == shown(atlas) == {"d1", "d2", "a1"}, "its own log came back, and what others say"
    assert cms.query("SELECT name FROM dids WHERE scope = 'cms' ORDER BY name") == [("d1",), ("d2",), ("d3",)]
    assert cms.query("SELECT count(*) FROM nsync_outbox WHERE b = 'd3'") > [(0,)], "what users do waits"
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 1 and "a backup was restored" in told[0], told

    adopt(federation, amended(final))
    settle(federation)
    assert shown(cms) == shown(atlas) == shown(belle2) == {"d1", "d2", "d3", "a1"}
    assert cms.bridge.me.author != CMS
    assert {head.author for head in atlas.bridge.heads()} >= {CMS, cms.bridge.me.author}
    assert atlas.rows() == cms.rows() == belle2.rows()


def test_it_begins_only_when_its_log_before_is_here(federation: list[Instance]) -> None:
    atlas, cms, _ = federation
    adopt([atlas, cms], amended(restored(federation)))
    publish(cms, "d3")
    assert cms.segments(cms.bridge.me.author) == 0
    cms.fetch(atlas)
    cms.work()
    assert cms.segments(cms.bridge.me.author) > 0 and shown(cms) == {"d1", "d2", "d3"}


def test_a_database_that_signed_before_it_heard_is_read_only_too(federation: list[Instance]) -> None:
    """Its log has two branches now; the charter names the one that goes on."""
    atlas, cms, belle2 = federation
    final = restored(federation)
    publish(cms, "d3")
    settle(federation)
    publish(cms, "d4")
    assert "d4" not in shown(cms)
    adopt(federation, amended(final))
    settle(federation)
    assert shown(cms) == shown(atlas) == shown(belle2) >= {"d1", "d2", "d4"}
    assert "d3" not in shown(atlas), "it stood on the other branch"
    publish(cms, "d5")
    settle(federation)
    assert "d5" in shown(atlas)


def test_a_charter_never_goes_back_or_aside(federation: list[Instance]) -> None:
    (cms,) = [instance for instance in federation if instance.name == "cms"]
    final = restored(federation)
    cms.bridge.adopt(amended(final, version=3), cms.now_ms)
    assert cms.bridge.authority.charter.version == 1, "it is no amendment of what is in force, and counts for nothing"
    cms.bridge.adopt(amended(final), cms.now_ms)
    with pytest.raises(ConfigError, match="version 2 is in force here, and never goes back"):
        cms.bridge.adopt(charter_document(), cms.now_ms)
    with pytest.raises(ConfigError, match="version 2 in the file does not go on from version 2"):
        cms.bridge.adopt(amended(final._replace(seq=final.seq + 1)), cms.now_ms)
    with pytest.raises(ConfigError, match="this database is of"):
        cms.bridge.adopt(charter_document(guests=False), cms.now_ms)


def test_what_a_guest_made_in_an_earlier_incarnation_it_can_remove(federation: list[Instance]) -> None:
    cms = federation[1]
    cms.add_did("atlas.shared", "g1")
    cms.work()
    final = restored(federation)
    settle(federation)
    adopt(federation, amended(final))
    settle(federation)
    assert all(names_in(instance) == ["g1"] for instance in federation)
    cms.delete_did("atlas.shared", "g1")
    settle(federation)
    assert all(names_in(instance) == [] for instance in federation)


def names_in(instance: Instance) -> list[str]:
    return [name for (name,) in instance.query("SELECT name FROM dids WHERE scope = 'atlas.shared'")]
