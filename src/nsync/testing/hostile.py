"""A hostile instance: it has a valid key and a database like everybody, and lies in every way that the dice let it.

Asked, it announces heads that it does not have, leaves out or damages segments, and ops of them. Of its own accord it pushes what no
honest author makes. What is stored of that is in its own log first, so that it does not fork by mistake.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Optional

from nsync.authority.charter import AuthorId, Place
from nsync.clock import Stamp, next_stamp
from nsync.errors import NsyncError
from nsync.log.floor import Floor, sign_vote
from nsync.log.lease import sign_head
from nsync.log.notices import Notice, Stand, head_notice, vote_notice
from nsync.log.segment import EMPTY, GONE, Dep, Tip, build_changeset, decode_frame, gone
from nsync.log.stored import Head, StoredSegment
from nsync.testing.host import Host
from nsync.testing.network import Crash
from nsync.testing.stage import Stage
from nsync.testing.workload import Workload
from nsync.transport.notices import Word

BACKDATED_MS = (1, 1000, 86_400_000)


class HostileHost(Host):
    """An instance that nobody can rely on."""

    def __init__(self, stage: Stage, name: str, workload: Workload) -> None:
        super().__init__(stage, name)
        self._workload = workload
        self._lies = stage.rng("lies", name)

    # ---- when asked

    def heads(self) -> list[Head]:
        heads = super().heads()
        if heads and self._stage.dice.strike("lying-heads"):
            index = self._lies.randrange(len(heads))
            seq = max(1, heads[index].seq + self._lies.randint(-2, 4))
            lie = [heads[index]._replace(seq=seq, hash=self._lies.randbytes(16))] if self._lies.randrange(4) else []
            heads[index : index + 1] = lie
        return heads

    def segments_after(self, have: Mapping[bytes, Sequence[Place]], bytes_max: int) -> list[StoredSegment]:
        segments = super().segments_after(have, bytes_max)
        if segments and self._stage.dice.strike("withholding"):
            withheld = self._lies.choice(segments).author
            segments = [segment for segment in segments if segment.author != withheld]
        floors = self.peer.floors()
        below = [floors != [] and segment.last <= floors[-1].seq(segment.author) for segment in segments]
        if any(below) and self._stage.dice.strike("wrong-gone"):
            hollow = [segment._replace(frame=self._hollow(segment.frame)) for segment in segments]
            segments = [other if is_below else one for one, other, is_below in zip(segments, hollow, below)]
        if segments and self._stage.dice.strike("garbage"):
            index = self._lies.randrange(len(segments))
            segments[index] = segments[index]._replace(frame=self._damaged(segments[index].frame))
        return segments

    def bitmaps(self, floor: int, blocks: Sequence[int]) -> Optional[list[bytes]]:
        found = super().bitmaps(floor, blocks)
        lies = found and self._stage.dice.strike("wrong-gone")
        return [bytes(bits & self._lies.getrandbits(8) for bits in bitmap) for bitmap in found] if found and lies else found

    def ops(self, floor: int, numbers: Sequence[int], bytes_max: int) -> Optional[list[bytes]]:
        found = super().ops(floor, numbers, bytes_max)
        return [gone(op) for op in found] if found and self._stage.dice.strike("wrong-gone") else found

    # ---- of its own accord

    def attack(self, kind: str) -> None:
        """Push something of this kind to some peers."""
        if not self.up:
            return
        self._stage.dice.counts[kind] += 1
        self._stage.trace.say(f"{self.name} attacks: {kind}")
        others = [name for name in self._stage.network.hosts if name != self.name]
        victims = self._lies.sample(others, self._lies.randint(1, len(others)))
        if kind in ("double-vote", "false-head"):
            told = self._double_vote() if kind == "double-vote" else self._false_head()
            for index, victim in enumerate(victims):
                asyncio.ensure_future(self._tell(victim, told[index % len(told)])).add_done_callback(self._stage.ended)
            return
        with suppress(Crash):
            frames = getattr(self, "_" + kind.replace("-", "_"))()
            for index, victim in enumerate(victims):
                shown = frames[index % len(frames) :][:1] if kind == "fork" else frames
                asyncio.ensure_future(self._push(victim, shown)).add_done_callback(self._stage.ended)

    async def _push(self, victim: str, frames: Sequence[bytes]) -> None:
        with suppress(NsyncError):
            await self.client(victim).push(frames)

    async def _tell(self, victim: str, notice: Notice) -> None:
        with suppress(NsyncError):
            await self.client(victim).notices(Word(Stand(0, ()), (notice,)))

    def _double_vote(self) -> list[Notice]:
        """For what it has applied, and for a part of it under a digest that is not right."""
        federation, sign = self._stage.federation.charter.federation, self._stage.federation.keys[self.name].sign
        number, ends, live = (
            len(self.peer.floors()) + 1,
            {head.author: head for head in self.peer.applied_heads()},
            self._lies.randbytes(16),
        )
        term, heads = self._stage.federation.charter.version, tuple(sorted(ends.values()))
        floors = [Floor(number, term, heads, live), Floor(number, term, heads[1:], live)]
        return [vote_notice([sign_vote(federation, self.me.author, floor, sign)]) for floor in floors]

    def _false_head(self) -> list[Notice]:
        """In the name of an honest instance, beyond its log; and beyond its own."""
        federation, sign = self._stage.federation.charter.federation, self._stage.federation.keys[self.name].sign
        other = self._stage.federation.instance(self._lies.choice([name for name in self._stage.network.hosts if name != self.name]))
        place = Place(self._lies.randint(1, 99), self._lies.randbytes(16))
        return [head_notice(sign_head(federation, author, place, self.now_ms(), sign)) for author in (other.author, self.me.author)]

    def _backdating(self) -> list[bytes]:
        """Stamped before its predecessor, or not after what it names."""
        tip = self._tip()
        later = [dep for dep, stamp in self._ends() if stamp > tip.stamp]
        if later and self._lies.randrange(2):
            return self._stored(self._segment(tip, Stamp(tip.stamp.ms, tip.stamp.logical + 1), [self._lies.choice(later)]))
        return [self._segment(tip, Stamp(max(0, tip.stamp.ms - self._lies.choice(BACKDATED_MS)), 0), [])]

    def _wrong_deps(self) -> list[bytes]:
        """Its own log, a hash or a place that does not exist, or what it had named before."""
        tip, ends = self._tip(), self._ends()
        lies = [Dep(self.me.author, tip.seq, tip.hash)] if tip.seq else []
        if ends:
            dep = self._lies.choice(ends)[0]
            lies += [dep._replace(hash=self._lies.randbytes(16)), dep._replace(seq=dep.seq + self._lies.randint(1, 3)), dep]
        stamp = next_stamp(self.now_ms(), [tip.stamp, *(stamp for _, stamp in ends)])
        return self._stored(self._segment(tip, stamp, [self._lies.choice(lies)] if lies else []))

    def _forgery(self) -> list[bytes]:
        """In the name of an honest instance, continuing its log, signed with the wrong key."""
        names = [name for name in self._stage.network.hosts if name != self.name]
        author = self._stage.federation.instance(self._lies.choice(names)).author
        tip = self._tip(author)
        return [self._segment(tip, next_stamp(self.now_ms(), [tip.stamp]), [], author)]

    def _garbage(self) -> list[bytes]:
        """Bytes, and segments with a bit turned or the end cut off."""
        frames = [segment.frame for segment in self.peer.segments()[-3:]]
        return [self._lies.randbytes(self._lies.randint(64, 300)), *map(self._damaged, frames)]

    def _fork(self) -> list[bytes]:
        """Two segments for one place of its log."""
        tip = self._tip()
        stamp = next_stamp(self.now_ms(), [tip.stamp])
        first, second = (self._segment(tip, stamp, []) for _ in range(2))
        return [*self._stored(first), second]

    def _wrong_gone(self) -> list[bytes]:
        """All that it has, without ops that are there: below a floor whoever lacks it fetches them, elsewhere nobody takes it."""
        return [self._hollow(segment.frame) for segment in self.peer.segments()]

    # ---- tools

    def _hollow(self, frame: bytes) -> bytes:
        """The segment in which some ops, it says, are gone."""
        segment = decode_frame(frame)
        return segment._replace(ops=tuple(gone(op) if op[:1] != GONE and self._lies.randrange(2) else op for op in segment.ops)).frame

    def _segment(self, tip: Tip, stamp: Stamp, deps: Sequence[Dep], author: Optional[AuthorId] = None) -> bytes:
        charter = self._stage.federation.charter
        (segment,) = build_changeset(
            [self._workload.op(self.name)],
            federation=charter.federation,
            charter_version=charter.version,
            author=author or self.me.author,
            tip=tip,
            stamp=stamp,
            deps=deps,
            sign=self._stage.federation.keys[self.name].sign,
        )
        return segment.frame

    def _stored(self, frame: bytes) -> list[bytes]:
        """Put it into its own log first."""
        self.receive([frame], self.name)
        self.wake()
        return [frame]

    def _tip(self, author: Optional[AuthorId] = None) -> Tip:
        rows = [row for row in self.peer.rows() if row.author == (author or self.me.author)]
        return Tip(rows[-1].last, rows[-1].hash, rows[-1].header.stamp, 0) if rows else EMPTY

    def _ends(self) -> list[tuple[Dep, Stamp]]:
        """Of the other logs that it has applied, the last segments."""
        rows = {row.author: row for row in self.peer.rows() if row.is_applied and row.author != self.me.author}
        return [(Dep(AuthorId(row.author), row.last, row.hash), row.header.stamp) for row in rows.values()]

    def _damaged(self, frame: bytes) -> bytes:
        if self._lies.randrange(2):
            return frame[: self._lies.randint(64, len(frame) - 1)]
        place = self._lies.randrange(len(frame))
        return frame[:place] + bytes([frame[place] ^ 1 << self._lies.randrange(8)]) + frame[place + 1 :]
