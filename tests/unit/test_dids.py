"""What an entry of a DID shows: its fields, its identity, its replicas (R3.5, R3.6)."""

from __future__ import annotations

from typing import Any

import pytest

from nsync.catalogue import dids, identity
from nsync.catalogue.entries import ReplicaEntry, entry_from_wire
from nsync.catalogue.rules import NEWEST_RULE
from nsync.namespace import codec, fields
from nsync.namespace.keys import Attribute, Replica, Rse
from nsync.namespace.ops import Assert, Retract
from tests.support.shared import Federation, did, exists, field

ENERGY = f"{fields.JSON_PREFIX}energy"


def test_an_entry_shows_every_field_that_stands() -> None:
    shared = Federation()
    shared.begin("f1")
    said: dict[str, Any] = {
        fields.MONOTONIC: True,
        fields.HIDDEN: True,
        fields.OBSOLETE: True,
        fields.RECORD: 7,
        fields.OPENDATA_META: '{"title":"collisions"}',
        "project": "mc",
        "events": 12,
        "guid": b"\1" * 16,
        ENERGY: "13.6",
    }
    shared.atlas.say(*(field("f1", name, value) for name, value in said.items()))
    shared.sync()
    entry = shared.entry("f1")
    assert (entry.monotonic, entry.hidden, entry.obsolete, entry.record) == (True, True, True, 7)
    assert entry.opendata_meta == '{"title":"collisions"}'
    assert entry.meta == (("events", 12), ("guid", b"\1" * 16), (ENERGY, "13.6"), ("project", "mc"))
    assert entry_from_wire(did("f1"), codec.load(codec.pack(entry))) == entry
    shared.atlas.say(Retract(Attribute(did("f1"), ENERGY)), Retract(Attribute(did("f1"), fields.HIDDEN)))
    shared.sync()
    assert dict(shared.entry("f1").meta).keys() == {"events", "guid", "project"}
    assert shared.entry("f1").hidden is False


def test_a_field_of_a_later_version_is_kept_and_not_shown() -> None:
    shared = Federation()
    shared.begin("f1")
    shared.atlas.say(field("f1", "colour", "red"))
    shared.sync()
    assert shared.entry("f1").meta == ()


def test_the_events_of_a_collection_are_never_taken_from_a_statement() -> None:
    shared = Federation()
    shared.begin("d1")
    shared.atlas.say(field("d1", "events", 12), field("d1", "project", "mc"))
    shared.sync()
    assert shared.entry("d1").meta == (("project", "mc"),)


def test_of_values_said_at_once_the_newest_shows_and_the_other_is_told() -> None:
    shared = Federation()
    shared.begin("f1")
    shared.atlas.say(field("f1", "project", "mc"), field("f1", "campaign", "same"))
    shared.belle2.say(field("f1", "project", "data"), field("f1", "campaign", "same"))
    shared.sync()
    assert shared.entry("f1").meta == (("campaign", "same"), ("project", "data"))
    conflict = shared.conflict(did("f1"))
    assert conflict is not None
    assert (conflict.rule, conflict.winner, conflict.loser) == (NEWEST_RULE, "belle2: project data", "atlas: project mc")
    shared.atlas.say(field("f1", "project", "mc"))
    shared.sync()
    assert dict(shared.entry("f1").meta)["project"] == "mc"
    assert shared.atlas.state.conflicts == {}


def test_an_entry_shows_a_bounded_number_of_fields_and_tells_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dids, "META_FIELDS_MAX", 3)
    shared = Federation()
    shared.begin("f1")
    shared.atlas.say(*(field("f1", f"{fields.JSON_PREFIX}k{number}", "1") for number in range(5)))
    shared.sync()
    assert [name for name, _ in shared.entry("f1").meta] == [f"{fields.JSON_PREFIX}k{number}" for number in range(3)]
    assert shared.rule(did("f1")) == dids.META_RULE


def test_an_entry_shows_a_bounded_size_of_metadata() -> None:
    shared = Federation()
    shared.begin("f1")
    names = [f"{fields.JSON_PREFIX}k{number:02}" for number in range(20)]
    for name in names:
        shared.atlas.say(field("f1", name, f'"{"x" * 59_990}"'))
    shared.sync()
    shown = shared.entry("f1").meta
    assert [name for name, _ in shown] == names[: dids.META_BYTES_MAX // 59_990]
    assert shared.rule(did("f1")) == dids.META_RULE


def test_who_withdraws_another_identity_is_told_of_no_more() -> None:
    shared = Federation()
    shared.cms.say(exists("f1", size=1))
    shared.acknowledge()
    shared.belle2.say(exists("f1", size=2))
    shared.atlas.fetch(shared.belle2)
    assert shared.rule(did("f1")) == identity.RULE
    shared.belle2.say(Retract(did("f1")))
    shared.acknowledge()
    assert shared.entry("f1").identity.size == 1
    assert shared.atlas.state.conflicts == {}


def lent(shared: Federation, path: str = "p") -> Replica:
    """cms says that f1 lies on its disk."""
    rse = Rse("cms", "DISK")
    replica = Replica(did("f1"), rse)
    shared.cms.say(Assert(rse, True), Assert(replica, path))
    shared.sync()
    return replica


def test_a_replica_shows_its_state() -> None:
    shared = Federation()
    shared.begin("f1")
    replica = lent(shared)
    assert shared.atlas.state.catalogue[replica] == ReplicaEntry("p", fields.AVAILABLE)
    shared.cms.say(Assert(Attribute(replica, fields.STATE), fields.BAD))
    shared.sync()
    assert shared.atlas.state.catalogue[replica] == ReplicaEntry("p", fields.BAD)


def test_a_replica_is_of_what_its_instance_last_said_the_file_is() -> None:
    """A file that was made again with other bytes keeps its first identity, and the new bytes are not shown as it."""
    shared = Federation()
    shared.cms.say(exists("f1", size=1))
    replica = lent(shared)
    assert shared.shown(replica)
    shared.cms.say(exists("f1", size=2))
    shared.sync()
    assert shared.entry("f1").identity.size == 1
    assert not shared.shown(replica)
    assert shared.rule(replica) == identity.RULE
    shared.cms.say(exists("f1", size=1))
    shared.sync()
    assert shared.shown(replica)
    assert shared.atlas.state.conflicts == {}
