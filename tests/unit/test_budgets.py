"""A peer gets its budget and no more, whatever it asks in whatever order; and all of it comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsync.transport import budgets
from nsync.transport.budgets import CPU_MS, REQUESTS, SIGNATURES, Bucket, Budget, Budgets, Exhausted, body_s_max

NOW_MS = 1_700_000_000_000


def make(**limits: Budget) -> Budgets:
    return Budgets("ab", NOW_MS, {REQUESTS: Budget(10, 5), SIGNATURES: Budget(1000, 100), **limits})


def test_a_peer_may_ask_as_often_as_its_budget_says() -> None:
    accounts = make()
    for _ in range(5):
        accounts.admit("a", NOW_MS)
    with pytest.raises(Exhausted, match="a has used up its requests; it may come back in 1 s") as raised:
        accounts.admit("a", NOW_MS)
    assert (raised.value.limit, raised.value.retry_s) == (REQUESTS, 1)
    accounts.admit("b", NOW_MS)
    with pytest.raises(Exhausted):
        accounts.admit("a", NOW_MS)
    accounts.admit("a", NOW_MS + 100)
    with pytest.raises(Exhausted):
        accounts.admit("a", NOW_MS + 100)


def test_a_debt_is_paid_before_the_next_request() -> None:
    """20 s of work in one exchange, of which 100 signatures were saved up; and a refusal costs nothing."""
    accounts = make()
    accounts.charge("a", SIGNATURES, 20_100, NOW_MS)
    for now_ms, retry_s in ((NOW_MS, 21), (NOW_MS + 10_000, 11), (NOW_MS + 20_000, 1)):
        with pytest.raises(Exhausted, match="signatures") as raised:
            accounts.admit("a", now_ms)
        assert raised.value.retry_s == retry_s
    accounts.admit("a", NOW_MS + 20_001)


def test_nobody_is_sent_away_for_longer_than_a_minute_at_a_time() -> None:
    accounts = make()
    accounts.charge("a", SIGNATURES, 10**9, NOW_MS)
    with pytest.raises(Exhausted) as raised:
        accounts.admit("a", NOW_MS)
    assert raised.value.retry_s == budgets.RETRY_S_MAX


@given(
    st.integers(1, 1000),
    st.integers(1, 1000),
    st.lists(st.tuples(st.integers(-100, 5000), st.integers(0, 500)), max_size=50),
)
def test_what_is_taken_never_exceeds_what_was_given(per_s: int, burst: int, history: list[tuple[int, int]]) -> None:
    """But for the one exchange that overdraws; also when the clock is set back."""
    bucket, now_ms, latest_ms, taken, last = Bucket(Budget(per_s, burst), NOW_MS), NOW_MS, NOW_MS, 0, 0
    passed_ms = 0
    for step_ms, amount in history:
        now_ms += step_ms
        passed_ms += max(0, step_ms)
        latest_ms = max(latest_ms, now_ms)
        if bucket.wait_ms(now_ms) == 0:
            bucket.charge(amount, now_ms)
            taken, last = taken + amount, amount
    assert taken - last <= burst + passed_ms * per_s / 1000 + 1e-6


@given(st.integers(1, 1000), st.floats(0.1, 10_000))
def test_who_waits_as_long_as_told_is_let_in(per_s: int, debt: float) -> None:
    bucket = Bucket(Budget(per_s, 1), NOW_MS)
    bucket.charge(1 + debt, NOW_MS)
    wait_ms = bucket.wait_ms(NOW_MS)
    assert bucket.wait_ms(NOW_MS + max(0, wait_ms - 2)) > 0
    assert bucket.wait_ms(NOW_MS + wait_ms) == 0


def test_room_is_bounded_per_peer_and_in_all_and_given_back() -> None:
    accounts = Budgets("abc", NOW_MS)
    half, small = budgets.PEER_BYTES_MAX // 2, budgets.SMALL_BYTES
    with accounts.room("a") as one, accounts.room("a") as two:
        one(half - 1)
        one(1)
        two(half)
        with pytest.raises(Exhausted, match="a has 25165824 bytes under way"):
            two(1)
        with accounts.room("b") as third:
            third(2 * half)
            assert accounts.held == budgets.BYTES_MAX
            with accounts.room("c") as fourth:
                fourth(small - 1)
                fourth(1)
                with pytest.raises(Exhausted, match="busy with 50397184 bytes of all peers"):
                    fourth(1)
        with accounts.room("c") as fourth:
            fourth(small + 1)
    assert accounts.held == 0
    with pytest.raises(KeyError), accounts.room("a") as one:
        one(half)
        raise KeyError
    assert accounts.held == 0


def test_segments_under_way_are_counted() -> None:
    accounts = Budgets("ab", NOW_MS)
    with accounts.room("a") as take:
        take(0, budgets.PEER_SEGMENTS_MAX)
        with pytest.raises(Exhausted, match="a has 32769 segments under way") as raised:
            take(0, 1)
        assert raised.value.limit == budgets.SEGMENTS
        with accounts.room("b") as other:
            other(0, 1)
    with accounts.room("a") as take:
        take(0, 1)


def test_there_are_no_accounts_but_the_peers() -> None:
    accounts = Budgets("a", NOW_MS)
    for use in (lambda: accounts.admit("x", NOW_MS), lambda: accounts.charge("x", CPU_MS, 1, NOW_MS)):
        with pytest.raises(KeyError):
            use()


def test_a_body_must_come_at_some_rate() -> None:
    assert body_s_max(0, 60) == budgets.BODY_GRACE_S
    assert body_s_max(10 * budgets.BODY_BYTES_PER_S_MIN, 60) == budgets.BODY_GRACE_S + 10
    assert body_s_max(1 << 40, 60) == 60
    assert body_s_max(0, 0.2) == 0.2
