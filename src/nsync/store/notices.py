"""Notices in SQL: what is here, what a peer lacks of it, and what becomes of what it sends (log.notices); votes for floors (log.voting).

Everything that is taken in was checked before (`log.notices.check`), without the database. A floor that becomes decided may change
readings: they are settled in the same transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import NamedTuple, Optional

from sqlalchemy import delete, func, insert, select

from nsync.authority.charter import AuthorId, Instance, Place
from nsync.failpoints import failpoint
from nsync.log import lease, notices, voting
from nsync.log.floor import Floor, Vote, decided, electors, sign_vote
from nsync.log.lease import SignedHead, encode_head, read_head, sign_head
from nsync.log.notices import FORKS_MAX, Fork, Notice, Stand, Told
from nsync.log.segment import NO_HASH, Sign, header_hash
from nsync.log.stored import Head
from nsync.log.voting import Ballot
from nsync.namespace import codec
from nsync.store import recovery, schema
from nsync.store.log import SqlLog
from nsync.store.voting import SqlHere

_FORK, _HEAD, _SEGMENT = schema.fork.c, schema.signed_head.c, schema.segment.c

VOTES_OF_ONE_MAX = 2
"""Of one author for one number: the vote, and another one as the proof of what it did."""


class Taken(NamedTuple):
    """What became of notices."""

    fresh: int
    """How many said something new."""
    urgent: int
    """How many of these everybody should have soon: all but heads, which their authors tell everybody themselves."""
    changed: int
    """How many entries a newly decided floor changed (`SqlState.changes`)."""
    said: tuple[str, ...]
    """What an operator should hear."""
    withheld: tuple[bytes, ...] = ()
    """Authors whose fork is proven, and not both histories are here."""


NOTHING = Taken(0, 0, 0, ())
"""Of what was refused, or is of no use."""


class SqlNotices:
    """All notices, as one transaction sees them. Make one per transaction."""

    def __init__(self, log: SqlLog) -> None:
        self._log = log
        self._connection = log.connection
        self._charter = log.authority.charter

    # ---- what is here

    def stand(self) -> Stand:
        """What there is to tell."""
        ids = [notices.id_of_fork(author, first) for author, firsts in self._forks.items() for first in firsts]
        ids += map(notices.id_of_head, self.heads())
        ids += map(notices.id_of_votes, self._voted.values())
        floors = self._log.lines.decided_floors
        ids += map(notices.id_of_floor, floors[-1:])
        return Stand(len(floors), tuple(sorted(ids)))

    def lacked(self, theirs: Stand, bytes_max: int) -> list[Notice]:
        """What somebody with `theirs` lacks, up to `bytes_max`: proofs and heads first, then floors in their order, then votes."""
        found: list[Notice] = []
        size, have = 0, set(theirs.ids)
        for notice in self._beyond(theirs.decided, have):
            size += len(notice.raw)
            if found and size > bytes_max:
                break
            found.append(notice)
        return found

    def heads(self) -> list[SignedHead]:
        """The newest signed head of each author who ever signed one."""
        found = (read_head(raw) for raw in self._connection.execute(select(_HEAD.raw).order_by(_HEAD.author)).scalars())
        return [head for head in found if self._charter.life(head.author) is not None]

    def head(self, author: bytes) -> Optional[SignedHead]:
        """The newest signed head of `author`."""
        raw = self._connection.execute(select(_HEAD.raw).where(_HEAD.author == author)).scalar()
        return None if raw is None else read_head(raw)

    def _beyond(self, decided: int, have: Collection[bytes]) -> Iterable[Notice]:
        for author, firsts in self._forks.items():
            for first in firsts:
                if notices.id_of_fork(author, first) not in have:
                    query = select(_FORK.proof).where(_FORK.author == author, _FORK.first == first)
                    yield notices.fork_notice(self._connection.execute(query).scalar_one())
        yield from (notices.head_notice(head) for head in self.heads() if notices.id_of_head(head) not in have)
        for floor in self._log.lines.decided_floors[decided:]:
            yield notices.floor_notice([vote for vote in self._log.lines.votes(floor.number) if vote.floor == floor])
        yield from (notices.vote_notice(votes) for votes in self._voted.values() if notices.id_of_votes(votes) not in have)

    @cached_property
    def _voted(self) -> dict[AuthorId, list[Vote]]:
        """The votes that count for the floor after the newest decided one, by who gave them."""
        decided = self._log.lines.decided_floors
        ballot = Ballot(decided[-1] if decided else None, self._log.lines.votes(len(decided) + 1), 0)
        found: dict[AuthorId, list[Vote]] = {}
        for vote in ballot.votes:
            if vote.floor.term >= ballot.least(self._charter):
                found.setdefault(vote.author, []).append(vote)
        return found

    @cached_property
    def _forks(self) -> dict[bytes, list[int]]:
        """The places of which there are proofs: the first ones of each author."""
        found: dict[bytes, list[int]] = {}
        for author, first in self._connection.execute(select(_FORK.author, _FORK.first).order_by(_FORK.author, _FORK.first)):
            found.setdefault(author, []).append(first)
        return {author: firsts[:FORKS_MAX] for author, firsts in found.items()}

    # ---- what others send

    def take(self, told: Sequence[Told], me: AuthorId, now_ms: int) -> Taken:
        """Keep what is new of `told`."""
        said: list[str] = []
        withheld: list[bytes] = []
        forks = heads = 0
        for one in told:
            if isinstance(one, Fork):
                forks += self._take_fork(one, said, withheld)
            elif isinstance(one, SignedHead):
                heads += self._take_head(one, me, now_ms, said)
        votes = self._worth_keeping([one.votes for one in told if isinstance(one, notices.Votes)])
        changed = self._keep_votes(votes, said) if votes else 0
        urgent = forks + len(votes)
        return Taken(urgent + heads, urgent, changed, tuple(said), tuple(withheld))

    def _take_fork(self, fork: Fork, said: list[str], withheld: list[bytes]) -> bool:
        author, first = fork.header.author, fork.header.first
        held = self._forks.get(author, [])
        if first in held or (len(held) == FORKS_MAX and first > held[-1]):
            return False
        known = select(_FORK.first).where(_FORK.author == author, _FORK.first == first)
        if self._connection.execute(known).first() is not None:
            return False
        self._connection.execute(insert(schema.fork).values(author=author, first=first, proof=codec.encode(tuple(fork.proof))))
        self.__dict__.pop("_forks")
        beyond = select(_FORK.first).where(_FORK.author == author).order_by(_FORK.first).offset(FORKS_MAX)
        gone = self._connection.execute(beyond).scalars().all()
        self._connection.execute(delete(schema.fork).where(_FORK.author == author, _FORK.first.in_(gone)))
        hashes = [header_hash(fork.proof.header), header_hash(fork.proof.other_header)]
        here = self._connection.execute(select(func.count(_SEGMENT.hash.distinct())).where(_SEGMENT.hash.in_(hashes))).scalar_one()
        if here < len(hashes):
            withheld.append(author)
            said.append(
                f"{self._name(author)} has signed two histories from {first} on, and only {here} of them came here: the other is on "
                "its way, or somebody withholds it"
            )
        return True

    def _take_head(self, head: SignedHead, me: AuthorId, now_ms: int, said: list[str]) -> bool:
        held = self.head(head.author)
        if head.author == me and head.place.seq:
            before = recovery.read_only(self._connection, self._log.lines, me)
            reason = recovery.heard(self._connection, self._log.lines, me, [Head(head.author, *head.place)])
            if reason is not None and before is None:
                said.append(f"nothing more is published here: {reason}")
        if lease.is_ahead(head, now_ms) or (held is not None and held.order >= head.order):
            return False
        self._write_head(head)
        return True

    def _write_head(self, head: SignedHead) -> None:
        self._connection.execute(delete(schema.signed_head).where(_HEAD.author == head.author))
        self._connection.execute(insert(schema.signed_head).values(author=head.author, raw=encode_head(head)))

    def _worth_keeping(self, groups: Iterable[tuple[Vote, ...]]) -> list[Vote]:
        """Of votes that came together: those for the floor that is voted for, and those that decide it; as floors follow one another."""
        floors = self._log.lines.decided_floors
        ballot = Ballot(floors[-1] if floors else None, [vote for given in self._voted.values() for vote in given], 0)
        kept: list[Vote] = []
        for votes in sorted(groups, key=lambda votes: votes[0].floor.number):
            if votes[0].floor.number != ballot.number:
                continue
            new = [vote for vote in votes if self._counts(vote, ballot) and not any(_same(vote, other) for other in ballot.votes)]
            floor = decided([*ballot.votes, *new], self._charter, ballot.before)
            if floor is None:  # else whatever decides it is kept, however often its author voted
                places = VOTES_OF_ONE_MAX - sum(vote.author == votes[0].author for vote in ballot.votes)
                new = [vote for vote in new if vote.author == votes[0].author][: max(0, places)]
            kept += new
            ballot = ballot._replace(votes=[*ballot.votes, *new]) if floor is None else Ballot(floor, [], 0)
        return kept

    def _counts(self, vote: Vote, ballot: Ballot) -> bool:
        return vote.floor.term >= ballot.least(self._charter) and vote.author in electors(vote.floor.term, self._charter)

    def _keep_votes(self, votes: Sequence[Vote], said: list[str]) -> int:
        lines = self._log.lines
        before = len(lines.decided_floors)
        changed = self._log.vote(votes)
        self.__dict__.pop("_voted", None)
        said += [f"floor {floor.number} is decided: more than two thirds voted for it" for floor in lines.decided_floors[before:]]
        said += [
            f"{self._name(author)} has voted twice for floor {len(lines.decided_floors) + 1}; ask its operators"
            for author in {vote.author for vote in votes}
            if len(self._voted.get(author, ())) >= VOTES_OF_ONE_MAX
        ]
        return changed

    def _name(self, author: bytes) -> str:
        return self._log.authority.name(author)

    # ---- one's own

    def is_head_due(self, me: AuthorId, lease_ms: int, now_ms: int) -> bool:
        """Whether `me` should say again how far its log has come: one that goes on here (R4.6)."""
        return lease.is_due(self.head(me), self._end(me), lease_ms, now_ms) and self._log.read_only(me) is None

    def _end(self, me: AuthorId) -> Place:
        own = self._log.lines.of(me)
        return Place(own[0].last, own[0].hash) if own else Place(0, NO_HASH)

    def sign_head(self, me: AuthorId, sign: Sign, lease_ms: int, now_ms: int) -> bool:
        """Say how far one's own log has come, if that is due; tells whether it was."""
        if not self.is_head_due(me, lease_ms, now_ms):
            return False
        held, place = self.head(me), self._end(me)
        ms = now_ms
        if held is not None and not lease.is_ahead(held, now_ms):
            ms = max(now_ms, held.ms + 1)  # a clock that went back must not make this the older one
        self._write_head(sign_head(self._charter.federation, me, place, ms, sign))
        failpoint("notices-head-signed")
        return True

    def choose(self, me: Instance, interval_ms: int, now_ms: int, chosen: Optional[Floor] = None) -> Optional[Floor]:
        """What `me` would vote for now (log.voting). With `chosen`: whether it is still that, its digest not computed again."""
        usable = self._log.lines.usable_floors
        if len(usable) != len(self._log.lines.decided_floors) or self._log.read_only(me.author) is not None:
            return None
        here = SqlHere(self._log, chosen)
        before = usable[-1] if usable else None
        votes = [vote for given in self._voted.values() for vote in given]
        ballot = Ballot(before, votes, here.latest(before.heads) if before is not None else 0)
        found = voting.choose(self._charter, me, ballot, here, interval_ms, now_ms)
        if found is not None and chosen is None and voting.proposer(self._charter, found.number) == me and not self._log.is_whole():
            return None  # something is missing here: the digest would be another one at everybody else's
        return found if chosen is None or found == chosen else None

    def vote(self, me: Instance, floor: Floor, sign: Sign) -> Taken:
        """Give the vote of `me` for `floor`, as `choose` told in this transaction; nobody sees it before that is committed."""
        vote = sign_vote(self._charter.federation, me.author, floor, sign)
        said: list[str] = []
        changed = self._keep_votes([vote], said)
        failpoint("notices-vote-stored")
        return Taken(1, 1, changed, tuple(said))


def _same(one: Vote, other: Vote) -> bool:
    return one.author == other.author and one.floor == other.floor
