"""The store when its process is killed or its disk is full: what was acknowledged is there, what was not left nothing."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from nsync.log.segment import decode_frame
from nsync.namespace import keys
from nsync.namespace.keys import Attachment, Did, Identity, Scope
from nsync.namespace.ops import Assert, encode_op
from nsync.store import schema
from nsync.store.database import create_tables, open_store, writing
from nsync.store.log import SqlLog
from tests.support.database import apply_all, contents, memory_engine, receive
from tests.support.faults import disk_full, killed_at
from tests.support.federation import AUTHORITY, Writer

PLACES = (
    "intake-headers-written",
    "intake-ops-written",
    "log-segment-stored",
    "log-slots-joined",
    "log-head-advanced",
    "log-catalogue-shown",
)
"""Everything between the first row of a transaction and its commit."""
FULL = "database or disk is full|File too large"

BATCHES = 4
LARGE_SEGMENTS = 2
"""Of nearly 1 MiB each: more than any free page holds, and longer than disk_full lets a file of PostgreSQL become."""


def batches() -> list[list[bytes]]:
    """Changesets of a segment each, two to a batch: datasets with a file."""
    writer = Writer("atlas")
    writer.say(Assert(Scope("atlas"), True))
    for n in range(2 * BATCHES - 1):
        dataset, file = Did("atlas", f"d{n}"), Did("atlas", f"f{n}")
        writer.say(
            Assert(dataset, Identity(keys.DATASET)),
            Assert(file, Identity(keys.FILE, n, bytes(4), None)),
            Assert(Attachment(dataset, file), True),
        )
    frames = [segment.frame for segment in writer.log]
    return [frames[i : i + 2] for i in range(0, len(frames), 2)]


def large_frames() -> list[bytes]:
    """Segments of another author, of names that do not compress."""
    rng, writer = random.Random(1), Writer("cms")
    for _ in range(LARGE_SEGMENTS):
        dids = [[Did("cms", rng.randbytes(500).hex()) for _ in range(60)] for _ in range(16)]
        writer.publish([encode_op([Assert(did, Identity(keys.DATASET)) for did in some]) for some in dids])
    return [segment.frame for segment in writer.log]


PROGRAM = """
import sys
from nsync.store.database import open_store
from tests.support.database import receive
from tests.unit.test_store_faults import apply_one, batches
engine = open_store(sys.argv[1])
for batch in batches():
    receive(engine, batch)
    print("stored", flush=True)
    while apply_one(engine):
        print("applied", flush=True)
"""


def apply_one(engine: Engine) -> bool:
    with writing(engine) as connection:
        return SqlLog(connection, AUTHORITY).apply_next(1 << 44) is not None


def whole_states(frames: Iterable[bytes]) -> list[dict[str, Any]]:
    """What a store without faults holds after each changeset of `frames`."""
    engine = memory_engine()
    receive(engine, list(frames))
    states = [contents(engine)]
    while apply_one(engine):
        states.append(contents(engine))
    engine.dispose()
    return states


def rows(engine: Engine) -> dict[str, list[Any]]:
    """Every row of every nsync table."""
    with engine.connect() as connection:
        return {table.name: sorted(map(repr, connection.execute(table.select()))) for table in schema.metadata.sorted_tables}


@pytest.fixture
def engine(store_url: str) -> Iterator[Engine]:
    engine = open_store(store_url)
    create_tables(engine)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_process_leaves_whole_batches_and_changesets_and_all_that_it_acknowledged(
    engine: Engine, store_url: str, place: str
) -> None:
    engine.dispose()
    states = whole_states(chain.from_iterable(batches()))
    with killed_at(place, BATCHES - 1, PROGRAM, store_url) as crash:
        assert crash.was_killed
        found = rows(crash.engine)
        kept = [decode_frame(frame) for frame in chain.from_iterable(batches()[: crash.said.count("stored")])]
        assert len(found["nsync_segment"]) == len(kept) and len(found["nsync_op"]) == sum(len(segment.ops) for segment in kept)
        assert contents(crash.engine) == states[crash.said.count("applied")]
        for batch in batches():
            receive(crash.engine, batch)
        apply_all(crash.engine)
        assert contents(crash.engine) == states[-1]


def test_a_program_that_never_comes_to_the_place_ends_by_itself(engine: Engine, store_url: str) -> None:
    engine.dispose()
    with killed_at(PLACES[0], 1000, PROGRAM, store_url) as crash:
        assert not crash.was_killed and crash.said.count("stored") == BATCHES and crash.said.count("applied") == 2 * BATCHES


def test_a_full_disk_undoes_the_whole_batch_and_loses_nothing_before_it(engine: Engine) -> None:
    small, large = list(chain.from_iterable(batches())), large_frames()
    receive(engine, small)
    apply_all(engine)
    before = rows(engine)
    with disk_full(engine):
        with pytest.raises(DBAPIError, match=FULL):
            receive(engine, large)
        assert rows(engine) == before
    assert receive(engine, large).stored == LARGE_SEGMENTS


def test_a_full_disk_leaves_whole_changesets_applied_and_the_rest_is_applied_when_there_is_room(engine: Engine) -> None:
    large = large_frames()
    states = whole_states(large)
    receive(engine, large)
    with disk_full(engine):
        with pytest.raises(DBAPIError, match=FULL):
            apply_all(engine)
        assert contents(engine) in states[:-1]
    apply_all(engine)
    assert contents(engine) == states[-1]
