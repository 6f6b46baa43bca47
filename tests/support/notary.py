"""One instance's database with its notary, and exchanges of notices between two, as bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

from nsync.auth.keys import verify
from nsync.authority.effective import Authority
from nsync.log.floor import Floor, Vote
from nsync.log.lease import SignedHead
from nsync.log.segment import Segment, Sign, decode_frame
from nsync.namespace.ops import ACKNOWLEDGE
from nsync.store.database import writing
from nsync.store.log import SqlLog, decode_batch
from nsync.store.notary import Notary, Opened
from nsync.store.notices import SqlNotices, Taken
from nsync.transport import notices as messages
from tests.support.database import memory_engine

LEASE_MS = 900_000
FLOOR_INTERVAL_MS = 1000


class Notaries:
    """Give it a time (`now_ms`) and something to do."""

    def __init__(self, authority: Authority, name: str, sign: Sign, now_ms: int) -> None:
        me = authority.charter.by_name(name)
        assert me is not None, name
        self.engine = memory_engine()
        self.authority, self.name, self.me, self.now_ms = authority, name, me, now_ms
        self.said: list[str] = []
        self.begun = 0
        """How many transactions of its notary have begun to write."""
        self._sign = sign
        self.notary = Notary(self, sign, verify, lambda: self.now_ms, self._heard, LEASE_MS, FLOOR_INTERVAL_MS, lambda: 0.0)

    @contextmanager
    def opened(self, now_ms: int) -> Iterator[Opened]:
        self.begun += 1
        with writing(self.engine) as connection:
            yield Opened(SqlLog(connection, self.authority), True, lambda by: None)

    def _heard(self, taken: Taken, sender: str) -> None:
        self.said += taken.said

    def store(self, *made: Segment) -> None:
        """Store these segments, and apply what can be applied."""
        segments, rejected = decode_batch([one.frame for one in made], self.authority, verify)
        assert not rejected, rejected
        with writing(self.engine) as connection:
            SqlLog(connection, self.authority).store(segments)
        while True:
            with writing(self.engine) as connection:
                if SqlLog(connection, self.authority).apply_next(self.now_ms) is None:
                    return

    def publish(self, *ops: bytes) -> None:
        with writing(self.engine) as connection:
            SqlLog(connection, self.authority).publish(ops or (ACKNOWLEDGE,), self.me.author, self._sign, self.now_ms)

    def segments(self) -> list[Segment]:
        """All that are stored, in the order in which they came."""
        have: dict[bytes, list[object]] = {life.author: [] for one in self.authority.charter.instances for life in one.incarnations}
        with self.engine.connect() as connection:
            stored = SqlLog(connection, self.authority).segments_after(have, 1 << 30)  # type: ignore[arg-type]
        return [decode_frame(one.frame) for one in stored]

    def compact(self) -> int:
        with writing(self.engine) as connection:
            return SqlLog(connection, self.authority).compact()

    def floors(self) -> list[Floor]:
        with self.engine.connect() as connection:
            return list(SqlLog(connection, self.authority).lines.usable_floors)

    def votes(self) -> list[Vote]:
        with self.engine.connect() as connection:
            return SqlLog(connection, self.authority).lines.votes()

    def read_only(self) -> Optional[str]:
        with self.engine.connect() as connection:
            return SqlLog(connection, self.authority).read_only(self.me.author)

    def held(self) -> list[SignedHead]:
        with self.engine.connect() as connection:
            return SqlNotices(SqlLog(connection, self.authority)).heads()


def tell(one: Notaries, other: Notaries) -> int:
    """An exchange of notices, as bytes; returns how many round trips it took."""
    asked = messages.first(one.notary.stand())
    trips = 0
    while trips == 0 or asked.sent:
        trips += 1
        reply, _ = messages.answer(other.notary, messages.decode(messages.encode(asked)), one.name)
        asked, _ = messages.answer(one.notary, messages.decode(messages.encode(reply)), other.name)
    return trips
