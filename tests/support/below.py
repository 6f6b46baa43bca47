"""Instances whose logs lie below a floor, some of them with ops missing there, and repair between two of them as bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, TypeVar

from nsync.authority.charter import Charter, Place
from nsync.authority.effective import Authority
from nsync.catalogue.writer import Writer
from nsync.log.floor import Floor, sign_vote
from nsync.log.repair import Found
from nsync.log.segment import Dep, Segment, gone
from nsync.log.stored import Head, Receipt, StoredSegment
from nsync.namespace import fields
from nsync.namespace.fields import Identity
from nsync.namespace.keys import Attachment, Attribute, Did, Replica, Rse, Scope
from nsync.namespace.ops import VERBS, Assert, Grant, Retract, Statement, encode_grant, encode_op
from nsync.store.database import create_tables, open_store, writing
from nsync.store.log import SqlLog
from nsync.store.repair import Repairs
from nsync.transport import repair
from nsync.transport.repair import Ask, Look, RepairLog
from tests.support.database import receive
from tests.support.federation import AUTHOR, AUTHORITY, CHARTER, KEYS, NAMES
from tests.support.notary import Notaries

T = TypeVar("T")

NOW_MS = 1_800_000_000_000


def history(rng: random.Random, changesets: int = 20, files: int = 40, charter: Charter = CHARTER) -> list[Segment]:
    """What three instances say about some files, again and again: much of it is superseded in the end."""
    writers = {name: Writer(charter, name, KEYS[name].sign, 1_700_000_000_000) for name in NAMES}
    home = writers["atlas"]
    home.publish([encode_op([Assert(Scope("atlas"), True)]), encode_op([Assert(Did("atlas", "set"), Identity(fields.DATASET))])])
    home.publish([encode_grant(Grant(name, "atlas", "", VERBS, None)) for name in NAMES[1:]])
    for _ in range(changesets):
        name = rng.choice(NAMES)
        writer = writers[name]
        for other in rng.sample(NAMES, 2):
            writer.hear(writers[other].log)
        writer.publish([encode_op([_statement(rng, name, files)]) for _ in range(rng.randint(1, 12))])
    for name in NAMES[1:]:
        home.hear(writers[name].log)
    home.publish([encode_op([Assert(Attribute(Did("atlas", "set"), "project"), "open")])])
    return home.log


def _statement(rng: random.Random, name: str, files: int) -> Statement:
    file = Did("atlas", f"f{rng.randrange(files)}")
    key, value = rng.choice(
        [
            (file, Identity(fields.FILE, 1, bytes(4), None)),
            (Attachment(Did("atlas", "set"), file), True),
            (Attribute(file, "datatype"), rng.choice(["RAW", "AOD"])),
            (Replica(file, Rse(name, "DISK")), "p/1"),
        ]
    )
    return Retract(key) if rng.random() < 0.2 else Assert(key, value)


class Below(Notaries):
    """One instance with what it can say and do about repair."""

    def __init__(
        self,
        name: str,
        segments: Sequence[Segment],
        floor: Optional[Floor],
        path: Optional[Path] = None,
        authority: Authority = AUTHORITY,
    ) -> None:
        super().__init__(authority, name, KEYS[name].sign, NOW_MS)
        if path is not None:
            self.engine = open_store(f"sqlite:///{path}")
            create_tables(self.engine)
        self.repairs = Repairs(self, lambda: self.now_ms)
        if floor is not None:
            self.vote(floor)
        self.store(*segments)
        if floor is not None:
            self.compact()

    def vote(self, floor: Floor) -> None:
        """Everybody has voted for it."""
        votes = [sign_vote(self.authority.charter.federation, AUTHOR[name], floor, KEYS[name].sign) for name in NAMES]
        with writing(self.engine) as connection:
            SqlLog(connection, self.authority).vote(votes)

    # ---- transport's SegmentLog

    def _ask(self, ask: Callable[[SqlLog], T]) -> T:
        with self.engine.connect() as connection:
            return ask(SqlLog(connection, self.authority))

    def heads(self) -> list[Head]:
        return self._ask(lambda log: log.stored_heads())

    def unknown(self, theirs: Collection[Head]) -> list[Head]:
        return self._ask(lambda log: log.unknown(theirs))

    def locator(self, author: bytes) -> list[Place]:
        return self._ask(lambda log: log.locator(author))

    def segments_after(self, have: Mapping[bytes, Sequence[Place]], bytes_max: int) -> list[StoredSegment]:
        return self._ask(lambda log: log.segments_after(have, bytes_max))

    def receive(self, frames: Sequence[bytes], sender: str) -> Receipt:
        return receive(self.engine, list(frames), self.authority)


def agreed(segments: Sequence[Segment], authority: Authority = AUTHORITY) -> Floor:
    """All of `segments` as a floor, its digest computed by somebody who has everything."""
    heads = {one.header.author: Dep(one.header.author, one.header.last, one.hash) for one in segments}
    whole = Below("atlas", segments, None, authority=authority)
    with whole.engine.connect() as connection:
        live = SqlLog(connection, authority).live_of({author: head.seq for author, head in heads.items()})
    whole.engine.dispose()
    return Floor(1, 1, tuple(sorted(heads.values())), live)


def without(segments: Sequence[Segment], rng: random.Random, share: float) -> tuple[list[Segment], int]:
    """`segments` with hashes in the place of some of the ops that are there; and how many those are."""
    found, count = [], 0
    for segment in segments:
        ops = tuple(gone(op) if op[:1] != b"\xc1" and rng.random() < share else op for op in segment.ops)
        count += sum(one != other for one, other in zip(ops, segment.ops))
        found.append(segment._replace(ops=ops))
    return found, count


Answer = Callable[[str, bytes], bytes]


def honest(log: RepairLog) -> Answer:
    """How an honest peer answers."""
    return lambda verb, body: b"".join(repair.answer(log, verb, body))


def run(mine: Repairs, answer: Answer, sender: str = "peer") -> tuple[Optional[Found], list[str]]:
    """A repair as bytes; what came of it, and what was asked. Raises ProtocolError as the shell does."""
    damage = mine.damage()
    if damage is None:
        return None, []
    course, asked = repair.repair(damage), []
    said: Any = None
    try:
        while True:
            step = course.send(said)
            if isinstance(step, Ask):
                asked.append(step.verb)
                said = answer(step.verb, step.body)
                assert len(said) <= step.bytes_max
            elif isinstance(step, Look):
                said = mine.bitmaps(damage.floor, step.blocks)
            else:
                mended = mine.mend(damage.floor, step.numbers, step.ops, sender)
                if mended.refused:
                    raise repair.ProtocolError(mended.refused[0])
                said = mended.taken
    except StopIteration as end:
        mine.repaired(damage.floor, sender, end.value)
        return end.value, asked
