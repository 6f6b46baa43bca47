"""Floors while members come and go: what was decided stays, whoever has which version of the charter, and whoever lies (R4.8).

The oracle is two sentences: no two honest members ever have different floors of one number, and what one of them has decided it never
takes back. Less than a third of the members of each version vote for whatever they like, and show it to whom they like.
"""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from typing import Any, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsync.auth.keys import SigningKey, verify
from nsync.authority import amendments, documents, proposals
from nsync.authority.charter import Charter, Place
from nsync.errors import ConfigError
from nsync.log.floor import Floor, decided, electors
from nsync.log.voting import proposer
from tests.property.test_voting import STORIES_TOLD, Honest, live, settle, vote_of

NAMES = tuple("abcdefghij")
NOTHING = Place(0, bytes(16))
TOLD = max(50, STORIES_TOLD // 4)


def entry(name: str) -> dict[str, Any]:
    key = SigningKey(name.encode() * 32).public.hex()
    instance = {"name": name, "key": key, "incarnation": name.encode().hex() * 16, "url": f"http://{name}", "scopes": [name]}
    return {"name": name.upper(), "roots": [key], "threshold": 1, "instances": [instance]}


class World:
    """A line of charters, honest members with one of them each, and liars."""

    def __init__(self, names: str, liars: str) -> None:
        self.body: dict[str, Any] = {"format": 1, "name": "terms", "version": 1, "members": [entry(name) for name in names]}
        self.charters = [documents.check({"charter": self.body})]
        self.liars = liars
        self.honest: dict[str, Honest] = {}
        self.seq = 1
        self.found: dict[int, Floor] = {}
        self.adopt("".join(names))

    @property
    def newest(self) -> Charter:
        return self.charters[-1]

    def amend(self, *edits: proposals.Edit) -> bool:
        """The next version, unless a third of its members or more would be liars."""
        body = {**self.body, "version": self.newest.version + 1, "federation": self.newest.federation.hex()}
        body["members"] = [{**m, "instances": [dict(one) for one in m["instances"]]} for m in body["members"]]
        body.pop("revote_after", None)
        for edit in edits:
            edit(body)
        charter = replace(documents.check({"charter": body}), before=self.newest)
        members = charter.electors()
        if 3 * sum(name.lower() in self.liars for name in members) >= len(members):
            return False
        self.body = body
        self.charters.append(charter)
        return True

    def adopt(self, names: str, version: Optional[int] = None) -> None:
        """These members go over to a version, never back; who is new begins with it."""
        charter = self.charters[(version or self.newest.version) - 1]
        for name in names:
            if name in self.liars or charter.by_name(name) is None:
                continue
            index = [instance.name for instance in charter.instances].index(name)
            one = self.honest.setdefault(name, Honest(charter, index, {}))
            if one.charter.version <= charter.version:
                one.charter, one.me = charter, charter.instances[index]
            self.grow(0)

    def grow(self, by: int) -> None:
        self.seq += by
        for one in self.honest.values():
            one.applied = {instance.author: self.seq for instance in self.newest.instances}

    def lie(self, rng: random.Random) -> None:
        """A liar votes, in some term, for a part of what is right, and tells some."""
        name = rng.choice(self.liars)
        number = rng.randint(1, len(self.found) + 1)
        term = rng.choice(self.charters)
        if term.by_name(name) is None:
            return
        seen = [vote.floor for one in self.honest.values() for vote in one.seen.values() if vote.floor.number == number]
        heads = tuple(head for head in next(iter(self.honest.values())).heads_before(0) if rng.random() < 0.7)
        own = Floor(number, term.version, heads, live({head.author: head.seq for head in heads}))
        vote = vote_of(term.by_name(name).author, rng.choice([*seen, own]))
        for one in self.honest.values():
            if rng.random() < 0.5 and vote.floor.term <= one.charter.version:
                one.hear([vote])

    def look(self, kept: dict[str, list[Floor]]) -> None:
        """The oracle."""
        for name, one in self.honest.items():
            now = one.decided()
            assert now[: len(kept.get(name, ()))] == kept.get(name, []), f"{name} takes a floor back"
            kept[name] = now
            for floor in now:
                assert self.found.setdefault(floor.number, floor) == floor, f"two floors {floor.number}"


def play(world: World, rng: random.Random, steps: int) -> dict[str, list[Floor]]:
    kept: dict[str, list[Floor]] = {}
    for _ in range(steps):
        what = rng.random()
        some = "".join(name for name in world.honest if rng.random() < 0.6)
        if what < 0.08:
            fresh = [name for name in NAMES if world.newest.by_name(name) is None][: rng.randint(1, 6)]
            if fresh and world.amend(*(proposals.admit(entry(name)) for name in fresh)):
                world.adopt("".join(fresh))
        elif what < 0.12:
            world.amend(proposals.retire(rng.choice(world.newest.instances).name, NOTHING))
        elif what < 0.3:
            world.adopt(some, rng.choice(world.charters).version)
        elif what < 0.4:
            world.grow(1)
        elif what < 0.6 and world.liars:
            world.lie(rng)
        else:
            for name in some:
                world.honest[name].tend()
            for one, other in itertools.permutations([world.honest[name] for name in some], 2):
                other.hear(vote for vote in one.seen.values() if vote.floor.term <= other.charter.version)
        world.look(kept)
    return kept


@settings(max_examples=TOLD)
@given(st.sampled_from(["ab", "abc", "abcd", "abcdefg"]), st.integers(0, 2), st.integers(0, 1 << 32))
def test_what_is_decided_stays(names: str, liars: int, seed: int) -> None:
    rng, liars = random.Random(seed), min(liars, (len(names) - 1) // 3)
    play(World(names, names[:liars] if rng.random() < 0.5 else names[len(names) - liars :]), rng, 60)


@settings(max_examples=TOLD // 2)
@given(st.sampled_from(["abc", "abcd", "abcdefg"]), st.integers(0, 2), st.integers(0, 1 << 32))
def test_an_amendment_that_has_all_vote_anew_decides_whatever_stands_still(names: str, liars: int, seed: int) -> None:
    world = World(names, names[: min(liars, (len(names) - 1) // 3)])
    kept = play(world, random.Random(seed), 40)
    last = max(map(len, kept.values()))
    if not world.amend(proposals.revote(last)):
        return
    world.adopt("".join(world.honest))
    world.grow(1)
    everybody = [one for one in world.honest.values() if one.me.retired is None]
    for one, other in itertools.permutations(world.honest.values(), 2):
        other.hear(one.seen.values())
    proposes = proposer(world.newest, last + 1)
    assert proposes is not None
    settle(everybody)
    world.look(kept)
    if proposes.name not in world.liars:
        assert all(len(one.decided()) > last for one in everybody)
        assert everybody[0].decided()[last].term == world.newest.version


# ---- what an amendment did to floors before they named their terms


def test_members_who_come_all_at_once_take_no_floor_back() -> None:
    world = World("abc", "")
    settle(list(world.honest.values()))
    assert world.amend(*(proposals.admit(entry(name)) for name in "defghij"))
    kept: dict[str, list[Floor]] = {}
    world.look(kept)
    world.adopt("abcdefghij")
    world.look(kept)
    assert len(kept["a"]) == 1
    world.grow(1)
    settle([world.honest[name] for name in "bdefghij"])
    assert all(world.honest[name].given[2] for name in "bdefghij")
    assert len(world.honest["b"].decided()) == 1, "who is new alone decides nothing"
    for name in "ac":
        world.honest[name].hear(world.honest["b"].seen.values())
    settle(list(world.honest.values()))
    world.look(kept)
    assert [floor.term for floor in kept["j"]] == [1, 2]


def test_who_has_retired_is_missed_by_nobody_once_a_floor_of_the_new_term_is_there() -> None:
    world = World("abcd", "")
    settle(list(world.honest.values()))
    assert world.amend(proposals.retire("b", NOTHING))
    world.adopt("acd")
    for number in (2, 3, 4, 5):
        world.grow(1)
        settle([world.honest[name] for name in "acd"])
        assert [floor.term for floor in world.honest["a"].decided()] == [1] + [2] * (number - 1)
    assert "B" not in set(electors(2, world.newest).values())


def test_votes_of_before_count_no_more_after_an_amendment_says_so() -> None:
    world = World("abcd", "")
    a, b, c, d = world.honest.values()
    heads = tuple(a.heads_before(0))
    one = Floor(1, 1, heads, live({head.author: head.seq for head in heads}))
    other = one._replace(heads=heads[1:], live=live({head.author: head.seq for head in heads[1:]}))
    for voter, floor in ((a, one), (b, one), (c, other), (d, other)):
        for everyone in (a, b, c, d):
            everyone.hear([vote_of(voter.me.author, floor)])
    settle([a, b, c, d])
    assert not a.decided(), "an even split stands still"
    assert world.amend(proposals.revote(0))
    world.adopt("abcd")
    settle([a, b, c, d])
    assert [floor.term for floor in a.decided()] == [2]
    assert decided([vote_of(x.me.author, one) for x in (a, b, c)], world.newest, None) is None


# ---- the charter


def signed(document: dict[str, Any], names: str) -> str:
    for name in names:
        document = documents.sign(document, SigningKey(name.encode() * 32))
    return json.dumps(document)


def test_a_line_of_charters_knows_its_versions_and_says_revote_once() -> None:
    file = proposals.read(signed(documents.draft("terms", [entry(name) for name in "abc"]), "abc"), verify)
    for version, edits in ((2, [proposals.revote(7)]), (3, [proposals.admit(entry("d"))])):
        file = proposals.propose(file, edits)
        for name in "abc":
            file = proposals.sign(file, SigningKey(name.encode() * 32))
        file = proposals.read(file.text(), verify)
        assert file.charter.version == version
    charter = file.charter
    assert [c.version for c in charter.versions()] == [3, 2, 1]
    assert (charter.at(1), charter.at(4)) == (charter.before.before if charter.before else None, None)
    assert [charter.revoted(number) for number in (7, 8)] == [1, 2]
    assert charter.revote_after is None
    with pytest.raises(ConfigError, match="the genesis comes first"):
        amendments.read(json.dumps([file.documents[1]]), verify)
    with pytest.raises(ConfigError, match="no number of a floor"):
        proposals.propose(file, [proposals.revote(-1)])
