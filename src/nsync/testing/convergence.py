"""How long a new segment takes to be everywhere, by the number of instances: the real gossip on virtual time, without faults.

`rounds` counts intervals of anti-entropy while nobody tells anybody; each exchange carries news both ways, so who has it doubles
from round to round, and more than doubles. `seconds` lets everybody tell, as they do.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Callable

from nsync.auth.keys import SigningKey
from nsync.authority.charter import Charter, FederationId, Instance
from nsync.authority.effective import Authority
from nsync.namespace.ops import ACKNOWLEDGE
from nsync.testing import network
from nsync.testing.faults import Dice
from nsync.testing.host import BEGINNING_MS, INTERVAL_S
from nsync.testing.network import Answer, Client, Network
from nsync.testing.peer import Peer
from nsync.testing.virtual import run
from nsync.transport import session
from nsync.transport.exchange import Peer as RemotePeer
from nsync.transport.gossip import Gossip
from nsync.transport.roster import Roster

LATENCY_S = (0.001, 0.03)
"""One way, between institutes of one continent."""
LOOK_S = 0.01
SETTLED_S = 4 * INTERVAL_S
WAIT_S_MAX = 100 * INTERVAL_S


def rounds(peers: int, seed: int) -> float:
    """Intervals of anti-entropy until all of `peers` have a new segment, when nobody is told."""
    return run(_tell(peers, seed, silent=True)) / INTERVAL_S


def seconds(peers: int, seed: int) -> float:
    """Virtual seconds until all of `peers` have a new segment."""
    return run(_tell(peers, seed, silent=False))


class _Silent(Gossip):
    """Passes nothing on: only anti-entropy is left."""

    def received(self) -> None:
        self._on_received()


class _Node:
    """An instance that never fails."""

    up, life, lost_before = True, 1, 0

    def __init__(self, charter: Charter, me: Instance, key: SigningKey, over: Network, rng: random.Random, silent: bool) -> None:
        self.name = me.name
        self.roster = Roster(charter)
        self.peer = Peer(Authority(charter), me.author, key.sign)
        self._network = over
        self._told = session.Told()
        kind = _Silent if silent else Gossip
        self.gossip = kind(charter, me, key, self.peer, None, rng, lambda: None, INTERVAL_S, reach=self._reach)

    def answer(self, caller: str, verb: str, body: bytes) -> Answer:
        return network.answer(network.Desk(self.peer, self.gossip, self._told, self.roster), caller, verb, body)

    @asynccontextmanager
    async def _reach(self) -> AsyncIterator[Callable[[Instance], RemotePeer]]:
        yield lambda peer: Client(self._network, self, peer.name)


def _members(peers: int) -> tuple[Charter, list[SigningKey]]:
    keys = [SigningKey(number.to_bytes(32, "big")) for number in range(1, peers + 1)]
    names = [f"i{number:02}" for number in range(peers)]
    instances = tuple(
        Instance(name, name, key.public, bytes(16), f"http://{name}.example.org", (f"{name}.",), (), {}) for name, key in zip(names, keys)
    )
    return Charter("many", 1, FederationId(bytes(16)), instances), keys


async def _tell(peers: int, seed: int, silent: bool) -> float:
    loop, rng = asyncio.get_running_loop(), random.Random(seed)  # noqa: S311 - a story, no secret
    charter, keys = _members(peers)
    over = Network(Dice(frozenset(), rng, 0.0, loop.time), rng, LATENCY_S)
    nodes = [
        _Node(charter, me, key, over, random.Random(f"{seed}/{me.name}"), silent)  # noqa: S311
        for me, key in zip(charter.instances, keys)
    ]
    over.hosts.update({node.name: node for node in nodes})
    tasks = [asyncio.ensure_future(node.gossip.run()) for node in nodes]
    try:
        await asyncio.sleep(SETTLED_S + rng.uniform(0, INTERVAL_S))
        begun_s, first = loop.time(), rng.choice(nodes)
        first.peer.work(BEGINNING_MS, [ACKNOWLEDGE])
        if not silent:
            first.gossip.wake()
        await _everywhere(nodes, first)
        return loop.time() - begun_s
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for node in nodes:
            node.peer.close()


async def _everywhere(nodes: Sequence[_Node], first: _Node) -> None:
    loop = asyncio.get_running_loop()
    end_s, heads = loop.time() + WAIT_S_MAX, first.peer.heads()
    while any(node.peer.heads() != heads for node in nodes):
        assert loop.time() < end_s, f"not everywhere after {WAIT_S_MAX:g} s"
        await asyncio.sleep(LOOK_S)
