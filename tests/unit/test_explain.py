"""`explain` says of every statement what became of it, which rule chose, and what would change it."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings

from nsync.authority.rulings import EFFECTIVE, VOID, WAITING, Ruling
from nsync.catalogue.entries import DidEntry
from nsync.catalogue.explain import Explanation, Word, entries_needed, explain
from nsync.catalogue.rules import Reader, shown
from nsync.namespace.keys import Attachment, Attribute, Key, Replica, fact_of
from nsync.namespace.ops import Retract
from tests.property.histories import HISTORIES, TANGLES
from tests.property.test_reference import play
from tests.support.federation import Writer
from tests.support.shared import Federation, attach, close, detach, did, exists, field, is_in, publish


def explained(writer: Writer, *keys: Key) -> list[Explanation]:
    """Keys as `writer` sees them."""
    state = writer.state
    said: dict[Key, list[Word]] = {}
    for one, ruling in state.world.rulings:
        if ruling.standing != VOID:
            why = Ruling(WAITING, "for atlas") if ruling.standing == WAITING else Ruling(EFFECTIVE, "")
            said.setdefault(one.key, []).append(Word(one.slot, why))
    reader = Reader(state.world)
    wanted = keys or tuple(said)
    return [
        explain(reader, key, said.get(key, []), state.known.entries(entries_needed(key)), state.conflicts.get(fact_of(key), []))
        for key in wanted
    ]


def standings(found: Explanation) -> list[tuple[str, int, str]]:
    return [(line.author, line.seq, line.standing) for line in found.lines]


def test_each_statement_is_told_with_what_became_of_it() -> None:
    shared = Federation()
    shared.begin("f1")
    key = Attribute(did("f1"), "project")
    shared.cms.say(field("f1", "project", "first"))
    shared.cms.say(field("f1", "project", "second"))
    shared.sync()
    shared.atlas.say(field("f1", "project", "mc"))
    shared.belle2.say(field("f1", "project", "data"))
    shared.sync()
    (found,) = explained(shared.atlas, key)
    assert found.shows == "data"
    assert standings(found) == [
        ("cms", 1, "superseded by cms 2"),
        ("cms", 2, "answered by atlas 3 and belle2 1, knowing it"),
        ("atlas", 3, "stands, and is not shown"),
        ("belle2", 1, "stands, and is shown"),
    ]
    assert found.changes == (
        f"whoever is right about {key} says it once more, having seen the other",
        "atlas, or atlas and belle2 itself, says something else, knowing this",
    )


def test_who_silences_whom_and_what_waits_is_told() -> None:
    shared = Federation()
    shared.begin("d1", "f1")
    shared.cms.say(*attach("d1", "f1"))
    shared.sync()
    shared.belle2.say(detach("d1", "f1"))
    shared.atlas.fetch(shared.belle2)
    (found,) = explained(shared.atlas, is_in("d1", "f1"))
    assert found.shows == "it is there"
    assert standings(found) == [("cms", 1, "stands, and is shown"), ("belle2", 1, "waits: for atlas")]
    assert "atlas acknowledges what waits" in found.changes
    shared.atlas.say(detach("d1", "f1"))
    (found,) = explained(shared.atlas, is_in("d1", "f1"))
    assert found.shows == "nothing: f1 in d1 is not shown".replace("f1 in d1", str(is_in("d1", "f1")))
    assert standings(found) == [
        ("cms", 1, "silenced by atlas 4"),
        ("belle2", 1, "stands, and silences no other's"),
        ("atlas", 4, "silences cms 1"),
    ]


def test_what_nobody_may_say_is_void() -> None:
    shared = Federation()
    shared.begin("d1")
    slot = shared.atlas.state.slots([did("d1")])[did("d1")][0]
    reader = Reader(shared.atlas.state.world)
    found = explain(reader, did("d1"), [Word(slot, Ruling(VOID, "the grant was revoked"))], {}, [])
    assert [line.standing for line in found.lines] == ["void: the grant was revoked"]
    assert found.shows == f"nothing: {did('d1')} is not shown"
    assert found.changes == ("whoever may says it, knowing what is said",)


def test_what_another_rule_hides_is_told_with_its_conflict() -> None:
    shared = Federation()
    shared.begin("d1", "f1", "f2")
    shared.atlas.say(*attach("d1", "f1"), close("d1"), publish("d1"))
    shared.cms.say(*attach("d1", "f2"))
    shared.sync()
    (found,) = explained(shared.atlas, is_in("d1", "f2"))
    assert found.shows == f"nothing: {is_in('d1', 'f2')} is not shown"
    assert [conflict.winner for conflict in found.conflicts] == [f"atlas: closed {did('d1')}"]
    assert found.changes[0] == f"the home of {did('d1')} closes it once more, which lets it in, or its author detaches it"
    assert found.text().splitlines() == [
        f"{is_in('d1', 'f2')}",
        f"  shows: nothing: {is_in('d1', 'f2')} is not shown",
        "  by: what somebody says, and nobody who may took back knowing it, stands (R3.4)",
        "  said about it:",
        "    cms 1, 2023-11-14T22:13:23.000Z: True: stands, and is not shown",
        "  taken away, since closed collections stay as they are (6.2): cms: f2 in d1".replace("f2 in d1", str(is_in("d1", "f2"))),
        f"    for atlas: closed {did('d1')}",
        "    said winner 2023-11-14T22:13:22.000Z, loser 2023-11-14T22:13:23.000Z",
        "  would change it:",
        f"    the home of {did('d1')} closes it once more, which lets it in, or its author detaches it",
        "    atlas, or cms itself, withdraws it",
    ]


def test_what_waits_for_an_end_says_for_which() -> None:
    shared = Federation()
    shared.begin("d1")
    shared.cms.say(*attach("d1", "f1"))
    shared.sync()
    (found,) = explained(shared.atlas, is_in("d1", "f1"))
    assert found.shows == f"nothing: {is_in('d1', 'f1')} is not shown, since {did('f1')} is not shown"


def test_the_first_claim_of_an_identity_is_told() -> None:
    shared = Federation()
    shared.cms.say(exists("f1", size=1))
    shared.acknowledge()
    shared.cms.say(Retract(did("f1")))
    shared.acknowledge()
    shared.cms.say(exists("f1", size=2))
    shared.sync()
    (found,) = explained(shared.atlas, did("f1"))
    assert found.shows.startswith("file of 1 bytes")
    assert standings(found) == [
        ("cms", 1, "superseded by cms 3; its first claim of the identity, for ever"),
        ("cms", 2, "superseded by cms 3"),
        ("cms", 3, "stands, and is not shown"),
    ]


@settings(max_examples=150, deadline=None)
@given(HISTORIES | TANGLES)
def test_an_explanation_agrees_with_the_catalogue(history: Any) -> None:
    for writer in play(history).values():
        for found in explained(writer):
            assert found.text()
            entry = writer.state.catalogue.get(fact_of(found.key))
            assert found.shows.startswith("nothing: ") == (entry is None)
            if isinstance(found.key, Attribute) and isinstance(entry, DidEntry):
                assert found.shows == shown_of(entry, found.key.field, found.shows)
            elif isinstance(found.key, (Attachment, Replica)) and entry is not None:
                assert any(line.standing == "stands, and is shown" for line in found.lines)


def shown_of(entry: DidEntry, field: str, found: str) -> str:
    """What the catalogue shows of a field. A flag of which nothing stands is False there, and `explain` says nothing."""
    value = {**entry._asdict(), **dict(entry.meta)}.get(field)
    return "nothing" if value is None or (value is False and found == "nothing") else shown(value)
