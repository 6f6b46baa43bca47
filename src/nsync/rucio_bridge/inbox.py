"""One instance's database as its peers know it: they ask what it has of each log, and bring what it lacks. No row of Rucio's is touched.

What is received is verified before the transaction that stores it, and durable when `receive` returns. Every write looks first whether
the charter that this process reads the database by is still the one in force: another node may have gone over to the next.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Optional

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, sessionmaker

from nsync.authority.charter import Instance, Verify
from nsync.authority.effective import Authority
from nsync.errors import CharterMoved
from nsync.failpoints import failpoint
from nsync.log.segment import Segment
from nsync.log.stored import FULL, Head, Receipt, refusals
from nsync.metrics import REFUSED_SEGMENTS
from nsync.rucio_bridge import charters
from nsync.store.asked import Asked
from nsync.store.database import begin_writing
from nsync.store.log import SqlLog, decode_batch

LOG = logging.getLogger(__name__)

REFUSED_TOLD_S = 60.0
"""What one peer brings that is refused goes to the log so often at most; the metric counts all of it."""


class _Verified(NamedTuple):
    """A batch of frames whose signatures were checked."""

    frames: Sequence[bytes]
    authority: Authority
    segments: Sequence[Segment]
    refused: Sequence[str]
    """Why others of them are none."""


class Inbox(Asked):
    """The logs in one database. Every method is synchronous and one transaction; call them off the event loop."""

    def __init__(self, engine: Engine, authority: Authority, me: Instance, verify: Verify) -> None:
        self.engine = engine
        self.authority = authority
        self.me = me
        self._verify = verify
        self._sessions = sessionmaker(bind=engine)
        self._charter = (b"", b"")
        """The file of the charter that this node reads the database by, and its hash; empty before `adopt`."""
        self._told_s: dict[str, float] = {}
        """When it was told last of each peer that something it brought is refused."""
        self._full: Optional[_Verified] = None
        """The last batch, when there was no room for some of it: who brought it comes with the same one again."""

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        """A session in a transaction that may write; leaving with an error rolls it back."""
        with self._sessions.begin() as session:
            begin_writing(session.connection())
            self._require_charter(session.connection())
            yield session

    def _require_charter(self, connection: Connection) -> None:
        """Raises CharterMoved where another node has gone over to another charter: what this one would write is read by the old one."""
        if self._charter[0]:
            self._charter = charters.hash_in_force(connection, self._verify, self._charter)
            if self._charter[1] != self.authority.charter.hash:
                raise CharterMoved("another node on this database has gone over to another charter; this one begins anew with it")

    def compact(self, ms_max: float) -> int:
        """Collect below the newest floor for about `ms_max`; returns how many ops went. See `is_compact`."""
        with self._writing() as session:
            return SqlLog(session.connection(), self.authority).compact(ms_max)

    def is_compact(self) -> bool:
        """Whether nothing is left to collect below the newest floor."""
        with self.engine.connect() as connection:
            return SqlLog(connection, self.authority).is_compact()

    # ---- what peers bring

    def receive(self, frames: Sequence[bytes], sender: str) -> Receipt:
        """Verify `frames` and store what is new; it is durable when this returns."""
        segments, refused = self._verified(frames)
        failpoint("receive-verified")
        received = Receipt(0, ())
        if segments:
            with self._writing() as session:
                log = SqlLog(session.connection(), self.authority)
                log.heard(self.me.author, [Head(s.header.author, s.header.last, s.hash) for s in segments])
                received = log.store(segments)
                failpoint("receive-before-commit")
            failpoint("receive-after-commit")
        self._full = _Verified(frames, self.authority, segments, refused) if received.full else None
        receipt = Receipt(received.stored, (*refused, *received.rejected))
        self._tell_refused([text for text in receipt.rejected if FULL not in text], sender)
        return receipt

    def _tell_refused(self, texts: Sequence[str], sender: str) -> None:
        REFUSED_SEGMENTS.labels(sender).inc(len(texts))
        now_s = time.monotonic()
        if texts and now_s - self._told_s.get(sender, -math.inf) >= REFUSED_TOLD_S:
            self._told_s[sender] = now_s
            for text in refusals(texts, "a segment", sender):
                LOG.warning("%s", text)

    def _verified(self, frames: Sequence[bytes]) -> tuple[Sequence[Segment], Sequence[str]]:
        """The segments in `frames`, and why others are refused; checked once for a batch for which there was no room."""
        full = self._full
        if full is not None and full.frames is frames and full.authority is self.authority:
            return full.segments, full.refused
        return decode_batch(frames, self.authority, self._verify)
