"""The pure core over histories of several authors: one state whatever the order, and incremental equal to recomputed."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nsync.catalogue.entries import DidEntry
from nsync.namespace import fields
from nsync.namespace.keys import Attachment
from tests.property.histories import HISTORIES, TANGLES
from tests.property.obvious import Obvious
from tests.support.federation import NAMES, Writer


def play(history: Any) -> dict[str, Writer]:
    writers = {name: Writer(name) for name in NAMES}
    for index, (who, what) in enumerate(history):
        if isinstance(what, str):
            writers[who].fetch(writers[what])
        else:
            writers[who].now_ms += (index * 7919) % 5000 - 2000  # clocks run unevenly, backwards too
            writers[who].publish(what)
    return writers


def everything(writers: dict[str, Writer]) -> list[Any]:
    return [segment for name in NAMES for segment in writers[name].log if segment.header.author == writers[name].author]


def in_order(segments: list[Any], rng: random.Random) -> Writer:
    """A writer that got `segments` in a random order, with repetitions, applied as soon as their deps are there."""
    reader, waiting = Writer("atlas"), segments + rng.sample(segments, len(segments) // 2)
    while waiting:
        rng.shuffle(waiting)
        waiting = [segment for segment in waiting if not reader.apply(segment) and segment not in reader.log]
    return reader


@settings(max_examples=300)
@given(HISTORIES | TANGLES, st.randoms(use_true_random=False))
def test_any_causal_order_gives_one_state(history: Any, rng: random.Random) -> None:
    segments = everything(play(history))
    one, other = in_order(segments, rng), in_order(segments, rng)
    assert one.state.heads == other.state.heads
    assert {k: one.state.slots([k]) for k in one.state.slot_keys()} == {k: other.state.slots([k]) for k in other.state.slot_keys()}
    assert one.state.catalogue == other.state.catalogue
    assert one.state.conflicts == other.state.conflicts


@settings(max_examples=300)
@given(HISTORIES | TANGLES)
def test_incremental_catalogue_equals_recomputed(history: Any) -> None:
    for writer in play(history).values():
        catalogue, conflicts = writer.state.recomputed()
        assert writer.state.catalogue == catalogue
        assert writer.state.conflicts == conflicts


@settings(max_examples=300)
@given(TANGLES)
def test_attachments_show_by_the_text_of_the_rules(history: Any) -> None:
    for writer in play(history).values():
        assert {fact for fact in writer.state.catalogue if isinstance(fact, Attachment)} == Obvious(writer.state).attachments()


@settings(max_examples=200)
@given(TANGLES)
def test_names_are_borne_by_the_text_of_the_rules(history: Any) -> None:
    for writer in play(history).values():
        shown = [(fact, entry) for fact, entry in writer.state.catalogue.items() if isinstance(entry, DidEntry)]
        obvious = Obvious(writer.state)
        assert {entry.doi.upper(): fact for fact, entry in shown if entry.doi is not None} == obvious.names(fields.DOI)
        assert {entry.record: fact for fact, entry in shown if entry.record is not None} == obvious.names(fields.RECORD)
