"""What the simulation knows and no instance does, and the promises that are checked at every step.

    signed         nobody takes a segment in an honest instance's name that it did not sign
    acknowledged   what an instance said it stored or published, it has, also after a crash
    whole          a log has no gaps, and is applied up to the end of a changeset
    causal         a changeset is applied once, after its predecessor and its deps
    seen           what an author had applied is the past of what it publishes: no less, and no more
    clock          nothing stamped more than 60 s ahead is applied, and a stamp follows the clock and what was seen
    silent         an instance signs nothing on a restored database that lacks what others have of its own log

What it keeps of an instance is what that has told, by the hashes of segments: so forks are nothing special here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Optional

from nsync.clock import AHEAD_MS_MAX
from nsync.log.floor import Floor, read_vote
from nsync.log.notices import TWICE, VOTE, Notice
from nsync.log.segment import GONE, NO_HASH, Header, Segment, Sign, decode_frame, header_hash, name_of
from nsync.log.stored import Receipt
from nsync.namespace import codec
from nsync.store.log import Applied
from nsync.testing.federation import Federation
from nsync.testing.peer import Peer, Row, Worked


class Broken(AssertionError):
    """A promise that did not hold."""


def hold(holds: bool, text: str) -> None:
    """Raises Broken with `text` unless it `holds`."""
    if not holds:
        raise Broken(text)


class Ledger:
    """One per story. `honest`: the instances that do as they should."""

    def __init__(self, federation: Federation, honest: Collection[str]) -> None:
        self.acknowledged: dict[str, set[bytes]] = defaultdict(set)
        """By instance: hashes of the segments that it said it has."""
        self.headers: dict[bytes, Header] = {}
        """By hash: every segment that anybody has stored."""
        self.published = 0
        """Changesets."""
        self.silent: set[bytes] = set()
        """Authors who may sign nothing more (R4.6): others have more of their log than their restored database, and they ask first."""
        self._honest: dict[bytes, str] = {federation.instance(name).author: name for name in honest}
        self._federation = federation
        self._signed: set[bytes] = set()
        self._lost: dict[str, set[bytes]] = defaultdict(set)
        """By instance: what it had signed, and its database did not hold after a restore."""
        self._applied: dict[str, set[bytes]] = defaultdict(set)
        self._pasts: dict[bytes, frozenset[bytes]] = {}
        self._whole: dict[bytes, Segment] = {}
        self._voted: dict[bytes, dict[int, Floor]] = defaultdict(dict)
        """By author: what it told others that it had voted for, by number."""
        self._forgotten: dict[bytes, set[Floor]] = defaultdict(set)
        """By author: the same of before a restore. It may vote once more until it hears of them, and passes them on then."""

    # ---- what happens

    def signer(self, name: str) -> Sign:
        """The key of an instance, which remembers what it signed."""
        key = self._federation.keys[name]

        def sign(purpose: str, message: bytes) -> bytes:
            self._signed.add(header_hash(message))
            return key.sign(purpose, message)

        return sign

    def learn(self, rows: Iterable[Row]) -> None:
        """Somebody has stored these segments."""
        for row in rows:
            if row.hash not in self.headers:
                hold(
                    row.author not in self._honest or row.hash in self._signed,
                    f"{_name(row.header)} was taken, and its author never signed it",
                )
                self.headers[row.hash] = row.header

    def received(self, name: str, peer: Peer, frames: Sequence[bytes], receipt: Receipt) -> None:
        """`name` has answered for a batch: if it refused nothing, it has all of it."""
        if receipt.stored:
            self.learn(peer.rows())
            self._check_whole(name, peer)
        if not receipt.rejected:
            self.acknowledged[name].update(map(_hash, frames))

    def worked(self, name: str, peer: Peer, worked: Worked, now_ms: int) -> None:
        """`name` has committed a transaction of `work`."""
        if not worked:
            return
        rows = [row for row in peer.rows() if row.is_applied and row.hash not in self._applied[name]]
        fresh = {row.hash for row in rows if row.hash not in self.headers}
        self.learn(rows)
        for changeset in self._in_order(name, worked, rows):
            header = changeset[0].header
            if header.author == peer.author and header.author in self._honest and changeset[0].hash in fresh:
                self._check_publication(name, changeset[0].hash, header, now_ms)
                self.acknowledged[name].update(row.hash for row in changeset)
            else:  # another's; or its own, which it had before a restore
                ahead_ms = changeset[-1].header.stamp.ms - now_ms
                hold(ahead_ms <= AHEAD_MS_MAX, f"{name} applies {_name(header)}, which is stamped {ahead_ms} ms ahead of its clock")
            self._applied[name].update(row.hash for row in changeset)

    def restarted(self, name: str, peer: Peer) -> None:
        """The process of `name` had ended, and begins again on what was committed."""
        rows = peer.rows()
        missing = self.acknowledged[name] - {row.hash for row in rows}
        hold(not missing, f"{name} had acknowledged {self._names(missing)}, and has lost it in a crash")
        missing = self._applied[name] - {row.hash for row in rows if row.is_applied}
        hold(not missing, f"{name} had applied {self._names(missing)}, and has not any more after a crash")
        self._check_whole(name, peer)
        kept = {(vote.author, vote.floor) for vote in peer.votes()}
        for floor in self._voted[peer.author].values():
            hold((peer.author, floor) in kept, f"{name} had told of its vote for floor {floor.number}, and has lost it in a crash")
        self._adopt(name, peer)

    def restored(self, name: str, peer: Peer, others: Sequence[Peer], hears_first: bool) -> None:
        """The database of `name` was replaced by an older one. What only the newer one held is gone for good."""
        stored = {row.hash for row in peer.rows()}
        self.acknowledged[name] &= stored
        self._lost[name] = self._signed - stored
        self.silent.discard(peer.author)
        self._forgotten[peer.author].update(self._voted.pop(peer.author, {}).values())
        if hears_first and any(row.author == peer.author and row.hash not in stored for other in others for row in other.rows()):
            self.silent.add(peer.author)
        self._adopt(name, peer)

    def _adopt(self, name: str, peer: Peer) -> None:
        self.learn(peer.rows())
        self._applied[name] = {row.hash for row in peer.rows() if row.is_applied}

    def succeeded(self, name: str, author: bytes) -> None:
        """`name` goes on as another author."""
        self._honest[author] = name

    def got_back(self, name: str, peer: Peer) -> bool:
        """Whether `name` has got back some of its own log that a restore had taken."""
        return any(row.author == peer.author and row.hash in self._lost[name] for row in peer.rows())

    def max_stamp_ms(self) -> int:
        """The latest stamp of all."""
        return max((header.stamp.ms for header in self.headers.values()), default=0)

    def keep(self, segments: Iterable[Segment]) -> None:
        """Somebody is about to let go ops of these."""
        for segment in segments:
            if not any(op[:1] == GONE for op in segment.ops):
                self._whole[segment.hash] = segment

    def whole(self, segment: Segment) -> Segment:
        """`segment` as its author signed it, whatever was let go of it."""
        return self._whole.get(segment.hash, segment)

    def told_votes(self, name: str, told: Sequence[Notice]) -> None:
        """`name` has told others of these votes; of its own it told them first, unless it had forgotten them."""
        for notice in told:
            for author, floor in _votes(notice):
                if self._honest.get(author) != name or floor in self._forgotten[author]:
                    continue
                before = self._voted[author].setdefault(floor.number, floor)
                hold(before == floor, f"{name} tells of its vote for one floor {floor.number}, and has told of another one")

    # ---- checks

    def _in_order(self, name: str, worked: Worked, rows: Sequence[Row]) -> list[list[Row]]:
        """The changesets of `worked` among `rows`, each after what it continues and names. An author who forks has several of one place."""
        by_hash = {row.hash: row for row in rows}

        def rest(index: int, applied: frozenset[bytes]) -> Optional[list[list[Row]]]:
            if index == len(worked):
                return []
            for changeset in self._changesets(worked[index], by_hash):
                needed = {changeset[0].header.prev, *(dep.hash for row in changeset for dep in row.header.deps)} - {NO_HASH}
                if changeset[-1].hash not in applied and needed <= applied:
                    after = rest(index + 1, applied | {row.hash for row in changeset})
                    if after is not None:
                        return [changeset, *after]
            return None

        found = rest(0, frozenset(self._applied[name]))
        what = ", ".join(name_of(applied.author, applied.first, applied.last) for applied in worked)
        hold(found is not None, f"{name} applies {what}, and one of it before what it continues or names, or twice")
        return found or []

    def _changesets(self, applied: Applied, rows: Mapping[bytes, Row]) -> Iterator[list[Row]]:
        """Those among `rows` that `applied` can mean."""
        for end in (row for row in rows.values() if (row.author, row.last) == (applied.author, applied.last)):
            found = [end]
            while found[0].header.prev in rows and found[0].first > applied.first:
                found.insert(0, rows[found[0].header.prev])
            if found[0].first == applied.first:
                yield found

    def _check_publication(self, name: str, hash_: bytes, header: Header, now_ms: int) -> None:
        self.published += 1
        hold(header.author not in self.silent, f"{name} signs {_name(header)}; others have more of its log than its restored database")
        past, applied = self.past(hash_), self._applied[name]
        hold(past <= applied, f"{name} signs {_name(header)}, and names {self._names(past - applied)}, which it has not applied")
        hold(past >= applied, f"{name} signs {_name(header)}, and has applied {self._names(applied - past)}, which that does not name")
        highest = max([now_ms, *(self.headers[hash_].stamp.ms for hash_ in applied)])
        hold(header.stamp.ms <= highest + 1, f"{name} stamps {_name(header)} {header.stamp.ms}; its clock and what it saw say {highest}")

    def _check_whole(self, name: str, peer: Peer) -> None:
        rows = {row.hash: row for row in peer.rows()}
        for row in rows.values():
            before = rows.get(row.header.prev)
            what = f"{name}'s copy of {name_of(row.author, row.first, row.last)}"
            hold(before is not None or row.first == 1, f"{what} continues a segment that is not there")
            hold(before is None or before.last + 1 == row.first, f"{what} does not begin where its predecessor ends")
        for head in peer.applied_heads():
            hold(
                rows[head.hash].header.commit,
                f"{name} has applied up to the middle of a changeset: {name_of(head.author, head.seq, head.seq)}",
            )

    # ---- pasts

    def past(self, hash_: bytes) -> frozenset[bytes]:
        """The hashes of all that a segment had seen: its own log before it, and the closure over its deps."""
        if hash_ not in self._pasts:
            header = self.headers[hash_]
            before = [header.prev] if header.prev != NO_HASH else []
            named = [*before, *(dep.hash for dep in header.deps)]
            self._pasts[hash_] = frozenset(named).union(*map(self.past, named))
        return self._pasts[hash_]

    def _names(self, hashes: Collection[bytes]) -> str:
        return ", ".join(sorted(_name(self.headers[hash_]) for hash_ in hashes))


@lru_cache(maxsize=4096)
def _hash(frame: bytes) -> bytes:
    return decode_frame(frame).hash


def _votes(notice: Notice) -> list[tuple[bytes, Floor]]:
    raws = [notice.raw] if notice.kind == VOTE else codec.load(notice.raw) if notice.kind == TWICE else ()
    return [(vote.author, vote.floor) for vote in map(read_vote, raws)]


def _name(header: Header) -> str:
    return name_of(header.author, header.first, header.last)
