"""What peers ask of the logs in one database (transport's SegmentLog), each answer from one moment of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import Engine

from nsync.authority.charter import Place
from nsync.authority.effective import Authority
from nsync.log.stored import Head, StoredSegment
from nsync.store.log import SqlLog


class Asked:
    """For who has an `engine`, and the `authority` by which its logs are read."""

    engine: Engine
    authority: Authority

    def heads(self) -> list[Head]:
        """The end of each stored log."""
        with self.engine.connect() as connection:
            return SqlLog(connection, self.authority).stored_heads()

    def unknown(self, theirs: Collection[Head]) -> list[Head]:
        """Those of a peer's heads that are not stored here."""
        with self.engine.connect() as connection:
            return SqlLog(connection, self.authority).unknown(theirs)

    def locator(self, author: bytes) -> list[Place]:
        """Places of `author`'s log here, to ask peers from."""
        with self.engine.connect() as connection:
            return SqlLog(connection, self.authority).locator(author)

    def segments_after(self, have: Mapping[bytes, Sequence[Place]], bytes_max: int) -> list[StoredSegment]:
        """The next stored segments of the authors in `have` beyond the places given."""
        with self.engine.connect() as connection:
            return SqlLog(connection, self.authority).segments_after(have, bytes_max)
