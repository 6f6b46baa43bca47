"""The table of peers as a node keeps it (transport.keeper)."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from nsync.store import peers
from nsync.store.database import create_tables, writing
from nsync.transport.gossip import Gossip
from nsync.transport.keeper import Keeper
from tests.integration.test_transport import MemoryLog, members


def test_what_could_not_be_kept_is_kept_at_the_next_look(tmp_path: Path) -> None:
    """Not only once it changes again, or half a minute later."""
    engine = create_engine(f"sqlite:///{tmp_path}/nsync.db", connect_args={"timeout": 0})
    create_tables(engine)
    charter, keys = members("ab")
    gossip = Gossip(charter, charter.instances[0], keys[0], MemoryLog(), None, random.Random(1), lambda: None)

    async def looks() -> None:
        with ThreadPoolExecutor(1) as executor:
            keeper = Keeper(gossip, peers.PeerTable(engine), executor, executor, 1.0)
            with writing(engine), pytest.raises(OperationalError, match="locked"):
                await keeper.look()
            await keeper.look()

    asyncio.run(looks())
    with engine.connect() as connection:
        assert [record.name for record in peers.load(connection)] == ["b"]
    engine.dispose()
