"""How far a peer is: told by its heads alone, on logs that are longer, shorter, forked, or strange."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import StaticPool

from nsync.auth.keys import verify
from nsync.log.stored import Head, PeerRecord
from nsync.namespace.keys import DATASET, Did, Identity
from nsync.namespace.ops import Assert, encode_op
from nsync.store.database import create_tables, writing
from nsync.store.finals import finals
from nsync.store.log import SqlLog, decode_batch
from nsync.store.reach import Reach, reach
from nsync.store.status import believed, progress
from tests.support.federation import AUTHOR, AUTHORITY, CHARTER, KEYS

NOW_MS = 1_700_000_000_000
ATLAS, CMS = AUTHOR["atlas"], AUTHOR["cms"]


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Where atlas has published three changesets of two ops."""
    made = create_engine("sqlite://", poolclass=StaticPool)
    create_tables(made)
    for number in range(3):
        say(made, number)
    yield made
    made.dispose()


def say(engine: Engine, number: int) -> None:
    ops = [encode_op([Assert(Did("atlas.open", f"d{number}.{i}"), Identity(DATASET))]) for i in range(2)]
    with writing(engine) as connection:
        SqlLog(connection, AUTHORITY).publish(ops, ATLAS, KEYS["atlas"].sign, NOW_MS + number)


def places(engine: Engine) -> list[Head]:
    """The end of each of atlas' segments."""
    with engine.connect() as connection:
        segments = SqlLog(connection, AUTHORITY).segments_after({ATLAS: []}, 1 << 20)
    return [Head(ATLAS, segment.last, segment.hash) for segment in segments]


def of(engine: Engine, told: Optional[list[Head]], *authors: bytes) -> Reach:
    with engine.connect() as connection:
        return reach(connection, SqlLog(connection, AUTHORITY).lines, authors or (ATLAS,), told)


def test_what_the_heads_of_a_peer_mean(engine: Engine) -> None:
    first, second, third = places(engine)
    strange = Head(ATLAS, 8, b"?" * 16)
    assert of(engine, None) == Reach("unknown")
    assert of(engine, [third]) == of(engine, [third, Head(CMS, 3, b"c" * 16)]) == Reach("same")
    assert of(engine, [second]) == Reach("behind", 2)
    assert of(engine, [first]) == Reach("behind", 4)
    assert of(engine, []) == Reach("behind", 6)
    assert of(engine, [strange]) == Reach("ahead", 2)
    assert of(engine, [Head(ATLAS, 6, b"?" * 16)]) == of(engine, [Head(ATLAS, 4, b"?" * 16)]) == Reach("apart")
    assert of(engine, [second], CMS) == Reach("same"), "neither has anything of it"
    assert of(engine, [third, Head(CMS, 3, b"c" * 16)], ATLAS, CMS) == Reach("ahead", 3)


def test_a_newcomer_sees_its_share_of_what_its_peers_have(engine: Engine) -> None:
    newcomer = create_engine("sqlite://", poolclass=StaticPool)
    create_tables(newcomer)
    with engine.connect() as connection:
        frames = [segment.frame for segment in SqlLog(connection, AUTHORITY).segments_after({ATLAS: []}, 1 << 20)]
    segments, _ = decode_batch(frames[:2], AUTHORITY, verify)
    with writing(newcomer) as connection:
        log = SqlLog(connection, AUTHORITY)
        log.store(segments)
        log.apply_next(NOW_MS)
    with newcomer.connect() as connection:
        found = progress(connection, places(engine))
    assert (found.segments, found.stored, found.applied, found.known, found.behind) == (2, 4, 2, 6, True)
    assert str(found) == "2 segments, 4 of 6 ops stored (66.7 %), 2 applied (33.3 %)"
    newcomer.dispose()


def test_who_answers_and_fails_all_the_same_is_not_believed() -> None:
    """One that is down is: what it told last is there. Of who is in no charter nobody is."""
    heads = (Head(ATLAS, 9, bytes(16)), Head(b"?" * 16, 1 << 40, bytes(16)))
    well, down = PeerRecord("cms", 1, contact_ms=5, heads=heads), PeerRecord("cms", 1, contact_ms=5, heads=heads, failures=7, since_ms=5)
    assert believed([well], CHARTER) == believed([down], CHARTER) == [heads[0]]
    assert believed([down._replace(contact_ms=6)], CHARTER) == []


def test_an_amendment_names_the_ends_that_are_applied_here(engine: Engine) -> None:
    with engine.connect() as connection:
        found = finals(connection, CHARTER)
    third = places(engine)[-1]
    assert found[ATLAS] == (third.seq, third.hash) and found[CMS] == (0, bytes(16)) and len(found) == 3
