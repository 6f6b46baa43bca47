"""Floors that members vote for by themselves: who votes for what in every case, and that whoever has decided one has decided the same.

The policy alone is tried in all cases that few members have. Then the same members, on real stores, vote beside histories with
forks and revocations, and what they decide must be what the obvious way says is live.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsync.authority.charter import AuthorId, Charter
from nsync.authority.effective import Authority
from nsync.catalogue.world import World
from nsync.log.compaction import digest_of
from nsync.log.floor import Floor, Vote, floors, sign_vote
from nsync.log.segment import Dep
from nsync.log.voting import PROPOSAL_AGE_MS_MAX, Ballot, choose, proposer
from nsync.testing.federation import federation
from tests.property.stories import FORK_STORIES, GENESIS, GRANT_STORIES, NAMES, Story, _key, tell
from tests.property.test_stories import in_causal_order
from tests.support.database import contents, reference_contents
from tests.support.notary import Notaries
from tests.support.notary import tell as exchange

STORIES_TOLD = int(os.environ.get("NSYNC_STORIES", "2000"))
INTERVAL_MS = 1000
NOW_MS = 1 << 41


def head(author: bytes, seq: int) -> Dep:
    return Dep(AuthorId(author), seq, b"%016d" % seq)


def live(heads: Mapping[bytes, int]) -> bytes:
    return b"live %011d" % sum(heads.values())


class Honest:
    """A member whose log is a number for each author: how far it is applied."""

    def __init__(self, charter: Charter, index: int, applied: Mapping[bytes, int]) -> None:
        self.me = charter.instances[index]
        self.charter = charter
        self.applied = dict(applied)
        self.seen: dict[tuple[AuthorId, Floor], Vote] = {}
        self.given: dict[int, set[Floor]] = {}

    def heads_before(self, ms: int) -> list[Dep]:
        return sorted(head(author, seq) for author, seq in self.applied.items() if seq)

    def is_right(self, heads: Iterable[Dep]) -> bool:
        return all(self.applied.get(one.author, 0) >= one.seq and one == head(one.author, one.seq) for one in heads)

    def live(self, heads: Mapping[bytes, int]) -> bytes:
        return live(heads)

    def decided(self) -> list[Floor]:
        return floors(self.seen.values(), self.charter)

    def tend(self, interval_ms: int = INTERVAL_MS) -> Optional[Floor]:
        decided = self.decided()
        votes = [vote for vote in self.seen.values() if vote.floor.number == len(decided) + 1]
        ballot = Ballot(decided[-1] if decided else None, votes, 0)
        chosen = choose(self.charter, self.me, ballot, self, interval_ms, NOW_MS)
        if chosen is not None:
            self.given.setdefault(chosen.number, set()).add(chosen)
            self.hear([vote_of(self.me.author, chosen)])
        return chosen

    def hear(self, votes: Iterable[Vote]) -> None:
        self.seen.update({(vote.author, vote.floor): vote for vote in votes})


def vote_of(author: AuthorId, floor: Floor) -> Vote:
    return sign_vote(GENESIS.federation, author, floor, lambda purpose, message: bytes(64))


def members(count: int, seq: int = 5) -> list[Honest]:
    charter = federation(count).charter
    return [Honest(charter, index, {one.author: seq for one in charter.instances}) for index in range(count)]


def settle(up: Sequence[Honest]) -> None:
    """Everybody hears everybody, and votes, until nobody has more to say."""
    while any([one.tend() is not None for one in up]):
        for one, other in itertools.permutations(up, 2):
            other.hear(one.seen.values())


# ---- the policy, in all cases


@pytest.mark.parametrize("count", range(2, 7))
def test_a_floor_is_decided_whenever_more_than_two_thirds_are_up_and_its_proposer_is(count: int) -> None:
    for size in range(count + 1):
        for chosen in itertools.combinations(range(count), size):
            everybody = members(count)
            up = [everybody[index] for index in chosen]
            settle(up)
            decides = 3 * len(up) > 2 * count and proposer(everybody[0].charter, 1) in [one.me for one in up]
            for one in up:
                assert bool(one.decided()) == decides, (count, chosen)
                assert all(len(given) == 1 for given in one.given.values())


@pytest.mark.parametrize("count", [3, 4])
def test_each_proposes_in_turn_and_only_when_logs_have_grown(count: int) -> None:
    everybody = members(count)
    for number in range(1, 2 * count + 2):
        settle(everybody)
        settle(everybody)
        for one in everybody:
            assert len(one.decided()) == number, "no floor without something new below it"
            assert [floor for floor in one.given.get(number, ())] == [one.decided()[-1]]
        for one in everybody:
            one.applied[everybody[number % count].me.author] += 1


def lies(everybody: Sequence[Honest]) -> dict[str, list[Floor]]:
    """What a lying proposer of number 1 may show: one floor or two."""
    heads = tuple(everybody[1].heads_before(NOW_MS))
    right = Floor(1, 1, heads, live({one.author: one.seq for one in heads}))
    one = heads[0]
    return {
        "a head that does not stand": [right._replace(heads=tuple(sorted([one._replace(hash=b"x" * 16), *heads[1:]])))],
        "a head that nobody has": [right._replace(heads=tuple(sorted([head(one.author, one.seq + 1), *heads[1:]])))],
        "another digest": [right._replace(live=b"x" * 16)],
        "nothing": [Floor(1, 1, (), live({}))],
        "another number": [right._replace(number=2)],
        "two at once": [right, Floor(1, 1, heads[1:], live({one.author: one.seq for one in heads[1:]}))],
    }


@pytest.mark.parametrize("count", [3, 4, 5])
@pytest.mark.parametrize("lie", sorted(lies(members(3))))
def test_a_lying_proposer_gets_no_vote(count: int, lie: str) -> None:
    everybody = members(count)
    liar, *honest = everybody
    for one in honest:
        one.hear(vote_of(liar.me.author, floor) for floor in lies(everybody)[lie])
    settle(honest)
    assert all(not one.given and not one.decided() for one in honest)


@pytest.mark.parametrize("count", [3, 4])
def test_two_proposals_shown_to_different_members_decide_one_floor_at_most(count: int) -> None:
    """Each honest member sees none, one, the other or both, in every combination, before they hear from each other."""
    for shown in itertools.product([(), (0,), (1,), (0, 1)], repeat=count - 1):
        everybody = members(count)
        liar, *honest = everybody
        proposals = [vote_of(liar.me.author, floor) for floor in lies(everybody)["two at once"]]
        for one, which in zip(honest, shown):
            one.hear(proposals[index] for index in which)
            assert one.tend() == (proposals[which[0]].floor if len(which) == 1 else None)
        settle(honest)
        assert all(len(given) == 1 for one in honest for given in one.given.values())
        assert len({tuple(one.decided()) for one in honest}) == 1
        assert all(len(one.decided()) <= 1 for one in honest)


def test_only_the_proposer_is_answered() -> None:
    everybody = members(4)
    heads = tuple(everybody[0].heads_before(NOW_MS))
    right = Floor(1, 1, heads, live({one.author: one.seq for one in heads}))
    everybody[1].hear([vote_of(everybody[2].me.author, right)])
    assert everybody[1].tend() is None
    everybody[1].hear([vote_of(everybody[0].me.author, right)])
    assert everybody[1].tend() == right


def test_who_proposes_none_still_votes() -> None:
    first, second, *_ = members(3)
    assert first.tend(interval_ms=0) is None
    chosen = first.tend()
    assert chosen is not None
    second.hear(first.seen.values())
    assert second.tend(interval_ms=0) == chosen


def test_a_proposal_holds_what_is_old_enough_and_comes_when_it_is_time() -> None:
    (first, *_) = members(3)
    asked: list[int] = []

    def heads_before(ms: int) -> list[Dep]:
        asked.append(ms)
        return []

    first.heads_before = heads_before  # type: ignore[method-assign]
    before = Floor(3, 1, (head(b"a" * 16, 1),), b"l" * 16)
    day_ms = 86_400_000
    assert choose(first.charter, first.me, Ballot(before, [], NOW_MS - day_ms + 1), first, day_ms, NOW_MS) is None and not asked
    assert choose(first.charter, first.me, Ballot(before, [], NOW_MS - day_ms), first, day_ms, NOW_MS) is None
    assert asked == [NOW_MS - PROPOSAL_AGE_MS_MAX]


# ---- members on real stores


class Site(Notaries):
    def __init__(self, name: str) -> None:
        super().__init__(Authority(GENESIS), name, _key(name, 0).sign, 1 << 44)


def play(story: Story, rng: random.Random, compacts: bool) -> list[Site]:
    """Four members take in the segments in any causal order, and vote and meet in between; at the end all have everything."""
    sites = [Site(name) for name in NAMES]
    logs = [in_causal_order(story.segments, rng) for _ in sites]
    given: dict[tuple[str, int], Floor] = {}
    while any(logs) or rng.random() < 0.9:
        site, log = rng.choice(list(zip(sites, logs)))
        site.store(*log[: (count := rng.randint(0, 3))])
        del log[:count]
        tend(site, given)
        exchange(*rng.sample(sites, 2))
        if compacts and rng.random() < 0.3:
            site.compact()
    for _ in range(2):
        for one, other in itertools.permutations(sites, 2):
            tend(one, given)
            exchange(one, other)
    return sites


def tend(site: Site, given: dict[tuple[str, int], Floor]) -> None:
    """Vote if there is something to vote for; what honest members vote for is one thing for each number."""
    chosen = site.notary.tend().voted
    if chosen is not None:
        assert (site.name, chosen.number) not in given, "one vote a number"
        given[site.name, chosen.number] = chosen
        assert len({floor for (_, number), floor in given.items() if number == chosen.number}) == 1


def check(steps: Sequence[tuple[Any, ...]], rng: random.Random, compacts: bool) -> list[Floor]:
    story = tell(steps)
    sites = play(story, rng, compacts)
    try:
        decided = sites[0].floors()
        votes = sites[0].votes()
        for site in sites:
            assert site.floors() == decided
        segments = in_causal_order(story.segments, rng)
        for number, floor in enumerate(decided, 1):
            below = World(GENESIS, segments, [vote for vote in votes if vote.floor.number <= number]).live()
            assert floor.live == digest_of(below, {head.author: head.seq for head in floor.heads})
        wanted = wanted_of(story, votes, rng)
        for site in sites:
            found = contents(site.engine, site.authority)
            for part in set(wanted) - {"effective"} if compacts else wanted:
                assert found[part] == wanted[part], (site.name, part)
    finally:
        for site in sites:
            site.engine.dispose()
    return decided


def wanted_of(story: Story, votes: Sequence[Vote], rng: random.Random) -> dict[str, Any]:
    from nsync.catalogue.reference import Reference

    reference = Reference(GENESIS, votes)
    for segment in in_causal_order(story.segments, rng):
        reference.apply(segment)
    return reference_contents(reference)


@settings(max_examples=max(10, STORIES_TOLD * 15 // 2000), deadline=None)
@given(GRANT_STORIES, st.integers(0, 1 << 32).map(random.Random), st.booleans())
def test_votes_beside_revocations(steps: Sequence[tuple[Any, ...]], rng: random.Random, compacts: bool) -> None:
    check(steps, rng, compacts)


@settings(max_examples=max(10, STORIES_TOLD * 15 // 2000), deadline=None)
@given(FORK_STORIES, st.integers(0, 1 << 32).map(random.Random), st.booleans())
def test_votes_beside_forks(steps: Sequence[tuple[Any, ...]], rng: random.Random, compacts: bool) -> None:
    check(steps, rng, compacts)
