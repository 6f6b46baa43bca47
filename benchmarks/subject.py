"""nsync's store as the benchmarks drive it: the few calls that they need, in one place."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Optional

from sqlalchemy import MetaData

from benchmarks.streams import AUTHORITY, EPOCH_MS
from nsync.auth.keys import verify
from nsync.store import schema
from nsync.store.database import create_tables, open_store, writing
from nsync.store.log import SqlLog, decode_batch

NOW_MS = EPOCH_MS + (1 << 40)
"""Later than any stamp of the streams."""


class Store:
    """A stand-alone database: what it acknowledges is durable."""

    def __init__(self, url: str) -> None:
        self.storing_s = 0.0
        """Seconds of the clock in which `store` verified, wrote and flushed."""
        self.engine = open_store(url)
        create_tables(self.engine)

    def store(self, frames: list[bytes]) -> None:
        """Verify `frames` and keep them, in one transaction."""
        began = time.perf_counter()
        segments, rejected = decode_batch(frames, AUTHORITY, verify)
        assert not rejected, rejected[0]
        with writing(self.engine) as connection:
            receipt = SqlLog(connection, AUTHORITY).store(segments)
        assert not receipt.rejected, receipt.rejected[0]
        self.storing_s += time.perf_counter() - began

    def apply_one(self, catalogue: bool = True) -> Optional[int]:
        """Apply the next changeset, in a transaction of its own: how many ops it has, None when nothing waits."""
        with writing(self.engine) as connection:
            applied = SqlLog(connection, AUTHORITY).apply_next(NOW_MS, catalogue=catalogue)
        if applied is None:
            return None
        assert applied.void == 0
        return applied.last - applied.first + 1

    def ingest(self, batches: Iterable[list[bytes]], catalogue: bool = True) -> int:
        """Take in everything: returns the ops applied. Without `catalogue`, as a newcomer does, who derives it at the end."""
        done = 0
        for batch in batches:
            self.store(batch)
            while (ops := self.apply_one(catalogue)) is not None:
                done += ops
        return done

    def rebuild(self) -> int:
        """Derive the catalogue: returns how many keys it is of."""
        with writing(self.engine) as connection:
            return SqlLog(connection, AUTHORITY).rebuild()

    def close(self) -> None:
        self.engine.dispose()


METADATA: MetaData = schema.metadata
"""The tables that the store writes, for the floors that write the same rows."""
