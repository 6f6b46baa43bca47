"""All orders in which a few changesets can be published and delivered, none left out.

A script says who publishes what, in the order of each author. From then on every step is free: an author publishes its next
changeset, or an instance gets the next one of another's log, and applies what it can. The orders are walked as a graph:
what an instance holds names its state, so an order that leads to a state that was seen is not walked again, but must have
led to the same rows. Every state of an instance is held against the reference and the model, and in the end all hold the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from nsync.testing import oracles
from nsync.testing.federation import NAMES, federation
from nsync.testing.host import BEGINNING_MS
from nsync.testing.ledger import hold
from nsync.testing.peer import Image, Peer

OPS_MAX, PEERS_MAX = 6, 3
"""What can be walked in minutes."""

Logs = tuple[tuple[bytes, ...], ...]
"""What an instance holds: of each author, in their order, the frames."""

State = tuple[Logs, ...]
"""What each instance holds."""


class Saying(NamedTuple):
    """`author` publishes `ops` as one changeset, when its clock shows `at_ms` since the beginning."""

    author: str
    ops: tuple[bytes, ...]
    at_ms: int


class Explored(NamedTuple):
    """How much there was to walk."""

    orders: int
    """Ways to order all steps."""
    states: int
    """Of all instances together."""
    transitions: int
    """Of one instance: what was run on a database."""


class _Held(NamedTuple):
    image: Image
    tables: dict[str, list[tuple[Any, ...]]]


class Explorer:
    """Walks one script."""

    def __init__(self, script: Sequence[Saying], peers: int = PEERS_MAX) -> None:
        """`peers`: the first of federation.NAMES; who says nothing reads."""
        assert len(script) <= OPS_MAX and 2 <= peers <= PEERS_MAX
        members = federation(peers)
        self._names = NAMES[:peers]
        self._says = [[saying for saying in script if saying.author == name] for name in self._names]
        assert sum(map(len, self._says)) == len(script), "every author is an instance"
        self._last_ms = BEGINNING_MS + max((saying.at_ms for saying in script), default=0)
        self._peers = [Peer(members.authority, members.instance(name).author, members.keys[name].sign) for name in self._names]
        nothing: Logs = tuple(() for _ in self._names)
        self._start: State = tuple(nothing for _ in self._names)
        self._held: list[dict[Logs, _Held]] = [{nothing: _held(peer)} for peer in self._peers]
        self._moved: dict[tuple[int, Logs, Any], Logs] = {}
        self._orders: dict[State, int] = {}

    def run(self) -> Explored:
        """Raises Broken where two orders disagree, or a state is not what the reference says."""
        orders = self._walk(self._start)
        for peer in self._peers:
            peer.close()
        return Explored(orders, len(self._orders), len(self._moved))

    def _walk(self, state: State) -> int:
        """In how many orders all that is left can happen."""
        if state not in self._orders:
            self._orders[state] = 0  # no step leads back
            self._orders[state] = sum(map(self._walk, self._steps(state))) or self._end(state)
        return self._orders[state]

    def _steps(self, state: State) -> Iterator[State]:
        for me, logs in enumerate(state):
            if len(logs[me]) < len(self._says[me]):
                yield _with(state, me, self._publish(me, logs, len(logs[me])))
            for other, log in enumerate(logs):
                if other != me and len(log) < len(state[other][other]):
                    yield _with(state, me, self._deliver(me, logs, other, state[other][other][len(log)]))

    def _end(self, state: State) -> int:
        first = self._held[0][state[0]].tables
        for name, logs, held in zip(self._names, state, self._held):
            hold(held[logs].tables == first, f"after all was delivered {name} holds other rows than {self._names[0]}")
        return 1

    def _publish(self, me: int, logs: Logs, index: int) -> Logs:
        def step(peer: Peer) -> Logs:
            saying = self._says[me][index]
            peer.work(BEGINNING_MS + saying.at_ms, saying.ops, 0, acknowledges=False)
            return _with(logs, me, tuple(said.frame for said in peer.segments() if said.header.author == peer.author))

        return self._move(me, logs, index, step)

    def _deliver(self, me: int, logs: Logs, other: int, frame: bytes) -> Logs:
        def step(peer: Peer) -> Logs:
            receipt = peer.receive([frame], self._names[other])
            hold(receipt == (1, ()), f"{self._names[me]} does not take the next segment of {self._names[other]}: {receipt.rejected}")
            peer.work(self._last_ms, changesets_max=OPS_MAX, acknowledges=False)
            return _with(logs, other, (*logs[other], frame))

        return self._move(me, logs, frame, step)

    def _move(self, me: int, logs: Logs, what: object, step: Callable[[Peer], Logs]) -> Logs:
        """The logs after `step`; run once for each state, and its outcome held against what is known of that state."""
        known = self._moved.get((me, logs, what))
        if known is None:
            peer = self._peers[me]
            peer.restore(self._held[me][logs].image)
            known = self._moved[me, logs, what] = step(peer)
            before, now = self._held[me].get(known), _held(peer)
            if before is None:
                oracles.check_catalogue(self._names[me], peer)
            else:
                hold(
                    before.tables == now.tables, f"{self._names[me]} holds the same segments and other rows when they come in another order"
                )
            self._held[me].setdefault(known, now)
        return known


def _with(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _held(peer: Peer) -> _Held:
    return _Held(peer.image(), peer.tables())
