"""Repair below the newest floor in SQL: what differs there from what its signers signed, what peers ask about it, and what they bring.

Below a floor a segment may have come with hashes in the place of ops. Whether all that is live is here, one digest tells, once
everything below the floor is applied and compacted. Until it is right the instance says so, and asks its peers (transport.repair).

An op goes where its hash stands, and nowhere else; it is indexed as if it had come with its segment, and in the same transaction the
catalogue is brought up to date, and what it supersedes goes. Nothing goes on a peer's word.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Callable, NamedTuple, Optional

from sqlalchemy import bindparam, delete, func, select, update

from nsync import metrics
from nsync.crdt import Dot
from nsync.errors import RejectedSegment
from nsync.failpoints import failpoint
from nsync.log.compaction import live_digest
from nsync.log.floor import Floor
from nsync.log.forks import Mark
from nsync.log.repair import BITMAP_BYTES, Damage, Found, Mended, Numbered
from nsync.log.segment import GONE, Header, decode_header, gone, leaf_of
from nsync.log.stored import refusals
from nsync.namespace import codec
from nsync.namespace.ops import GRANT_KIND, STATEMENTS_KIND, stored_op, wire_op
from nsync.store import kept, live, schema
from nsync.store.compaction import Stretch, forget_blocks, is_compact
from nsync.store.database import chunks, is_among
from nsync.store.log import SqlLog
from nsync.store.notary import Ground

LOG = logging.getLogger(__name__)

_OP, _SEGMENT = schema.op.c, schema.segment.c


class Repairs:
    """One instance's (transport.repair.RepairLog). Every method is synchronous: call them off the event loop."""

    def __init__(self, ground: Ground, now_ms: Callable[[], int]) -> None:
        self._ground, self._now_ms = ground, now_ms

    # ---- what is wrong here

    def damage(self) -> Optional[Damage]:
        """What differs below the newest floor from what its signers signed; None where nothing does, or it cannot be told yet."""
        with self._ground.engine.connect() as connection:
            log = SqlLog(connection, self._ground.authority)
            floor = _comparable(log)
            before = live.noted(connection)
            if floor is None or before == (floor.number, ""):
                return None
            digests = _digests(log, floor)
            right = live_digest(digests) == floor.live
        if right:
            self._note(floor.number, "")
            return None
        if before is None or before[0] != floor.number:
            self._note(floor.number, "no peer could be asked yet")
        return Damage(floor.number, tuple(digest for head in floor.heads for digest in digests[head.author]))

    def repaired(self, floor: int, sender: str, found: Found) -> None:
        """Look again after a repair with `sender`, and keep what still differs."""
        if self.damage() is not None and found.differing is not None:
            blocks = f"{len(found.differing)} blocks differ from those of {sender}" if found.differing else f"{sender} has the same"
            self._note(floor, f"{blocks}, which brought {found.mended} ops")

    def _note(self, floor: int, text: str) -> None:
        """Keep it, and say it when it is new."""
        with self._ground.opened(self._now_ms()) as (log, _, _):
            before = live.noted(log.connection)
            if before != (floor, text):
                kept.write(log.connection, live.KEPT, codec.encode((floor, text)))
        metrics.DIFFERS_BELOW_FLOOR.set(bool(text))
        if text and before != (floor, text):
            LOG.error("%s", sentence(floor, text))
        elif before is not None and before[1] and not text:
            LOG.info("what is live here below floor %d is what its signers signed", floor)

    # ---- what peers ask

    def digests(self, floor: int) -> Optional[list[bytes]]:
        """The digests of all blocks of `floor`; None unless it is the newest floor here, and everything is compacted."""
        with self._ground.engine.connect() as connection:
            log = SqlLog(connection, self._ground.authority)
            held = _comparable(log)
            if held is None or held.number != floor:
                return None
            found = _digests(log, held)
            return [digest for head in held.heads for digest in found[head.author]]

    def bitmaps(self, floor: int, blocks: Sequence[int]) -> Optional[list[bytes]]:
        """Which ops of these blocks are live here; None as in `digests`."""
        with self._ground.engine.connect() as connection:
            log = SqlLog(connection, self._ground.authority)
            held = _comparable(log)
            if held is None or held.number != floor:
                return None
            numbered = Numbered(held)
            return [_bitmap(log, *numbered.block(block)) for block in blocks]

    def ops(self, floor: int, numbers: Sequence[int], bytes_max: int) -> Optional[list[bytes]]:
        """The ops with these numbers, at least one, then up to `bytes_max`; empty ones for those that are not here; None as above."""
        with self._ground.engine.connect() as connection:
            log = SqlLog(connection, self._ground.authority)
            held = _comparable(log)
            if held is None or held.number != floor:
                return None
            numbered, size = Numbered(held), 0
            found: list[bytes] = []
            for chunk in chunks(numbers):
                for raw in _raws(log, [numbered.op(number) for number in chunk]):
                    size += len(raw)
                    if found and size > bytes_max:
                        return found
                    found.append(b"" if raw[:1] == GONE else raw)
            return found

    # ---- what they bring

    def mend(self, floor: int, numbers: Sequence[int], ops: Sequence[bytes], sender: str) -> Mended:
        """Put those of `ops` that are missing here in their places; it is durable when this returns."""
        with self._ground.opened(self._now_ms()) as (log, shows, show):
            held = _comparable(log)
            if held is None or held.number != floor or not shows:
                return Mended(0, ())
            numbered = Numbered(held)
            mending = Mending(log, held)
            refused = mending.choose([numbered.op(number) for number in numbers], ops)
            changed = mending.put()
            if changed:
                show(f"repair below floor {floor}")
            failpoint("repair-before-commit")
        failpoint("repair-after-commit")
        for text in refusals(refused, "an op", sender):
            LOG.warning("%s", text)
        metrics.REPAIRED_OPS.inc(len(mending.found))
        return Mended(len(mending.found), tuple(refused))


class _Place(NamedTuple):
    """An op that goes to its place."""

    mark: Mark
    author: bytes
    raw: bytes


class Mending:
    """One batch of ops, in one transaction."""

    def __init__(self, log: SqlLog, floor: Floor) -> None:
        self._log, self._floor = log, floor
        self._connection, self._state, self._lines = log.connection, log.state, log.lines
        self.found: list[_Place] = []

    def choose(self, dots: Sequence[tuple[bytes, int]], ops: Sequence[bytes]) -> list[str]:
        """Of `ops` take those whose hash stands in their place; why the others are refused. What is here already is left out."""
        refused = []
        for (author, seq), raw, held in zip(dots, ops, _raws(self._log, dots)):
            try:
                if held[:1] == GONE and _check(author, seq, raw, held):
                    mark = self._lines.on_line(Dot(author, seq))
                    assert mark is not None, "below a floor everything is applied"
                    self.found.append(_Place(mark, author, raw))
            except RejectedSegment as error:
                refused.append(str(error))
        return refused

    def put(self) -> int:
        """Write them, and bring everything up to date; returns how many entries changed (`SqlState.changes`)."""
        before = self._state.readings()
        rows = [{"b": place.mark.branch, "s": place.mark.seq, "now": place.raw} for place in self.found]
        if not rows:
            return 0
        at = (_OP.branch == bindparam("b"), _OP.seq == bindparam("s"))
        self._connection.execute(update(schema.op).where(*at).values(raw=bindparam("now")), rows)
        self._state.statements.forget_ops()
        self._unlist()
        catalogue = not self._state.is_behind
        for branch, header, places in self._by_segment():
            ops = [gone(b"")] * header.n
            for place in places:
                ops[place.mark.seq - header.first] = place.raw
            self._state.take(self._lines.branches[branch], header, ops, catalogue)
        self._lines.forget()
        for author in {place.author for place in self.found if stored_op(place.raw)[0] == GRANT_KIND}:
            self._state.touch_guests_of(author)
        if catalogue:
            self._state.settle(before)
        else:
            self._state.defer()
        self._collect()
        return len(self._state.changes)

    def _unlist(self) -> None:
        """Forget what the index has of them: in a damaged database something may be left."""
        listed, rows = [], [{"b": place.mark.branch, "s": place.mark.seq} for place in self.found]
        for place in self.found:
            op = stored_op(place.raw)
            for said in op[1:] if op[0] == STATEMENTS_KIND else ():
                for node, key in self._state.statements.numbers.of_statement(said[0], said[1] if len(said) == 2 else None):
                    listed.append({"n": node, "k": key, "b": place.mark.branch, "s": place.mark.seq})
        about = schema.about.c
        at = (about.node == bindparam("n"), about.key == bindparam("k"), about.branch == bindparam("b"), about.seq == bindparam("s"))
        if listed:
            self._connection.execute(delete(schema.about).where(*at), listed)
        for table in (schema.guest, schema.grant, schema.revocation):
            self._connection.execute(delete(table).where(table.c.branch == bindparam("b"), table.c.seq == bindparam("s")), rows)

    def _by_segment(self) -> Iterator[tuple[int, Header, list[_Place]]]:
        """Branch and header of each segment, with what goes there."""
        for branch, places in groupby(sorted(self.found), key=lambda place: place.mark.branch):
            left = list(places)
            while left:
                query = select(_SEGMENT.header).where(_SEGMENT.branch == branch, _SEGMENT.first <= left[0].mark.seq)
                header = decode_header(self._connection.execute(query.order_by(_SEGMENT.first.desc()).limit(1)).scalar_one())
                yield branch, header, [place for place in left if place.mark.seq <= header.last]
                left = [place for place in left if place.mark.seq > header.last]

    def _collect(self) -> None:
        """What they supersede goes, and so do they where they are superseded themselves."""
        for author, places in groupby(sorted(self.found, key=lambda place: place.author), key=lambda place: place.author):
            its = list(places)
            forget_blocks(self._connection, author, [place.mark.seq for place in its])
            keys = {said[0] for place in its if (op := stored_op(place.raw))[0] == STATEMENTS_KIND for said in op[1:]}
            Stretch(self._connection, self._lines, self._state, author, self._floor.seq(author)).collect(keys)


def sentence(floor: int, text: str) -> str:
    """What the instance says as long as it is so."""
    return (
        f"below floor {floor}, what is live here is not what the floor's signers signed: {text}; ops that are missing here are fetched "
        "from the peers that have them"
    )


def found_below(log: SqlLog) -> Optional[str]:
    """What is wrong below the newest floor, as it was found last, or None."""
    noted = live.noted(log.connection)
    return sentence(*noted) if noted is not None and noted[1] else None


def _comparable(log: SqlLog) -> Optional[Floor]:
    """The newest floor, if everything below it is compacted."""
    floors = log.lines.usable_floors
    return floors[-1] if floors and is_compact(log.connection, log.lines) else None


def _digests(log: SqlLog, floor: Floor) -> dict[bytes, list[bytes]]:
    return {head.author: live.block_digests(log.connection, log.lines, log.state, head.author, head.seq) for head in floor.heads}


def _bitmap(log: SqlLog, author: bytes, after: int, until: int) -> bytes:
    bits = 0
    for part in log.lines.line(author):
        query = select(_OP.seq).where(_OP.branch == part.branch, _OP.seq > after, _OP.seq <= min(until, part.seq))
        for seq in log.connection.execute(query.where(func.substr(_OP.raw, 1, 1) != GONE)).scalars():
            bits |= 1 << (seq - after - 1)
    return bits.to_bytes(BITMAP_BYTES, "little")


def _raws(log: SqlLog, dots: Sequence[tuple[bytes, int]]) -> list[bytes]:
    """What stands in these places."""
    marks = [log.lines.on_line(Dot(author, seq)) for author, seq in dots]
    found: dict[Optional[Mark], bytes] = {}
    for branch in {mark.branch for mark in marks if mark is not None}:
        for chunk in chunks([mark.seq for mark in marks if mark is not None and mark.branch == branch]):
            query = select(_OP.seq, _OP.raw).where(_OP.branch == branch, is_among(log.connection, _OP.seq, chunk))
            found.update((Mark(branch, row.seq), row.raw) for row in log.connection.execute(query))
    return [found[mark] for mark in marks]


def _check(author: bytes, seq: int, raw: bytes, held: bytes) -> bool:
    """Raises RejectedSegment unless `raw` is the op whose hash is `held`."""
    where = f"{author.hex()[:12]} {seq}"
    if not raw or raw[:1] == GONE or leaf_of(raw) != leaf_of(held):
        raise RejectedSegment(f"{where}: its hash is not the one that stands in its place")
    try:
        wire_op(raw)
    except RejectedSegment as error:
        raise RejectedSegment(f"{where}: {error}") from error
    return True
