"""The SQL store against the reference: any history through both gives the same slots, heads, catalogue and conflicts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.pool import NullPool

from nsync.namespace import keys
from nsync.namespace.keys import Attachment, Did, Identity
from nsync.namespace.ops import Assert
from nsync.store.database import create_tables, open_store
from tests.property.histories import HISTORIES
from tests.property.test_reference import everything, in_order, play
from tests.support.database import apply_all, contents, memory_engine, receive, reference_contents
from tests.support.federation import Writer
from tests.support.postgres import Server


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


@contextmanager
def disposed(engine: Engine) -> Iterator[Engine]:
    """`engine`, closed at the end: also when Hypothesis breaks an example off."""
    try:
        yield engine
    finally:
        engine.dispose()


@settings(max_examples=150, deadline=None)
@given(HISTORIES, st.randoms(use_true_random=False))
def test_sql_equals_reference_in_any_order_and_grouping(history: object, rng: random.Random) -> None:
    with disposed(memory_engine()) as engine:
        check(engine, history, rng)


@pytest.fixture(scope="module")
def template(postgres_server: Server) -> Iterator[str]:
    """The name of a database with the nsync tables, to make others like it."""
    with postgres_server.database() as url:
        engine = create_engine(url, poolclass=NullPool)
        create_tables(engine)
        yield str(make_url(url).database)


@pytest.mark.postgres
@settings(max_examples=20, deadline=None)
@given(HISTORIES, st.randoms(use_true_random=False))
def test_sql_equals_reference_on_postgresql(postgres_server: Server, template: str, history: object, rng: random.Random) -> None:
    with postgres_server.database(template) as url, disposed(create_engine(url)) as engine:
        check(engine, history, rng)


_LONG = pytest.mark.xfail(
    strict=True, reason="the tables index whole keys, and an index of PostgreSQL takes 2704 bytes: a peer's long names stop the log there"
)


@pytest.mark.parametrize("store_url", ["sqlite", pytest.param("postgresql", marks=[pytest.mark.postgres, _LONG])], indirect=True)
def test_the_longest_keys_are_stored_and_applied(store_url: str) -> None:
    rng, writer = random.Random(1), Writer("atlas")
    longest = [Did("atlas", "".join(chr(rng.randrange(0x10400, 0x10500)) for _ in range(keys.NAME_CHARS_MAX))) for _ in range(2)]
    writer.say(Assert(longest[0], Identity(keys.DATASET)), Assert(Attachment(*longest), True))
    with disposed(open_store(store_url)) as engine:
        create_tables(engine)
        receive(engine, [segment.frame for segment in writer.log])
        assert len(apply_all(engine)) == 1
        assert contents(engine) == reference_contents(writer.state)
