"""What the simulation knows and no instance does, and the promises that are checked at every step.

    signed         nobody takes a segment in an honest instance's name that it did not sign
    acknowledged   what an instance said it stored or published, it has, also after a crash
    whole          after a crash each log's head is the last applied segment, and that one ends a changeset
    causal         a changeset is applied once, after its predecessor and its deps
    seen           what an author had applied is the past of what it publishes: no less, and no more
    clock          nothing stamped more than 60 s ahead is applied, and a stamp follows the clock and what was seen

The heads that the ledger keeps are its own: those that an instance's answers imply.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from nsync.clock import AHEAD_MS_MAX
from nsync.log.segment import NO_HASH, Header, Sign, decode_frame, header_hash, name_of
from nsync.log.stored import Receipt
from nsync.store.log import Applied
from nsync.testing.federation import Federation
from nsync.testing.peer import Peer, Row, Worked

Heads = dict[bytes, int]
"""How far each author's log goes."""


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
        self._federation = federation
        self._honest = {federation.instance(name).author: name for name in honest}
        self._signed: set[bytes] = set()
        self._heads: dict[str, Heads] = defaultdict(dict)
        self._hashes: dict[bytes, bytes] = {}
        self._ends: dict[tuple[bytes, int], list[bytes]] = defaultdict(list)
        self._own_log_reached: dict[str, int] = {}

    # ---- what happens

    def signer(self, name: str) -> Sign:
        """The key of an instance, which remembers what it signed."""
        key = self._federation.keys[name]

        def sign(purpose: str, message: bytes) -> bytes:
            self._signed.add(header_hash(message))
            return key.sign(purpose, message)

        return sign

    def learn(self, frame: bytes) -> bytes:
        """The hash of a segment that somebody has stored."""
        if frame not in self._hashes:
            segment = decode_frame(frame)
            header, hash_ = segment.header, segment.hash
            hold(header.author not in self._honest or hash_ in self._signed, f"{_name(header)} was taken, and its author never signed it")
            self._hashes[frame], self.headers[hash_] = hash_, header
            self._ends[header.author, header.last].append(hash_)
        return self._hashes[frame]

    def received(self, name: str, frames: Sequence[bytes], receipt: Receipt) -> None:
        """`name` has answered for a batch: if it refused nothing, it has all of it."""
        if not receipt.rejected:
            self.acknowledged[name].update(self.learn(frame) for frame in frames)

    def worked(self, name: str, peer: Peer, worked: Worked, now_ms: int) -> None:
        """`name` has committed a transaction of `work`."""
        for applied in worked:
            frames = peer.frames(applied)
            fresh = not self._hashes.keys() >= {*frames}
            hashes = [self.learn(frame) for frame in frames]
            if applied.author == peer.author and applied.author in self._honest and fresh:
                self._check_publication(name, hashes, now_ms)
            else:  # another's; or its own, which it had before a restore
                self._check_application(name, applied, hashes, now_ms)
            self._heads[name][applied.author] = applied.last

    def restarted(self, name: str, peer: Peer) -> None:
        """The process of `name` had ended, and begins again on what was committed."""
        rows = peer.rows()
        missing = self.acknowledged[name] - {row.hash for row in rows}
        hold(not missing, f"{name} had acknowledged {self._names(missing)}, and has lost it in a crash")
        heads = peer.applied()
        for author, seq in self._heads[name].items():
            hold(heads.get(author, (0,))[0] >= seq, f"{name} had applied {name_of(author, 1, seq)}, and has lost it in a crash")
        self._check_whole(name, rows, heads)
        self._adopt(name, peer)

    def restored(self, name: str, peer: Peer, others: Sequence[Peer]) -> None:
        """The database of `name` was replaced by an older one. What only the newer one held is gone for good."""
        self.acknowledged[name] &= {row.hash for row in peer.rows()}
        self._own_log_reached[name] = max((head.seq for other in others for head in other.heads() if head.author == peer.author), default=0)
        self._adopt(name, peer)

    def _adopt(self, name: str, peer: Peer) -> None:
        for row in peer.rows():
            self.learn(row.frame)
        self._heads[name] = {author: seq for author, (seq, _) in peer.applied().items()}

    def has_own_log(self, name: str, peer: Peer) -> bool:
        """Whether `name` has, after a restore, all of its own log that anybody else had then."""
        reached = self._own_log_reached.get(name, 0)
        return reached == 0 or any(head.seq >= reached for head in peer.heads() if head.author == peer.author)

    def max_stamp_ms(self) -> int:
        """The latest stamp of all."""
        return max((header.stamp.ms for header in self.headers.values()), default=0)

    # ---- checks

    def _check_publication(self, name: str, hashes: Sequence[bytes], now_ms: int) -> None:
        self.acknowledged[name].update(hashes)
        self.published += 1
        header, heads = self.headers[hashes[0]], self._heads[name]
        past = self.past(hashes[0])
        hold(past == heads, f"{name} signs {_name(header)} with the past {_short(past)}; it has applied {_short(heads)}")
        highest = max([now_ms, *(h.stamp.ms for a, seq in heads.items() for h in self._ending(a, seq))])
        hold(header.stamp.ms <= highest + 1, f"{name} stamps {_name(header)} {header.stamp.ms}; its clock and what it saw say {highest}")

    def _check_application(self, name: str, applied: Applied, hashes: Sequence[bytes], now_ms: int) -> None:
        heads = self._heads[name]
        what = f"{name} applies {name_of(applied.author, applied.first, applied.last)}"
        before = heads.get(applied.author, 0)
        hold(applied.first == before + 1, f"{what}, and the log that it had applied ended at {before}")
        for header in (self.headers[hash_] for hash_ in hashes):
            ahead_ms = header.stamp.ms - now_ms
            hold(ahead_ms <= AHEAD_MS_MAX, f"{what}, which is stamped {ahead_ms} ms ahead of its clock")
            for dep in header.deps:
                hold(heads.get(dep.author, 0) >= dep.seq, f"{what} before its dep {name_of(dep.author, 1, dep.seq)}")

    def _check_whole(self, name: str, rows: Sequence[Row], heads: Mapping[bytes, tuple[int, bytes]]) -> None:
        for author in sorted({row.author for row in rows}):
            log = [row for row in rows if row.author == author]
            applied = [row for row in log if row.is_applied]
            if len({row.first for row in log}) < len(log):
                continue  # a fork: which branch counts is not for this check to say
            what = f"{name}'s copy of the log of {author.hex()[:12]}"
            hold([row.first for row in log] == [1, *(row.last + 1 for row in log[:-1])], f"{what} has gaps")
            hold(applied == log[: len(applied)], f"{what} is applied with gaps")
            end = (applied[-1].last, applied[-1].hash) if applied else None
            hold(heads.get(author) == end, f"{what} has its head at {heads.get(author)}, and is applied up to {end}")
            hold(not applied or applied[-1].commits, f"{what} is applied up to the middle of a changeset, {end}")

    # ---- pasts

    def past(self, hash_: bytes) -> Heads:
        """How far the past of a segment reaches in each log: its own log before it, and the closure over its deps."""
        past: Heads = {}
        todo, done = [hash_], {hash_}
        while todo:
            header = self.headers[todo.pop()]
            if header.first > 1:
                past[header.author] = max(past.get(header.author, 0), header.first - 1)
            for author, seq, _ in header.deps:
                past[author] = max(past.get(author, 0), seq)
            before = [header.prev] if header.prev != NO_HASH else []
            fresh = [h for h in (*before, *(dep.hash for dep in header.deps)) if h not in done]
            done.update(fresh)
            todo += fresh
        return past

    def _ending(self, author: bytes, seq: int) -> Iterator[Header]:
        """The headers of the segments that end there: one, unless the author has forked."""
        return (self.headers[hash_] for hash_ in self._ends.get((author, seq), ()))

    def _names(self, hashes: Collection[bytes]) -> str:
        return ", ".join(sorted(_name(self.headers[hash_]) for hash_ in hashes))


def _name(header: Header) -> str:
    return name_of(header.author, header.first, header.last)


def _short(heads: Mapping[bytes, int]) -> str:
    return "{" + ", ".join(f"{author.hex()[:12]} {seq}" for author, seq in sorted(heads.items())) + "}"
