"""Stories of a federation of four, as Hypothesis draws them: grants and revocations, clones that sign with one key, floors, new
incarnations and scopes that move, beside what `histories` says. Everything is signed for real; nothing is delivered yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

from nsync.auth.keys import SigningKey
from nsync.authority.charter import AuthorId, Charter, Place, author_id, check
from nsync.catalogue.writer import Writer
from nsync.log.floor import Floor, Vote, sign_vote
from nsync.log.segment import Dep, Segment
from nsync.namespace.ops import VERBS, Grant, Revoke, encode_grant, encode_revoke
from tests.property.histories import ops

NAMES = ("atlas", "belle2", "cms", "ska")
MOVED = "cms"
"""A scope that may go to other homes."""


def _key(name: str, life: int) -> SigningKey:
    return SigningKey(bytes([NAMES.index(name) + 1, life] * 16))


def _incarnation(name: str, life: int) -> bytes:
    return bytes([NAMES.index(name) + 201, life] * 8)


def _entry(name: str, life: int = 0) -> dict[str, Any]:
    return {
        "name": name,
        "key": _key(name, life).public.hex(),
        "incarnation": _incarnation(name, life).hex(),
        "url": f"http://{name}.example.org",
        "scopes": [name],
        "dois": [f"10.5072/{name.upper()}."],
        "guests": {},
    }


def _genesis() -> dict[str, Any]:
    root = SigningKey(b"r" * 32).public.hex()
    members = [{"name": name.upper(), "roots": [root], "threshold": 1, "instances": [_entry(name)]} for name in NAMES]
    return {"format": 1, "name": "stories", "version": 1, "members": members, "moves": []}


def _charter(body: dict[str, Any]) -> Charter:
    return check({"charter": body, "signatures": {}})


GENESIS = _charter(_genesis())


class Story(NamedTuple):
    """What was signed, and the charter at the end."""

    charters: tuple[Charter, ...]
    segments: tuple[Segment, ...]
    votes: tuple[Vote, ...]


class Teller:
    """Plays the steps of a story."""

    def __init__(self) -> None:
        self.body = _genesis()
        self.charters = [GENESIS]
        self.lives = dict.fromkeys(NAMES, 0)
        self.personas = {name: [Writer(GENESIS, name, _key(name, 0).sign, 1_700_000_000_000)] for name in NAMES}
        self.votes: list[Vote] = []
        self.floors = 0
        self.segments: dict[bytes, Segment] = {}

    def tell(self, steps: Sequence[tuple[Any, ...]]) -> Story:
        for index, (what, *how) in enumerate(steps):
            getattr(self, f"_{what}")(index, *how)
        return Story(tuple(self.charters), tuple(self.segments.values()), tuple(self.votes))

    def _who(self, name: str, persona: int) -> Writer:
        return self.personas[name][persona % len(self.personas[name])]

    def _sign(self, writer: Writer, index: int, raws: Sequence[bytes]) -> None:
        writer.now_ms += (index * 7919) % 5000 - 2000  # clocks run unevenly, backwards too
        for segment in writer.publish(raws):
            self.segments[segment.hash] = segment

    def _publish(self, index: int, name: str, persona: int, raws: Sequence[bytes]) -> None:
        self._sign(self._who(name, persona), index, raws)

    def _fetch(self, index: int, name: str, persona: int, other: str, its: int) -> None:
        self._who(name, persona).hear(self._who(other, its).log)

    def _grant(self, index: int, name: str, persona: int, to: str, scope: str, prefix: str, verbs: tuple[str, ...]) -> None:
        self._sign(self._who(name, persona), index, [encode_grant(Grant(to, scope, prefix, verbs, None))])

    def _revoke(self, index: int, name: str, persona: int, which: int) -> None:
        writer = self._who(name, persona)
        lives = {author_id(_key(name, life).public, _incarnation(name, life)) for life in range(3)}
        granted = [s for s in writer.log if s.header.author in lives and s.ops[0][1:2] == b"\x03"]
        if granted:
            header = granted[which % len(granted)].header
            self._sign(writer, index, [encode_revoke(Revoke(header.author, header.first))])

    def _clone(self, index: int, name: str) -> None:
        """From here on two machines sign with one key."""
        if len(self.personas[name]) < 3:
            first = self.personas[name][0]
            twin = Writer(self.charters[-1], name, _key(name, self.lives[name]).sign, first.now_ms + 1)
            twin.author = first.author
            twin.hear(first.log)
            twin._tip = first._tip
            self.personas[name].append(twin)

    def _floor(self, index: int, name: str, persona: int, voters: Sequence[str]) -> None:
        """What one of them sees is voted for; with three of four it is the next floor."""
        heads: dict[bytes, Dep] = {}
        for segment in self._who(name, persona).log:
            header = segment.header
            if header.commit and (header.author not in heads or heads[header.author].seq < header.last):
                heads[header.author] = Dep(header.author, header.last, segment.hash)
        floor = Floor(self.floors + 1, tuple(sorted(heads.values())), bytes(16))
        for voter in sorted(set(voters)):
            author = AuthorId(self.personas[voter][0].author)
            self.votes.append(sign_vote(GENESIS.federation, author, floor, self.personas[voter][0]._sign))
        self.floors += len(set(voters)) >= 3

    def _incarnate(self, index: int, name: str, persona: int) -> None:
        """The charter names where this machine's log ended, and a new incarnation goes on from there."""
        writer = self._who(name, persona)
        if self.lives[name] == 2 or not writer._tip.seq:
            return
        entry = self._instance(name)
        life = {"key": entry["key"], "incarnation": entry["incarnation"], "final": [writer._tip.seq, writer._tip.hash.hex()]}
        self.lives[name] += 1
        entry.update(_entry(name, self.lives[name]), scopes=entry["scopes"], past=[*entry.get("past", []), life])
        self._amend()
        heir = Writer(self.charters[-1], name, _key(name, self.lives[name]).sign, writer.now_ms)
        heir.hear(writer.log)
        self.personas[name].insert(0, heir)

    def _move(self, index: int, to: str, name: str, persona: int) -> None:
        """The scope goes to another home; what it had seen until then is judged by the old one."""
        home = next(one["name"] for member in self.body["members"] for one in member["instances"] if MOVED in one["scopes"])
        if home == to or len(self.body["moves"]) == 2:
            return
        finals: dict[str, Place] = {}
        for segment in self._who(name, persona).log:
            header = segment.header
            if header.commit and (header.author.hex() not in finals or finals[header.author.hex()].seq < header.last):
                finals[header.author.hex()] = Place(header.last, segment.hash)
        for move in self.body["moves"]:  # finals only grow
            for author, (seq, its) in move["finals"].items():
                if author not in finals or finals[author].seq < seq:
                    finals[author] = Place(seq, bytes.fromhex(its))
        self._instance(home)["scopes"] = [scope for scope in self._instance(home)["scopes"] if scope != MOVED]
        self._instance(to)["scopes"] = [*self._instance(to)["scopes"], MOVED]
        places = {author: [place.seq, place.hash.hex()] for author, place in finals.items()}
        self.body["moves"] = [*self.body["moves"], {"scopes": MOVED, "from": home, "finals": places}]
        self._amend()

    def _instance(self, name: str) -> dict[str, Any]:
        return next(one for member in self.body["members"] for one in member["instances"] if one["name"] == name)

    def _amend(self) -> None:
        self.body = {**self.body, "version": self.body["version"] + 1, "federation": GENESIS.federation.hex()}
        self.charters.append(_charter(self.body))


WHO = st.sampled_from(NAMES)
PERSONA = st.integers(0, 2)
VERB_SETS = st.lists(st.sampled_from(VERBS), min_size=1, max_size=4, unique=True).map(lambda verbs: tuple(sorted(verbs)))
GRANTED = st.sampled_from([VERBS, VERBS]) | VERB_SETS
TO_GRANT = st.sampled_from(["atlas", "atlas.shared", "belle2", MOVED])

PUBLISH = st.tuples(st.just("publish"), WHO, PERSONA, st.lists(ops(), min_size=1, max_size=3))
FETCH = st.tuples(st.just("fetch"), WHO, PERSONA, WHO, PERSONA)
GRANT = TO_GRANT.flatmap(
    lambda scope: st.tuples(
        st.just("grant"),
        WHO if scope == MOVED else st.just(scope.split(".")[0]),
        PERSONA,
        WHO,
        st.just(scope),
        st.sampled_from(["", "", "d", "f"]),
        GRANTED,
    )
)
REVOKE = st.tuples(st.just("revoke"), WHO, PERSONA, st.integers(0, 5))
CLONE = st.tuples(st.just("clone"), WHO)
FLOOR = st.tuples(st.just("floor"), WHO, PERSONA, st.lists(WHO, min_size=1, max_size=4, unique=True) | st.just(list(NAMES[:3])))
INCARNATE = st.tuples(st.just("incarnate"), WHO, PERSONA)
MOVE = st.tuples(st.just("move"), WHO, WHO, PERSONA)

COMMON = (PUBLISH, PUBLISH, PUBLISH, FETCH, FETCH, FETCH, GRANT)
STORIES = st.lists(st.one_of(*COMMON, *COMMON, REVOKE, CLONE, FLOOR, INCARNATE, MOVE), min_size=1, max_size=30)
"""Everything at once."""
GRANT_STORIES = st.lists(st.one_of(*COMMON, GRANT, REVOKE), min_size=1, max_size=30)
FORK_STORIES = st.lists(st.one_of(*COMMON, CLONE, FLOOR), min_size=1, max_size=30)


def tell(steps: Sequence[tuple[Any, ...]]) -> Story:
    return Teller().tell(steps)
