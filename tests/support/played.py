"""This process in the place of a node: it answers from the database of a `Site`, with a clock and a pace of the test's choice."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from nsync.auth.keys import verify
from nsync.log.stored import StoredSegment
from nsync.store.notary import Notary
from nsync.transport.gossip import Gossip
from nsync.transport.listener import Listener
from nsync.transport.server import Server
from nsync.transport.times import wall_ms
from tests.support.federation import KEYS
from tests.support.nodes import LOOPBACK, Site


@dataclass
class Play:
    """How the played node behaves; changed while it runs."""

    behind_ms: int = 0
    """Its clock."""
    batch_bytes: int = 1 << 30
    batch_s: float = 0.0
    served: list[StoredSegment] = field(default_factory=list)
    """What it sent, or began to."""


class _Log:
    """The log of a bridge, at the pace of a `Play`."""

    def __init__(self, bridge: Any, play: Play) -> None:
        self._bridge, self._play = bridge, play

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bridge, name)

    def segments_after(self, have: Any, bytes_max: int) -> list[StoredSegment]:
        time.sleep(self._play.batch_s)
        found: list[StoredSegment] = self._bridge.segments_after(have, min(bytes_max, self._play.batch_bytes))
        self._play.served += found
        return found


@contextmanager
def played(site: Site, play: Play) -> Iterator[None]:
    """Answer in the place of the node of `site`."""
    me = site.federation.charter.by_name(site.name)
    assert me is not None
    loop, ready, ended = asyncio.new_event_loop(), threading.Event(), threading.Event()

    async def serve() -> None:
        with ThreadPoolExecutor(2) as executor:
            log: Any = _Log(site.bridge, play)
            key, charter = KEYS[site.name], site.federation.charter
            notary = Notary(site.bridge, key.sign, verify, wall_ms, lambda *_: None)
            gossip = Gossip(charter, me, key, log, executor, random.Random(1), lambda: None, notices=notary)
            options: dict[str, Any] = {"verbs": gossip.verbs(), "notices": gossip.door}
            server = Server(charter, me, log, executor, gossip.received, now_ms=lambda: wall_ms() - play.behind_ms, **options)
            listener = Listener(server.app())
            await listener.start(LOOPBACK, site.federation.ports[site.name])
            ready.set()
            while not ended.is_set():
                await asyncio.sleep(0.05)
            await listener.stop()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        ended.set()
        thread.join(20)
        loop.close()
