"""Stories of a federation of four, as Hypothesis draws them: grants and revocations, clones that sign with one key, floors, new
incarnations, scopes that move, and amendments of guests, scopes and DOIs. Everything is signed for real; nothing is delivered yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from hypothesis import strategies as st

from nsync.auth.keys import SigningKey
from nsync.authority.amendments import check_succession
from nsync.authority.charter import AuthorId, Charter, Instance, Place, author_id
from nsync.authority.documents import check
from nsync.catalogue.writer import Writer
from nsync.log.floor import Floor, Vote, floors, sign_vote
from nsync.log.segment import Dep, Segment
from nsync.namespace import fields
from nsync.namespace.fields import Identity
from nsync.namespace.keys import Attachment, Attribute, Did, Replica, Rse, Scope
from nsync.namespace.ops import VERBS, Assert, Grant, Retract, Revoke, Statement, encode_grant, encode_op, encode_revoke

NAMES = ("atlas", "belle2", "cms", "ska")
MOVED = "cms"
"""A scope that may go to other homes."""
FRESH = "lhcb"
"""A scope that is nobody's until an amendment gives it to somebody."""


def _key(name: str, life: int) -> SigningKey:
    return SigningKey(bytes([NAMES.index(name) + 1, life] * 16))


def signing_key(instance: Instance) -> SigningKey:
    """The key with which an instance signs now."""
    return _key(instance.name, len(instance.past))


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

    def _sync(self, index: int, name: str, persona: int) -> None:
        for others in self.personas.values():
            for other in others:
                self._who(name, persona).hear(other.log)

    def _welcome(self, index: int, everybody: bool) -> None:
        """The homes grant everything to everybody, who know it."""
        for scope in SCOPES:
            for name in NAMES:
                if name != scope:
                    self._grant(index, scope, 0, name, scope, "", VERBS if everybody else ("attach", "close", "create", "publish"))
        for name in NAMES:
            self._sync(index, name, 0)

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
        """What one of them sees is voted for; with three of four it is a floor, and later votes are for the next."""
        heads: dict[bytes, Dep] = {}
        for segment in self._who(name, persona).log:
            header = segment.header
            if header.commit and (header.author not in heads or heads[header.author].seq < header.last):
                heads[header.author] = Dep(header.author, header.last, segment.hash)
        floor = Floor(self.floors + 1, self.body["version"], tuple(sorted(heads.values())), bytes(16))
        for voter in sorted(set(voters)):
            author = AuthorId(self.personas[voter][0].author)
            self.votes.append(sign_vote(GENESIS.federation, author, floor, self.personas[voter][0]._sign))
        self.floors = len(floors(self.votes, self.charters[-1]))

    def _incarnate(self, index: int, name: str, persona: int) -> None:
        """The charter names where this machine's log ended, and a new incarnation goes on from there."""
        writer = self._who(name, persona)
        if self.lives[name] == 2 or not writer._tip.seq or writer.author != self.charters[-1].by_name(name).author:
            return
        entry = self._instance(name)
        life = {"key": entry["key"], "incarnation": entry["incarnation"], "final": [writer._tip.seq, writer._tip.hash.hex()]}
        self.lives[name] += 1
        kept = {what: entry[what] for what in ("scopes", "dois", "guests")}
        entry.update({**_entry(name, self.lives[name]), **kept, "past": [*entry.get("past", []), life]})
        self._amend()
        heir = Writer(self.charters[-1], name, _key(name, self.lives[name]).sign, writer.now_ms)
        heir.hear(writer.log)
        self.personas[name].insert(0, heir)

    def _move(self, index: int, to: str, name: str, persona: int) -> None:
        """The scope goes to another home; what it had seen until then is judged by the old one."""
        home = self._home(MOVED)
        if home == to or len(self.body["moves"]) == 2 or self._lets_in(home, MOVED):
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

    def _invite(self, index: int, guest: str, scope: str) -> None:
        """The home names a guest in the charter, who may have spoken of the scope before."""
        home = self._home(scope)
        if home not in ("", guest):
            guests = self._instance(home)["guests"]
            self._instance(home)["guests"] = {**guests, guest: sorted({*guests.get(guest, ()), scope})}
            self._amend()

    def _delegate(self, index: int, to: str, guests: Sequence[str]) -> None:
        """The scope that was nobody's gets a home, and perhaps guests."""
        if not self._home(FRESH):
            entry = self._instance(to)
            entry["scopes"] = [*entry["scopes"], FRESH]
            invited = {guest: sorted({*entry["guests"].get(guest, ()), FRESH}) for guest in guests if guest != to}
            entry["guests"] = {**entry["guests"], **invited}
            self._amend()

    def _dois(self, index: int, prefix: str, to: str) -> None:
        """Another decides about the DOIs below a prefix, or nobody does."""
        for name in NAMES:
            entry = self._instance(name)
            entry["dois"] = [one for one in entry["dois"] if one != prefix] + ([prefix] if name == to else [])
        self._amend()

    def _home(self, scope: str) -> str:
        return next((name for name in NAMES if scope in self._instance(name)["scopes"]), "")

    def _lets_in(self, home: str, scope: str) -> bool:
        return any(scope in scopes for scopes in self._instance(home)["guests"].values())

    def _instance(self, name: str) -> dict[str, Any]:
        return next(one for member in self.body["members"] for one in member["instances"] if one["name"] == name)

    def _amend(self) -> None:
        last = self.charters[-1]
        self.body = {**self.body, "version": last.version + 1, "federation": GENESIS.federation.hex(), "previous": last.hash.hex()}
        following = _charter(self.body)
        check_succession(last, following, {"charter": self.body})
        self.charters.append(replace(following, before=last))


WHO = st.sampled_from(NAMES)
PERSONA = st.integers(0, 2)
SCOPES = ("atlas", MOVED)
"""Two homes are enough, so that statements meet; the other two members are their guests."""
TYPES = {"f1": fields.FILE, "f2": fields.FILE, "d1": fields.DATASET, "d2": fields.DATASET, "c1": fields.CONTAINER, "c2": fields.CONTAINER}


@st.composite
def statements(draw: st.DrawFn, who: str) -> Statement:
    """A statement about one of few keys; about what `who` decides more often than not."""
    scope = who if who in SCOPES and draw(st.booleans()) else draw(st.sampled_from((*SCOPES, *SCOPES, FRESH)))
    kind = draw(
        st.sampled_from(
            ["did", "did", "edge", "edge", "close", "opendata", "doi", "record", "meta", "replica", "rse", "scope", "attachable"]
        )
    )
    did = Did(scope, draw(st.sampled_from(sorted(TYPES))))
    collection = Did(scope, draw(st.sampled_from(["d1", "d2", "c1", "c2"])))
    rse = Rse(who if draw(st.integers(0, 5)) else draw(WHO), "DISK")
    key, value = {
        "did": (did, _identity(TYPES[did.name] if draw(st.integers(0, 7)) else draw(st.sampled_from("FDC")), draw(st.integers(1, 2)))),
        "edge": (Attachment(collection, did), True),
        "close": (Attribute(collection, fields.CLOSED), draw(st.sampled_from([True, True, False]))),
        "opendata": (Attribute(did, fields.OPENDATA), draw(st.sampled_from([fields.PUBLIC, fields.SUSPENDED]))),
        "doi": (Attribute(did, fields.DOI), draw(st.sampled_from(["10.5072/ATLAS.1", "10.5072/BELLE2.1"]))),
        "record": (Attribute(did, fields.RECORD), draw(st.integers(1, 2))),
        "meta": (
            Attribute(
                did,
                draw(st.sampled_from(["datatype", fields.HIDDEN])),
            ),
            None,
        ),
        "replica": (Replica(Did(scope, "f1"), rse), draw(st.sampled_from(["p/1", "p/2"]))),
        "rse": (rse, True),
        "scope": (Scope(scope), True),
        "attachable": (Attribute(Scope(scope), fields.ATTACHABLE), draw(st.booleans())),
    }[kind]
    if kind == "meta":
        value = draw(st.booleans()) if key.field == fields.HIDDEN else draw(st.sampled_from(["RAW", "AOD"]))
    return Retract(key) if draw(st.integers(0, 3)) == 0 else Assert(key, value)


def _identity(kind: str, n: int) -> Identity:
    return Identity(kind, n, bytes([n] * 4), None) if kind == fields.FILE else Identity(kind)


@st.composite
def arrivals(draw: st.DrawFn, who: str) -> list[Statement]:
    """A file as instances share it: what it is, where it belongs, where it lies and more about it, in one op or in two."""
    file, rse = Did(who, draw(st.sampled_from(["f1", "f2", "f3"]))), Rse(who, "DISK")
    parents = draw(st.lists(st.sampled_from(["d1", "d2", "c1"]), max_size=2, unique=True))
    more = draw(st.lists(st.sampled_from(["datatype", fields.HIDDEN, fields.STATE]), max_size=2, unique=True))
    values = {"datatype": (file, "RAW"), fields.HIDDEN: (file, True), fields.STATE: (Replica(file, rse), fields.BAD)}
    return [
        Assert(file, _identity(fields.FILE, draw(st.integers(1, 2)))),
        *(Assert(Attachment(Did(draw(st.sampled_from([who, "atlas"])), parent), file), True) for parent in parents),
        *([Assert(Replica(file, rse), "p/1")] if draw(st.booleans()) else []),
        *(Assert(Attribute(values[field][0], field), values[field][1]) for field in more),
    ]


@st.composite
def publications(draw: st.DrawFn) -> tuple[Any, ...]:
    """Ops of one to three statements about different keys, and files with all that is known of them."""
    who = draw(WHO)
    raws = []
    for _ in range(draw(st.integers(1, 3))):
        if who in SCOPES and draw(st.booleans()):
            said = draw(arrivals(who))
            cut = draw(st.integers(0, len(said) - 1))
            raws += [encode_op(part) for part in (said[:cut], said[cut:]) if part]
            continue
        found = {s.key: s for s in draw(st.lists(statements(who), min_size=1, max_size=3))}
        raws.append(encode_op(found.values()))
    return ("publish", who, draw(PERSONA), raws)


VERB_SETS = st.lists(st.sampled_from(VERBS), min_size=1, max_size=4, unique=True).map(lambda verbs: tuple(sorted(verbs)))
GRANT = st.sampled_from((*SCOPES, *SCOPES, FRESH)).flatmap(
    lambda scope: st.tuples(
        st.just("grant"),
        st.just(scope) | st.just(scope) | WHO if scope in NAMES else WHO,
        PERSONA,
        WHO,
        st.just(scope),
        st.sampled_from(["", "", "d", "f"]),
        st.just(VERBS) | VERB_SETS,
    )
)
PUBLISH = publications()
FETCH = st.tuples(st.just("fetch"), WHO, PERSONA, WHO, PERSONA)
SYNC = st.tuples(st.just("sync"), WHO, PERSONA)
WELCOME = st.tuples(st.just("welcome"), st.booleans())
REVOKE = st.tuples(st.just("revoke"), st.sampled_from(SCOPES) | WHO, PERSONA, st.integers(0, 5))
CLONE = st.tuples(st.just("clone"), WHO)
FLOOR = st.tuples(st.just("floor"), WHO, PERSONA, st.lists(WHO, min_size=1, max_size=4, unique=True) | st.just(list(NAMES[:3])))
INCARNATE = st.tuples(st.just("incarnate"), WHO, PERSONA)
MOVE = st.tuples(st.just("move"), WHO, WHO, PERSONA)
INVITE = st.tuples(st.just("invite"), WHO, st.sampled_from((*SCOPES, FRESH)))
DELEGATE = st.tuples(st.just("delegate"), WHO, st.lists(WHO, max_size=2, unique=True))
DOIS = st.tuples(st.just("dois"), st.sampled_from(["10.5072/ATLAS.", "10.5072/BELLE2."]), WHO | st.just(""))
AMEND = INVITE | DELEGATE | DOIS


def _stories(*kinds: st.SearchStrategy[tuple[Any, ...]]) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    common = (PUBLISH, PUBLISH, PUBLISH, PUBLISH, PUBLISH, FETCH, FETCH, SYNC, GRANT)
    steps = st.lists(st.one_of(*common, *common, *kinds), min_size=8, max_size=30)
    return st.tuples(st.just([]) | WELCOME.map(lambda step: [step]) | WELCOME.map(lambda step: [step]), steps).map(
        lambda both: both[0] + both[1]
    )


STORIES = _stories(REVOKE, CLONE, FLOOR, INCARNATE, MOVE, AMEND)
"""Everything at once."""
GRANT_STORIES = _stories(GRANT, REVOKE, REVOKE, AMEND)
FORK_STORIES = _stories(CLONE, CLONE, FLOOR)


def tell(steps: Sequence[tuple[Any, ...]]) -> Story:
    return Teller().tell(steps)
