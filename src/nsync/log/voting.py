"""Who proposes a floor, and who votes for what (R4.8). Pure: what is here is told by `Here`, time by whoever calls.

Number n has one proposer in each term: of the electors of that version of the charter, in its order, the one at (n - 1) mod M. Its vote
is the proposal. Everybody else votes for that and nothing else, once it sees for itself that the proposal is right; else it waits. A
vote is given once and never again, so two honest votes for one number never differ, unless the proposer signed two proposals: then
whoever has seen both gives none. While an amendment spreads two terms may have a proposal each; whoever has seen both votes for the
newer one. Should neither be decided, an amendment lets all vote anew (`Charter.revote_after`).

A right proposal, seen from here:

    each head is the end of a changeset that is applied here, on the line of its log that stands
    together they hold the floor before, and all that they have seen themselves
    nothing that is void here would count by it: else a guest's late words would outlive the revocation of its right
    what is live below them has the digest that the proposer signed

A proposer that is away, or proposes what is not right, delays that floor and nothing else; once it has retired another one proposes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, Optional, Protocol

from nsync.authority.charter import Charter, Instance
from nsync.log.floor import HEADS_MAX, Floor, Vote, electors, grows
from nsync.log.segment import Dep

PROPOSAL_AGE_MS_MAX = 300_000
"""Proposed is what was signed this long ago: by then everybody has it, and can vote at once."""


class Here(Protocol):
    """What an instance asks of its own log."""

    def heads_before(self, ms: int) -> list[Dep]:
        """Of each log the last end of a changeset on its standing line that is applied here and stamped at or before `ms`."""

    def is_right(self, heads: Iterable[Dep]) -> bool:
        """Whether the heads are such as an honest proposer proposes, their digest left aside."""

    def live(self, heads: Mapping[bytes, int]) -> bytes:
        """The digest of what is live below `heads` once they are a floor."""


class Ballot(NamedTuple):
    """What stands about the floor that is voted for."""

    before: Optional[Floor]
    """The newest floor that is decided and in force here."""
    votes: Collection[Vote]
    """For the number after it."""
    before_ms: int
    """The latest stamp below the floor before; 0 without one."""

    @property
    def number(self) -> int:
        return 1 if self.before is None else self.before.number + 1

    def least(self, charter: Charter) -> int:
        """The first term whose floors of that number count."""
        return max(charter.revoted(self.number), 1 if self.before is None else self.before.term)


def proposer(charter: Charter, number: int) -> Optional[Instance]:
    """Who proposes floor `number` in the term of `charter`."""
    electors = list(charter.electors().values())
    return electors[(number - 1) % len(electors)] if electors else None


def choose(charter: Charter, me: Instance, ballot: Ballot, here: Here, interval_ms: int, now_ms: int) -> Optional[Floor]:
    """What `me` votes for now, if anything. Whoever calls signs it, and stores the vote before anybody sees it.

    `interval_ms`: between two floors, if it is the proposer; 0 when it proposes none.
    """
    if charter.electors().get(me.member) != me or ballot.number >= 1 << 32:
        return None
    ours = {life.author for instance in charter.instances if instance.member == me.member for life in instance.incarnations}
    if any(vote.author in ours and vote.floor.term >= charter.revoted(ballot.number) for vote in ballot.votes):
        return None  # one vote a number, whichever life of whichever instance gave it
    answer = _answer(charter, me, ballot, here)
    is_mine = answer is None and proposer(charter, ballot.number) == me
    if is_mine and interval_ms and now_ms - ballot.before_ms >= interval_ms:
        return _proposal(charter, ballot, here, interval_ms, now_ms)
    return answer


def _proposal(charter: Charter, ballot: Ballot, here: Here, interval_ms: int, now_ms: int) -> Optional[Floor]:
    """What was signed some time ago, if that is more than the floor before."""
    found = {head.author: head for head in here.heads_before(now_ms - min(PROPOSAL_AGE_MS_MAX, interval_ms // 2))}
    for head in ballot.before.heads if ballot.before is not None else ():
        if head.author not in found or found[head.author].seq < head.seq:
            found[head.author] = head
    heads = tuple(sorted(found.values()))
    if not heads or len(heads) > HEADS_MAX or (ballot.before is not None and heads == ballot.before.heads) or not here.is_right(heads):
        return None
    return Floor(ballot.number, charter.version, heads, here.live(_seqs(heads)))


def _answer(charter: Charter, me: Instance, ballot: Ballot, here: Here) -> Optional[Floor]:
    """The proposal of the newest term that has one, if it is one only, and right."""
    proposals = _proposals(charter, ballot)
    if len(proposals) != 1:
        return None
    (floor,) = proposals
    if floor.number != ballot.number or not floor.heads or me.author not in electors(floor.term, charter):
        return None
    if (ballot.before is not None and not grows(ballot.before, floor)) or not here.is_right(floor.heads):
        return None
    return floor if here.live(_seqs(floor.heads)) == floor.live else None


def _proposals(charter: Charter, ballot: Ballot) -> set[Floor]:
    for version in charter.versions():
        known = proposer(version, ballot.number)
        instance = charter.by_name(known.name) if known is not None and version.version >= ballot.least(charter) else None
        lives = {life.author for life in instance.incarnations} if instance is not None else set()
        found = {vote.floor for vote in ballot.votes if vote.floor.term == version.version and vote.author in lives}
        if found:
            return found
    return set()


def _seqs(heads: Iterable[Dep]) -> dict[bytes, int]:
    return {head.author: head.seq for head in heads}
