"""What is known of each peer: measured, kept in the database, read back, shown by wall time; and whose clock is right (R3.7)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine

from nsync.log.stored import Head, PeerRecord
from nsync.store import peers
from nsync.store.database import create_tables, writing
from nsync.transport.peers import BACKOFF_MS_MAX, CLOCK_AGE_MS_MAX, SAMPLES, Meter, PeerState, ahead_ms

WALL_MS = 1_700_000_000_000
HEADS = (Head(b"a" * 16, 7, b"h" * 16), Head(b"b" * 16, 9, b"i" * 16))
FULL = PeerRecord("cms", WALL_MS, WALL_MS - 5, 12, -3, HEADS, WALL_MS - 4, 100, 200, 3, WALL_MS - 9000, WALL_MS + 500, "cms is down")


@pytest.fixture
def engine(store_url: str) -> Iterator[Engine]:
    made = create_engine(store_url)
    create_tables(made)
    yield made
    made.dispose()


# ---- measured


def answered(*clocks: int, now_ms: int = 1000) -> Meter:
    """A peer whose clock showed each of `clocks` at `now_ms` of the steady clock."""
    meter = Meter()
    for clock in clocks:
        meter.answered(now_ms, now_ms, str(clock))
    return meter


def test_a_clock_is_compared_at_the_middle_of_the_round_trip() -> None:
    meter = Meter()
    meter.answered(1000, 1400, str(WALL_MS + 5200))
    assert meter.round_trip_ms == 400
    assert meter.offset_ms(1400, WALL_MS + 400) == 5000


@pytest.mark.parametrize("clock", ["", "x", "-5", "1.5", "9" * 16, "9" * 15, "١٢٣" * 6, " 5"])
def test_what_is_no_time_is_no_clock(clock: str) -> None:
    meter = Meter()
    meter.answered(0, 10, clock)
    assert meter.offset_ms(10, WALL_MS) is None and meter.round_trip_ms == 10


def test_one_wrong_answer_moves_nothing() -> None:
    meter = answered(*[WALL_MS + 50] * (SAMPLES - 1), 0)
    assert meter.offset_ms(1000, WALL_MS) == 50


def test_when_the_clock_here_is_put_right_it_is_right_at_once() -> None:
    meter = answered(WALL_MS)
    assert meter.offset_ms(1000, WALL_MS + 60_000) == -60_000
    assert meter.offset_ms(1100, WALL_MS + 100) == 0


def test_a_clock_that_was_not_heard_for_long_counts_no_more() -> None:
    meter = answered(WALL_MS)
    assert meter.offset_ms(1000 + CLOCK_AGE_MS_MAX, WALL_MS + CLOCK_AGE_MS_MAX) == 0
    assert meter.offset_ms(1001 + CLOCK_AGE_MS_MAX, WALL_MS + 1 + CLOCK_AGE_MS_MAX) is None


# ---- whose clock is right


@pytest.mark.parametrize(
    ("offsets", "ahead"),
    [
        ([], None),
        ([None, None], None),
        ([-31_000], 31_000),
        ([None, -31_000], 31_000),
        ([-31_000, 0], 0),
        ([-31_000, -40_000], 31_000),
        ([-31_000, 0, 5], 0),
        ([-31_000, -31_000, 5], 31_000),
        ([-(10**12), -31_000, -20_000, 4], 20_000),
    ],
)
def test_ahead_of_the_median_of_the_peers(offsets: list[Optional[int]], ahead: Optional[int]) -> None:
    assert ahead_ms(offsets) == ahead


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=9), st.lists(st.integers(-(1 << 48), 1 << 48), max_size=8))
def test_half_of_the_peers_keep_nobody_from_signing(honest: list[int], lies: list[int]) -> None:
    ahead = ahead_ms([*honest, *lies[: len(honest)]])
    assert ahead is not None and ahead <= 1000


# ---- kept


def test_what_is_kept_is_read_back(engine: Engine) -> None:
    empty = PeerRecord("atlas", WALL_MS)
    with writing(engine) as connection:
        peers.save(connection, [FULL, empty])
    with engine.connect() as connection:
        assert peers.load(connection) == [empty, FULL]
    with writing(engine) as connection:
        peers.save(connection, [FULL._replace(failures=0, heads=())])
    with engine.connect() as connection:
        assert peers.load(connection) == [FULL._replace(failures=0, heads=())], "who is no peer any more is gone"


def test_a_reset_stays_asked_until_it_is_done(engine: Engine) -> None:
    with writing(engine) as connection:
        peers.ask_reset(connection, "cms", WALL_MS)
        peers.save(connection, [FULL, PeerRecord("atlas")])
        assert peers.resets(connection) == ["cms"]
        peers.ask_reset(connection, "atlas", WALL_MS)
        assert peers.resets(connection) == ["atlas", "cms"]
        peers.done(connection, ["cms", "atlas"])
        assert peers.resets(connection) == []
        assert [record.name for record in peers.load(connection)] == ["atlas", "cms"]


# ---- from one process to the next


def test_a_record_speaks_of_wall_time() -> None:
    meter = answered(WALL_MS + 7)
    meter.count(10, 20)
    meter.saw(HEADS, 900)
    state = PeerState("cms").answered(950).failed(970, "down", random.Random(1))
    record = meter.record(state, 1000, WALL_MS)
    assert (record.contact_ms, record.heads_ms, record.since_ms) == (WALL_MS - 50, WALL_MS - 100, WALL_MS - 30)
    assert (record.offset_ms, record.round_trip_ms, record.bytes_in, record.bytes_out) == (7, 0, 10, 20)
    assert record.next_try_ms == WALL_MS - 1000 + state.next_try_ms and record.heads == HEADS


def test_the_next_process_goes_on_where_the_last_one_stopped() -> None:
    meter = Meter()
    state = meter.recall(FULL, 50_000, WALL_MS + 100)
    assert state == PeerState("cms", 50_000 - 105, 3, 50_000 - 9100, 50_000 + 400, "cms is down")
    assert meter.record(state, 50_000, WALL_MS + 100) == FULL._replace(written_ms=WALL_MS + 100, offset_ms=None)


@given(st.integers(0, 1 << 48), st.integers(0, 1 << 40))
def test_no_pause_outlasts_a_clock_that_jumped(wall_ms: int, now_ms: int) -> None:
    state = Meter().recall(FULL, now_ms, wall_ms)
    assert state.pause_ms(now_ms) <= BACKOFF_MS_MAX
    assert state.last_contact_ms is not None and state.last_contact_ms <= now_ms
