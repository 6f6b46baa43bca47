"""The SQL store against the reference: any history through both gives the same slots, heads, catalogue and conflicts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from nsync.namespace import fields, keys
from nsync.namespace.keys import Attachment, Attribute, Did, Identity, Replica, Rse, Scope
from nsync.namespace.ops import Assert, Retract
from nsync.store import keyed
from nsync.store.database import create_tables, open_store
from nsync.store.status import conflicts
from tests.property.histories import HISTORIES
from tests.property.test_reference import everything, in_order, play
from tests.support.database import apply_all, contents, disposed, empty, memory_engine, receive, reference_contents
from tests.support.federation import Writer


def check(engine: Engine, history: object, rng: random.Random) -> None:
    """Deliver `history` to the store in any order and grouping, some of it twice, and compare."""
    segments = everything(play(history))
    expected = reference_contents(in_order(segments, rng).state)
    frames = [segment.frame for segment in segments]
    deliveries = frames + rng.sample(frames, len(frames) // 2)
    rng.shuffle(deliveries)
    while deliveries:
        size = rng.randint(1, 5)
        batch, deliveries = deliveries[:size], deliveries[size:]
        receive(engine, batch)
        if rng.random() < 0.5:
            apply_all(engine)
        if not deliveries:
            missing = receive(engine, frames)  # a gap is refused, and fetched again: repeat until all are in
            deliveries = frames if missing.rejected else []
    apply_all(engine)
    assert contents(engine) == expected


@settings(max_examples=150, deadline=None)
@given(HISTORIES, st.randoms(use_true_random=False))
def test_sql_equals_reference_in_any_order_and_grouping(history: object, rng: random.Random) -> None:
    with disposed(memory_engine()) as engine:
        check(engine, history, rng)


@pytest.mark.postgres
@settings(max_examples=20, deadline=None)
@given(HISTORIES, st.randoms(use_true_random=False))
def test_sql_equals_reference_on_postgresql(postgres_engine: Engine, history: object, rng: random.Random) -> None:
    empty(postgres_engine)
    check(postgres_engine, history, rng)


def long_name(rng: random.Random) -> str:
    """A name of as many bytes as there may be, which nothing compresses."""
    return "".join(chr(rng.randrange(0x40000, 0x100000)) for _ in range(keys.NAME_CHARS_MAX))


def long_facts(writer: Writer) -> None:
    """Facts of every kind with the longest names, shown and taken away, with conflicts and an attribute."""
    rng = random.Random(1)
    dataset, file, container = (Did("atlas", long_name(rng)) for _ in range(3))
    replica = Replica(file, Rse("atlas", long_name(rng)))
    writer.say(Assert(Scope("atlas"), True), Assert(dataset, Identity(keys.DATASET)), Assert(file, Identity(keys.FILE, 1, bytes(4))))
    writer.say(Assert(container, Identity(keys.CONTAINER)), Assert(Attribute(file, "datatype"), "RAW"))
    writer.say(Assert(Attachment(dataset, file), True))
    writer.say(Assert(Attachment(container, dataset), True), Assert(Attachment(dataset, container), True))
    writer.say(Assert(replica.rse, True), Assert(Attribute(replica.rse, keys.PROTOCOLS), ()), Assert(replica, "p/1"))
    writer.say(Assert(Attribute(Scope("atlas"), fields.ATTACHABLE), False))
    writer.say(Retract(Attachment(container, dataset)), Retract(file))
    writer.say(Assert(file, Identity(keys.FILE, 1, bytes(4))))


def test_the_longest_keys_are_stored_and_applied(store_url: str) -> None:
    writer = Writer("atlas")
    long_facts(writer)
    assert {type(fact) for fact in writer.state.catalogue} >= {Scope, Did, Attachment, Rse, Replica} and writer.state.conflicts
    with disposed(open_store(store_url)) as engine:
        create_tables(engine)
        for segment in writer.log:
            receive(engine, [segment.frame])
            assert len(apply_all(engine)) == 1
        assert contents(engine) == reference_contents(writer.state)
        with engine.connect() as connection:
            assert {key for key, _ in conflicts(connection)} == {fact for fact, found in writer.state.conflicts.items() if found}


def test_long_keys_that_begin_alike_are_told_apart() -> None:
    name = "x" * (keys.NAME_CHARS_MAX - 1)
    facts = [Did("atlas", name + end) for end in "ab"] + [Attachment(Did("atlas", name), Did("atlas", name + end)) for end in "ab"]
    assert len({keyed.indexed(fact) for fact in facts}) == len(facts)
    assert max(len(keyed.indexed(fact)) for fact in facts) == keyed.KEY_BYTES_MAX + 1
    short = Did("a", "x" * (keyed.KEY_BYTES_MAX - len(keys.key_bytes(Did("a", ""))) - 2))
    assert keyed.columns(short) == (keys.key_bytes(short), None) and len(keyed.indexed(short)) == keyed.KEY_BYTES_MAX
