"""Files that are new are found without asking for them; whatever else is said about them must be seen all the same."""

from __future__ import annotations

import random
from typing import Any

from nsync.namespace.keys import DATASET, FILE, Attachment, Attribute, Did, Identity, Replica, Rse
from nsync.namespace.ops import Assert, Retract, Statement, encode_op
from nsync.store.news import News
from tests.property.stories import tell
from tests.property.test_stories import check, check_rebuilt, rebuilt
from tests.support.database import disposed, memory_engine

DATASET_1, OTHER = Did("atlas", "d1"), Did("cms", "f1")
F1 = Did("atlas", "f1")
SAID = Assert(F1, Identity(FILE, 1, b"1234"))
ATTACHED = Assert(Attachment(DATASET_1, F1), True)


def says(who: str, *ops: list[Statement], persona: int = 0) -> tuple[Any, ...]:
    return ("publish", who, persona, [encode_op(op) for op in ops])


def told(*steps: tuple[Any, ...]) -> None:
    """The story ends in the SQL store as it does by definition, derived as it goes and derived at the end."""
    for seed in range(3):
        for way in (check, check_rebuilt):
            with disposed(memory_engine()) as engine:
                way(engine, steps, random.Random(seed))


def test_a_new_file_of_its_home_is_recognised(monkeypatch: Any) -> None:
    found = []
    original = News.sort
    monkeypatch.setattr(News, "sort", lambda self: found.append(original(self)) or found[-1])
    replica = Replica(F1, Rse("atlas", "DISK"))
    told(
        says(
            "atlas",
            [Assert(DATASET_1, Identity(DATASET))],
            [SAID, ATTACHED, Assert(replica, "p/1")],
            [Assert(Attribute(F1, "datatype"), "RAW"), Assert(Attribute(replica, "state"), "BAD")],
        )
    )
    news = [new for new, _ in found if new]
    assert all(set(new) == {F1} for new in news)
    assert max((len(new[F1].slots) for new in news), default=0) == 5, "where the changeset is looked at whole"


def test_a_file_that_was_attached_before_it_came_is_shown_there() -> None:
    told(says("atlas", [Assert(DATASET_1, Identity(DATASET)), ATTACHED]), says("atlas", [SAID]))


def test_a_file_that_was_taken_away_before_is_not_new() -> None:
    told(says("atlas", [SAID, ATTACHED]), says("atlas", [Retract(F1)]), says("atlas", [SAID]))


def test_what_others_say_about_a_new_file_counts() -> None:
    told(("welcome", True), says("cms", [Assert(F1, Identity(FILE, 2, b"5678"))]), ("sync", "atlas", 0), says("atlas", [SAID, ATTACHED]))


def test_two_words_about_one_key_in_one_changeset() -> None:
    told(says("atlas", [SAID], [ATTACHED], [Assert(Attribute(F1, "datatype"), "RAW")], [Assert(Attribute(F1, "datatype"), "AOD")]))


def test_a_file_that_holds_something_by_mistake() -> None:
    told(says("atlas", [Assert(Attachment(F1, DATASET_1), True), Assert(DATASET_1, Identity(DATASET))]), says("atlas", [SAID]))


def test_a_file_attached_to_a_closed_dataset() -> None:
    closed = Assert(Attribute(DATASET_1, "closed"), True)
    told(says("atlas", [Assert(DATASET_1, Identity(DATASET)), closed]), says("atlas", [SAID, ATTACHED]))


def test_a_stranger_makes_no_files_also_where_it_will_be_at_home() -> None:
    told(says("atlas", [Assert(OTHER, Identity(FILE, 1, b"1234"))]), ("sync", "cms", 0), ("move", "atlas", "cms", 0))


def test_a_file_on_a_branch_that_does_not_count() -> None:
    told(
        says("atlas", [Assert(DATASET_1, Identity(DATASET))]),
        ("clone", "atlas"),
        says("atlas", [SAID, ATTACHED], persona=0),
        says("atlas", [Assert(Did("atlas", "f2"), Identity(FILE, 2, b"5678"))], persona=1),
    )


def test_what_is_derived_at_the_end_was_not_there_before() -> None:
    story = tell([says("atlas", [Assert(DATASET_1, Identity(DATASET))], [SAID, ATTACHED])])
    with disposed(memory_engine()) as engine:
        assert F1 in rebuilt(engine, story, random.Random(0))["catalogue"]
