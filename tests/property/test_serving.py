"""Whoever asks with a locator gets all that the other has, each segment after the one that it continues, whatever branches both hold."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from nsync.clock import Stamp
from nsync.log.segment import EMPTY, FORMAT, NO_HASH, Header, Segment, Tip, encode_header, root_of
from nsync.log.stored import Head, StoredSegment
from nsync.store import schema
from nsync.store.log import SqlLog
from nsync.transport import session
from tests.support.database import memory_engine, receive
from tests.support.federation import AUTHOR, AUTHORITY, CHARTER, KEYS

WAYS_MAX = 5
CMS = AUTHOR["cms"]


@st.composite
def forked_logs(draw: Any) -> list[list[Segment]]:
    """The ways through a log with branches: each continues another one from somewhere."""
    ways: list[list[Segment]] = [[]]
    for content in range(draw(st.integers(1, WAYS_MAX))):
        way = draw(st.sampled_from(ways))
        kept = way[: draw(st.integers(0, len(way)))]
        ways.append(kept + _continued(kept, draw(st.integers(1, 12)), draw(st.integers(1, 5)), content))
    return ways[1:]


def _continued(way: list[Segment], count: int, changeset: int, content: int) -> list[Segment]:
    """`count` more segments of one op, of which each `changeset`th ends a changeset."""
    found: list[Segment] = []
    tip = Tip(len(way), way[-1].hash, way[-1].header.stamp, 0) if way else EMPTY
    for index in range(count):
        ops = [bytes([0x92, 0x64, content])]
        stamp, commit = Stamp(1_000 + tip.seq, 0), index % changeset == changeset - 1
        header = Header(FORMAT, CHARTER.federation, 1, CMS, 0, tip.seq + 1, 1, tip.hash, stamp, (), root_of(ops), commit)
        raw = encode_header(header)
        found.append(Segment(header, raw, KEYS["cms"].sign("segment", raw), tuple(ops)))
        tip = Tip(header.last, found[-1].hash, stamp, 0)
    return found


@settings(max_examples=60, deadline=None)
@given(forked_logs(), st.data())
def test_a_locator_gets_everything_in_order(ways: list[list[Segment]], data: Any) -> None:
    mine, theirs = memory_engine(), memory_engine()
    for engine in (mine, theirs):
        for way in data.draw(st.permutations(ways)):
            assert receive(engine, [s.frame for s in way[: data.draw(st.integers(0, len(way)))]]).rejected == ()
    before, wanted = _hashes(mine), _hashes(theirs)
    with mine.connect() as connection:
        have: session.Have = {CMS: SqlLog(connection, AUTHORITY).locator(CMS)}
    reached = before | {NO_HASH}
    sent = []
    while batch := _after(theirs, have):
        have = session.advance(have, batch)
        for segment in batch:
            assert segment.prev in reached, "each after the one that it continues"
            reached.add(segment.hash)
        sent += batch
    assert len({segment.hash for segment in sent}) == len(sent), "nothing twice"
    assert wanted - before <= {segment.hash for segment in sent} <= wanted
    assert receive(mine, [segment.frame for segment in sent]).rejected == ()
    assert _hashes(mine) == before | wanted


@settings(max_examples=60, deadline=None)
@given(forked_logs(), st.data())
def test_who_knows_their_heads_sends_exactly_what_they_lack(ways: list[list[Segment]], data: Any) -> None:
    mine, theirs = memory_engine(), memory_engine()
    for way in ways:
        assert receive(mine, [s.frame for s in way]).rejected == ()
        assert receive(theirs, [s.frame for s in way[: data.draw(st.integers(0, len(way)))]]).rejected == ()
    have: session.Have = session.behind(_heads(mine), _heads(theirs), [])
    sent: list[bytes] = []
    while batch := _after(mine, have):
        have = session.advance(have, batch)
        sent += [segment.hash for segment in batch]
    assert sorted(sent) == sorted(_hashes(mine) - _hashes(theirs))


def _after(engine: Engine, have: session.Have) -> list[StoredSegment]:
    """A batch of few bytes, so that there are several."""
    with engine.connect() as connection:
        return SqlLog(connection, AUTHORITY).segments_after(have, 300)


def _heads(engine: Engine) -> list[Head]:
    with engine.connect() as connection:
        return SqlLog(connection, AUTHORITY).stored_heads()


def _hashes(engine: Engine) -> set[bytes]:
    with engine.connect() as connection:
        return set(connection.execute(select(schema.segment.c.hash)).scalars())
