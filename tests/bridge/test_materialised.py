"""What Materialise leaves for Rucio's own daemons, and that it writes a changeset part by part as it writes it whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from nsync.auth.keys import verify
from nsync.rucio_bridge.bridge import Bridge
from nsync.store import changes
from tests.support.federation import AUTHORITY, KEYS
from tests.support.instances import EXPRESSION, Instance, everything, settle


def test_one_message_tells_of_a_changeset(either: Sequence[Instance]) -> None:
    atlas, cms, _ = either
    atlas.publish_dataset("atlas", "d1", files=3)
    settle(either)
    ((payload,),) = cms.query("SELECT payload FROM messages WHERE event_type = 'NSYNC_CHANGESET' AND payload LIKE '%atlas %'")
    told = json.loads(payload)
    assert told["added"] == {"dids": 4, "attachments": 3, "replicas": 3} and told["removed"] == {}
    assert cms.query("SELECT event_type FROM messages WHERE event_type <> 'NSYNC_CHANGESET'") == [], "Rucio's own tell of each DID"
    atlas.detach("atlas", "d1", [("atlas", "d1.f0")])
    settle(either)
    last = cms.query("SELECT payload FROM messages WHERE event_type = 'NSYNC_CHANGESET' ORDER BY created_at DESC")[0][0]
    assert json.loads(last)["removed"] == {"attachments": 1}
    assert not atlas.query("SELECT payload FROM messages WHERE event_type = 'NSYNC_CHANGESET' AND payload LIKE '%atlas %'")


def test_foreign_collections_are_new_to_subscriptions_where_the_operator_says_so(either: Sequence[Instance]) -> None:
    atlas, cms, belle2 = either
    cms.bridge = Bridge(cms.engine, AUTHORITY, cms.bridge.me, KEYS["cms"].sign, verify, EXPRESSION, is_new=True)
    atlas.publish_dataset("atlas", "d1", files=1)
    settle(either)
    is_new = "SELECT name, is_new FROM dids WHERE scope = 'atlas' ORDER BY name"
    assert cms.query(is_new) == [("d1", 1), ("d1.f0", None)]
    assert belle2.query(is_new) == [("d1", None), ("d1.f0", None)]


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_changeset_is_written_part_by_part_as_it_is_whole(
    size: int, either: Sequence[Instance], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    atlas, cms, belle2 = either
    for number in range(2):
        atlas.publish_dataset("atlas", f"d{number}", files=5, doi=f"10.1234/d{number}")
    atlas.work()
    cms.fetch(atlas)
    belle2.fetch(atlas)
    cms.work()
    monkeypatch.setattr(changes, "PART_FACTS", size)
    belle2.work()
    assert belle2.rows() == cms.rows() == atlas.rows()
    atlas.set_open_data("atlas", "d0", doi="10.1234/swap")
    atlas.set_open_data("atlas", "d1", doi="10.1234/d0")
    atlas.set_open_data("atlas", "d0", doi="10.1234/d1")
    atlas.detach("atlas", "d0", [("atlas", f"d0.f{n}") for n in range(4)])
    atlas.delete_replicas("atlas", [f"d0.f{n}" for n in range(4)])
    settle(either)
    assert belle2.rows() == cms.rows() == atlas.rows() and not cms.parked() and not belle2.parked()
    counted = "SELECT sum(files), sum(bytes) FROM updated_rse_counters c JOIN rses r ON r.id = c.rse_id WHERE r.rse = 'ATLAS_DISK'"
    assert belle2.query(counted) == cms.query(counted) == [(6, 60)]
    updated = "SELECT name, rule_evaluation_action FROM updated_dids WHERE scope = 'atlas' ORDER BY name, rule_evaluation_action"
    assert belle2.query(updated) == cms.query(updated) == [("d0", "A"), ("d0", "D"), ("d1", "A")]


def test_what_does_not_fit_is_parked_whole_in_whatever_part_it_comes(either: Sequence[Instance], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first part is written before the last one is seen, and undone."""
    atlas, cms, _ = either
    monkeypatch.setattr(changes, "PART_FACTS", 2)
    with cms.session() as session:
        session.connection().exec_driver_sql(
            "INSERT INTO dids (scope, name, account, did_type, bytes, adler32, availability, monotonic, hidden, obsolete, suppressed, "
            "purge_replicas, transient, created_at, updated_at) VALUES ('atlas', 'd1.f4', 'root', 'F', 1, '00000009', 'A', FALSE, FALSE, "
            "FALSE, FALSE, TRUE, FALSE, '2026-01-01', '2026-01-01')"
        )
    before = everything(cms)
    atlas.publish_dataset("atlas", "d1", files=5)
    settle(either)
    assert any("exists here as" in reason for reason in cms.parked().values()) and len(cms.parked()) == 17
    after = everything(cms)
    assert {table for table, rows in before.items() if rows != after[table] and not table.startswith("nsync_")} == set()
