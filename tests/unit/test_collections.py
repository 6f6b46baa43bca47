"""What a collection holds: one promise a test (6.1, 6.2, 6.5, R5.5)."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest

from nsync.catalogue.collections import ATTACHABLE_RULE, CLOSED_RULE, CYCLE_RULE, MIXED_RULE, TYPES_RULE
from nsync.catalogue.opendata import REOPEN_RULE
from nsync.catalogue.reference import Known
from nsync.catalogue.rules import Reader, close_key
from nsync.catalogue.state import Hanging, Node
from nsync.catalogue.view import derive
from nsync.namespace import fields
from nsync.namespace.keys import Attachment, Attribute, Constituent, Scope
from nsync.namespace.ops import Assert, Retract
from tests.support.shared import SHARED, Federation, attach, close, detach, did, exists, is_in, publish

# ---- mixed containers (6.1)


def test_a_container_holds_what_its_oldest_attachment_holds() -> None:
    shared = Federation()
    shared.begin("c1", "c2", "d1", "d2")
    shared.cms.say(*attach("c1", "d1"))
    shared.belle2.say(*attach("c1", "c2"))
    shared.atlas.say(*attach("c1", "d2"))
    shared.sync()
    assert shared.content("c1") == {"d1", "d2"}
    assert shared.entry("c1").content == "DC"
    conflict = shared.conflict(is_in("c1", "c2"))
    assert conflict is not None and conflict.rule == MIXED_RULE
    assert conflict.winner == f"atlas: {did('c1')} holds datasets, since {is_in('c1', 'd2')}"


def test_a_container_holds_the_others_once_the_oldest_are_gone() -> None:
    shared = Federation()
    shared.begin("c1", "c2", "d1", "d2")
    shared.atlas.say(*attach("c1", "d1", "d2"))
    shared.belle2.say(*attach("c1", "c2"))
    shared.sync()
    assert shared.content("c1") == {"d1", "d2"}
    shared.atlas.say(detach("c1", "d1"))
    shared.sync()
    assert shared.content("c1") == {"d2"}
    shared.atlas.say(detach("c1", "d2"))
    shared.sync()
    assert shared.content("c1") == {"c2"}
    assert shared.entry("c1").content == "C"
    assert shared.atlas.state.conflicts == {}


def test_an_attachment_that_a_close_hides_does_not_decide_what_a_container_holds() -> None:
    shared = Federation()
    shared.begin("c1", "c2", "d1")
    shared.cms.now_ms -= 60_000
    shared.cms.say(*attach("c1", "c2"))  # the smallest key, and too late
    shared.atlas.say(*attach("c1", "d1"))
    shared.atlas.say(close("c1"))
    shared.sync()
    assert shared.content("c1") == {"d1"}
    assert shared.rule(is_in("c1", "c2")) == CLOSED_RULE


def test_an_attachment_that_mixes_a_container_makes_no_cycle() -> None:
    shared = Federation()
    shared.begin("c1", "c2", "d1")
    shared.atlas.say(*attach("c1", "d1"))
    shared.cms.say(*attach("c1", "c2"))
    shared.belle2.say(*attach("c2", "c1"))
    shared.sync()
    assert shared.content("c2") == {"c1"}
    assert shared.rule(is_in("c1", "c2")) == MIXED_RULE


def test_a_type_that_comes_late_mixes_a_container() -> None:
    """A child may arrive long after its attachment."""
    shared = Federation()
    shared.begin("c1", "d1")
    shared.cms.say(*attach("c1", "c2"))
    shared.sync()
    shared.atlas.say(*attach("c1", "d1"))
    shared.sync()
    assert shared.content("c1") == {"d1"} and shared.entry("c1").content == "D"
    shared.belle2.say(exists("c2"))
    shared.sync()
    assert shared.content("c1") == {"c2"} and shared.entry("c1").content == "CD"
    shared.belle2.say(Retract(did("c2")))
    shared.acknowledge()
    assert shared.content("c1") == {"d1"} and shared.entry("c1").content == "D"


def test_what_a_container_holds_is_not_read_again_when_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Federation()
    names = [f"d{number}" for number in range(200)]
    shared.atlas.say(Assert(Scope(SHARED), True), exists("c1"), *map(exists, names), *attach("c1", *names[:-1]))
    assert len(shared.content("c1")) == 199
    read: list[Attachment] = []
    original = Known.hanging_on

    def hanging_on(self: Known, nodes: Collection[Node]) -> Iterable[Hanging]:
        found = list(original(self, nodes))
        read.extend(fact for fact in found if isinstance(fact, Attachment))
        return found

    monkeypatch.setattr(Known, "hanging_on", hanging_on)
    shared.atlas.say(*attach("c1", names[-1]))
    assert len(shared.content("c1")) == 200
    assert read == []


# ---- closes and publications (6.2, 6.5)


def late(shared: Federation, *said: object) -> None:
    """atlas closes and publishes d1 with f1 in it; then `said`, and then cms attaches f2, knowing all of it."""
    shared.begin("d1", "f1", "f2")
    shared.atlas.say(*attach("d1", "f1"))
    shared.atlas.say(close("d1"))
    shared.atlas.say(publish("d1"))
    if said:
        shared.atlas.say(*said)  # type: ignore[arg-type]
    shared.sync()
    shared.cms.say(*attach("d1", "f2"))
    shared.sync()


def test_what_is_attached_after_a_reopening_of_open_data_is_hidden() -> None:
    shared = Federation()
    late(shared, close("d1", False))
    assert shared.entry("d1").closed is True
    assert shared.content("d1") == {"f1"}
    conflict = shared.conflict(is_in("d1", "f2"))
    assert conflict is not None and conflict.rule == CLOSED_RULE
    assert conflict.winner == f"atlas: made PUBLIC {did('d1')}"
    assert shared.rule(did("d1")) == REOPEN_RULE


def test_closing_open_data_once_more_lets_in_what_the_close_has_seen() -> None:
    shared = Federation()
    late(shared, close("d1", False))
    shared.atlas.say(close("d1"))
    shared.sync()
    assert shared.content("d1") == {"f1", "f2"}
    assert shared.atlas.state.conflicts == {}


def test_a_publication_does_not_show_what_the_close_had_hidden() -> None:
    shared = Federation()
    shared.begin("d1", "f1", "f2")
    shared.atlas.say(*attach("d1", "f1"))
    shared.atlas.say(close("d1"))
    shared.cms.say(*attach("d1", "f2"))
    shared.sync()
    shared.atlas.say(publish("d1"))
    shared.sync()
    assert shared.content("d1") == {"f1"}


def test_a_suspension_does_not_open_what_was_closed() -> None:
    shared = Federation()
    late(shared)
    shared.belle2.say(publish("d1", fields.SUSPENDED))
    shared.sync()
    assert shared.entry("d1").opendata == fields.SUSPENDED
    assert shared.content("d1") == {"f1"}


def test_open_data_that_nobody_closed_are_closed_by_the_publication() -> None:
    shared = Federation()
    shared.begin("d1", "f1", "f2")
    shared.atlas.say(*attach("d1", "f1"))
    shared.atlas.say(publish("d1"))
    shared.sync()
    shared.cms.say(*attach("d1", "f2"))
    shared.sync()
    assert shared.entry("d1").closed is True
    assert shared.content("d1") == {"f1"}


def test_after_a_reopening_of_what_is_not_open_data_all_shows() -> None:
    shared = Federation()
    shared.begin("d1", "f1", "f2")
    shared.atlas.say(close("d1"))
    shared.cms.say(*attach("d1", "f1"))
    shared.sync()
    assert shared.content("d1") == set()
    shared.atlas.say(close("d1", False))
    shared.sync()
    assert shared.content("d1") == {"f1"}
    assert shared.atlas.state.conflicts == {}


def test_closing_looks_at_nothing_that_the_close_has_seen() -> None:
    """However much a collection holds; what it has not seen is looked at, and what it hid before."""
    shared = Federation()
    names = [f"f{number}" for number in range(100)]
    shared.begin("d1", "f100", *names)
    shared.atlas.say(*attach("d1", *names))
    shared.atlas.say(close("d1"))
    shared.cms.say(*attach("d1", "f100"))
    shared.sync()
    for value in (True, False, True):
        shared.atlas.say(close("d1", value))
        state = shared.atlas.state
        derived = derive(state.known, Reader(state.world), [close_key(did("d1"))])
        assert len(derived.entries) == 1
    assert len(shared.content("d1")) == 101


def test_a_monotonic_collection_loses_what_its_author_withdraws() -> None:
    """The flag is shown and takes nothing away, as in Rucio's own core."""
    shared = Federation()
    shared.begin("d1", "f1")
    shared.atlas.say(Assert(Attribute(did("d1"), fields.MONOTONIC), True))
    shared.atlas.say(*attach("d1", "f1"))
    shared.sync()
    assert shared.entry("d1").monotonic and shared.content("d1") == {"f1"}
    shared.atlas.say(detach("d1", "f1"))
    shared.sync()
    assert shared.content("d1") == set()


# ---- scopes that are not attachable (R5.5)


def mark(value: bool) -> Assert:
    return Assert(Attribute(Scope(SHARED), fields.ATTACHABLE), value)


def test_who_attaches_knowing_that_the_scope_is_not_attachable_attaches_in_vain() -> None:
    shared = Federation()
    shared.begin("d1", "f1", "f2", "f3")
    shared.cms.say(*attach("d1", "f1"))
    shared.sync()
    shared.atlas.say(mark(False))
    shared.cms.say(*attach("d1", "f2"))  # at the same time: it could not know
    shared.sync()
    shared.cms.say(*attach("d1", "f3"))
    shared.sync()
    assert shared.content("d1") == {"f1", "f2"}
    conflict = shared.conflict(is_in("d1", "f3"))
    assert conflict is not None and conflict.rule == ATTACHABLE_RULE
    assert conflict.winner == f"atlas: scope {SHARED} is not attachable"


def test_what_a_mark_hid_shows_once_it_is_taken_back_or_set_anew() -> None:
    for again in (True, False):
        shared = Federation()
        shared.begin("d1", "f1", "f2")
        shared.atlas.say(mark(False))
        shared.sync()
        shared.cms.say(*attach("d1", "f1"))
        shared.sync()
        assert shared.content("d1") == set()
        shared.atlas.say(mark(again))
        shared.sync()
        assert shared.content("d1") == {"f1"}
        shared.cms.say(*attach("d1", "f2"))
        shared.sync()
        assert shared.content("d1") == ({"f1", "f2"} if again else {"f1"})


def test_the_mark_is_on_the_childs_scope() -> None:
    shared = Federation()
    shared.begin("d1")
    shared.belle2.say(Assert(Scope("belle2"), True), exists("f1", "belle2"))
    shared.atlas.say(mark(False))
    shared.sync()
    edge = Attachment(did("d1"), did("f1", "belle2"))
    shared.cms.say(Assert(edge, True))
    shared.sync()
    assert shared.shown(edge)
    shared.belle2.say(Assert(Attribute(Scope("belle2"), fields.ATTACHABLE), False))
    shared.sync()
    shared.cms.say(Retract(edge))
    shared.acknowledge()
    shared.cms.say(Assert(edge, True))
    shared.sync()
    assert shared.rule(edge) == ATTACHABLE_RULE


# ---- constituents


def test_a_constituent_waits_for_its_file_and_its_archive() -> None:
    shared = Federation()
    shared.begin("f1")
    one = Constituent(did("f1"), did("f2"))
    shared.cms.say(Assert(one, True))
    shared.sync()
    assert not shared.shown(one)
    shared.belle2.say(exists("f2"))
    shared.sync()
    assert shared.shown(one)
    shared.atlas.say(Retract(did("f1")))
    shared.sync()
    assert not shared.shown(one) and shared.conflict(one) is None
    shared.atlas.say(exists("f1"))
    shared.sync()
    assert shared.shown(one)


def test_only_a_file_is_an_archive_and_never_its_own() -> None:
    shared = Federation()
    shared.begin("d1", "f1")
    for one in (Constituent(did("d1"), did("f1")), Constituent(did("f1"), did("f1"))):
        shared.atlas.say(Assert(one, True))
        shared.sync()
        assert not shared.shown(one)
        assert shared.rule(one) == TYPES_RULE


# ---- conflicts


def test_a_conflict_goes_with_what_it_is_about() -> None:
    shared = Federation()
    shared.begin("c1", "c2")
    shared.cms.say(*attach("c1", "c2"))
    shared.belle2.say(*attach("c2", "c1"))
    shared.sync()
    conflict = shared.conflict(is_in("c2", "c1"))
    assert conflict is not None and conflict.rule == CYCLE_RULE
    assert conflict.stamps == "loser 2023-11-14T22:13:24.000Z"
    shared.belle2.say(detach("c2", "c1"))
    shared.acknowledge()
    assert shared.atlas.state.conflicts == {}
