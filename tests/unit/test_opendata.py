"""Open data: states, and names that one DID at most bears (6.5, 6.6)."""

from __future__ import annotations

from nsync.catalogue.opendata import CLOSE_RULE, RULES, STATE_RULE
from nsync.namespace import fields
from nsync.namespace.keys import Did, Scope
from nsync.namespace.ops import Assert, Retract
from tests.support.shared import Federation, close, did, exists, field, publish

CMS_DOI = "10.5072/CMS.1"
"""Delegated to cms."""


def asks(name: str, scope: str, doi: str = CMS_DOI) -> list[Assert]:
    return [exists(name, scope), field(name, fields.DOI, doi, scope)]


def bearers(shared: Federation) -> set[Did]:
    shown = shared.atlas.state.catalogue
    return {fact for fact, entry in shown.items() if isinstance(fact, Did) and entry.doi is not None}  # type: ignore[union-attr]


def test_a_doi_is_its_delegates_whoever_was_first() -> None:
    """Though its own log had acknowledged another's word before."""
    shared = Federation()
    shared.belle2.say(*asks("d1", "belle2"))
    shared.sync()
    shared.cms.say(Assert(Scope("cms"), True))  # it has seen it
    shared.sync()
    assert bearers(shared) == {did("d1", "belle2")}
    shared.cms.say(*asks("d2", "cms"))
    shared.sync()
    assert bearers(shared) == {did("d2", "cms")}
    conflict = shared.conflict(did("d1", "belle2"))
    assert conflict is not None and conflict.rule == RULES[fields.DOI]
    assert conflict.winner == f"cms: {CMS_DOI} is cms:d2"


def test_a_doi_that_its_delegate_gave_a_did_is_taken_by_nobody() -> None:
    shared = Federation()
    shared.cms.say(*asks("d2", "cms"))
    shared.atlas.now_ms -= 3_600_000
    shared.atlas.say(*asks("d1", "atlas"))  # a clock that runs an hour late
    shared.sync()
    assert bearers(shared) == {did("d2", "cms")}


def test_of_others_the_one_that_the_delegate_acknowledged_first_bears_it() -> None:
    shared = Federation()
    shared.belle2.say(*asks("d1", "belle2"))
    shared.cms.fetch(shared.belle2)
    shared.cms.say(Assert(Scope("cms"), True))
    shared.atlas.now_ms -= 3_600_000
    shared.atlas.say(*asks("d2", "atlas"))
    shared.sync()
    assert bearers(shared) == {did("d1", "belle2")}


def test_while_the_delegate_acknowledges_none_the_oldest_bears_it_provisionally() -> None:
    shared = Federation()
    shared.belle2.say(*asks("d1", "belle2"))
    shared.atlas.now_ms -= 3_600_000
    shared.atlas.say(*asks("d2", "atlas"))
    shared.sync()
    assert bearers(shared) == {did("d2", "atlas")}


def test_a_doi_is_one_name_in_upper_and_lower_case() -> None:
    shared = Federation()
    shared.belle2.say(*asks("d1", "belle2", CMS_DOI.lower()))
    shared.sync()
    assert bearers(shared) == {did("d1", "belle2")}
    shared.cms.say(*asks("d2", "cms"))
    shared.sync()
    assert bearers(shared) == {did("d2", "cms")}


def test_a_doi_that_is_given_up_goes_to_the_next() -> None:
    shared = Federation()
    shared.cms.say(*asks("d2", "cms"))
    shared.belle2.say(*asks("d1", "belle2"))
    shared.sync()
    shared.cms.say(field("d2", fields.DOI, "10.5072/CMS.2", "cms"))
    shared.sync()
    assert bearers(shared) == {did("d1", "belle2"), did("d2", "cms")}
    assert shared.atlas.state.conflicts == {}


def test_a_record_id_names_one_did() -> None:
    shared = Federation()
    shared.belle2.say(exists("d1", "belle2"), field("d1", fields.RECORD, 7, "belle2"))
    shared.cms.say(exists("d2", "cms"), field("d2", fields.RECORD, 7, "cms"))
    shared.sync()
    assert shared.entry("d2", "cms").record == 7 and shared.entry("d1", "belle2").record is None
    assert shared.rule(did("d1", "belle2")) == RULES[fields.RECORD]
    shared.cms.say(Retract(did("d2", "cms")))
    shared.sync()
    assert shared.entry("d1", "belle2").record == 7
    assert shared.atlas.state.conflicts == {}


def test_who_loses_one_name_keeps_the_other() -> None:
    shared = Federation()
    shared.belle2.say(*asks("d1", "belle2"), field("d1", fields.RECORD, 1, "belle2"))
    shared.atlas.say(*asks("d3", "atlas", "10.5072/ATLAS.3"), field("d3", fields.RECORD, 2, "atlas"))
    shared.sync()
    shared.cms.say(*asks("d2", "cms"), field("d2", fields.RECORD, 2, "cms"))
    shared.sync()
    assert (shared.entry("d1", "belle2").doi, shared.entry("d1", "belle2").record) == (None, 1)
    assert (shared.entry("d2", "cms").doi, shared.entry("d2", "cms").record) == (CMS_DOI, None)
    assert (shared.entry("d3", "atlas").doi, shared.entry("d3", "atlas").record) == ("10.5072/ATLAS.3", 2)


def test_of_public_and_suspended_at_once_suspended_wins_and_it_is_told() -> None:
    shared = Federation()
    shared.begin("d1")
    shared.atlas.say(publish("d1"))
    shared.belle2.say(publish("d1", fields.SUSPENDED))
    shared.sync()
    assert shared.entry("d1").opendata == fields.SUSPENDED
    conflict = shared.conflict(did("d1"))
    assert conflict is not None
    assert conflict == (
        STATE_RULE,
        "belle2: opendata SUSPENDED",
        "atlas: opendata PUBLIC",
        "who may publish says PUBLIC once more, having seen the suspension",
        "winner 2023-11-14T22:13:24.000Z, loser 2023-11-14T22:13:22.000Z",
    )
    shared.atlas.say(publish("d1"))
    shared.sync()
    assert shared.entry("d1").opendata == fields.PUBLIC
    assert shared.atlas.state.conflicts == {}


def test_of_a_close_and_a_reopen_at_once_the_close_wins_and_it_is_told() -> None:
    shared = Federation()
    shared.begin("d1")
    shared.atlas.say(close("d1"))
    shared.belle2.say(close("d1", False))
    shared.sync()
    assert shared.entry("d1").closed is True
    assert shared.rule(did("d1")) == CLOSE_RULE
