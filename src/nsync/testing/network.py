"""The network between simulated peers: the real messages, carried by hand.

A client asks, the bytes travel, the other side answers as `transport.server` does, and the answer travels back; on each way
something can happen to them. What is not here is HTTP itself, and the signature of requests: it would refuse what is
repeated, late or from a wrong clock, and thereby hide from the log what the log must bear.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, Optional, Protocol

from nsync.errors import ProtocolError, TransportError
from nsync.log.notices import digest
from nsync.log.stored import Head, Receipt
from nsync.testing.faults import Dice
from nsync.transport import notices, repair, session, wire
from nsync.transport.gossip import Gossip
from nsync.transport.notices import NoticeLog, Word
from nsync.transport.ports import SegmentLog, Take
from nsync.transport.repair import RepairLog
from nsync.transport.roster import Roster

LATENCY_S = (0.005, 0.2)
DELAY_S_MAX = 20.0
"""A delayed message; below the time after which nobody waits for it any more."""
REFUSED_S = 0.1
SILENT_S = 30.0
"""How long a client waits for an answer that does not come (client.IDLE_S_MAX)."""
BATCH_BYTES_MAX = 3000
"""Segments in one batch: few, so that an exchange has several (wire.BATCH_BYTES_MAX is for real ones)."""


class Crash(asyncio.CancelledError):
    """The process in which this is raised ends here: all that runs in it is cancelled."""


class Host(Protocol):
    """One end of the network."""

    name: str
    up: bool
    lost_before: int
    """Messages of earlier lives than this one are lost: the database that they came from is."""
    life: int

    @property
    def roster(self) -> Roster:
        """Of the charter that it goes by."""

    def answer(self, caller: str, verb: str, body: bytes) -> Answer:
        """What `transport.server` answers. Raises ProtocolError, or Crash."""


class Answer(NamedTuple):
    """Bytes, or for a pull the frames of its stream; `whole` unless the connection broke."""

    body: bytes
    frames: tuple[bytes, ...] = ()
    whole: bool = True


class Desk(NamedTuple):
    """What an instance answers from: transport.server without HTTP."""

    log: SegmentLog
    gossip: Gossip
    told: session.Told
    roster: Roster
    notices: Optional[NoticeLog] = None
    repairs: Optional[RepairLog] = None


def answer(desk: Desk, caller: str, verb: str, body: bytes) -> Answer:
    """What an instance answers to the peer `caller`."""
    log = desk.log
    if verb == "hello":
        hello = wire.decode_hello(body)
        stand = b"" if desk.notices is None else digest(desk.notices.stand())
        reply = desk.told.answer(caller, hello, log.heads(), stand)
        return Answer(wire.encode_hello_reply(reply, desk.roster if hello.roster == desk.roster.digest else None))
    if verb == notices.VERB and desk.notices is not None:
        word, urgent = notices.answer(desk.notices, notices.decode(body), caller)
        if urgent:
            desk.gossip.noticed()
        return Answer(notices.encode(word))
    if verb in repair.VERBS and desk.repairs is not None:
        return Answer(b"".join(repair.answer(desk.repairs, verb, body)))
    if verb == "tell":
        return Answer(wire.encode_tell_reply(desk.gossip.told(caller, wire.decode_tell(body))))
    if verb == "push":
        receipt = log.receive(wire.decode_frames(body, wire.BODY_BYTES_MAX), "")
        if receipt.stored:
            desk.gossip.received()
        return Answer(wire.encode_receipt(receipt))
    have: session.Have = wire.decode_have(body)
    frames: list[bytes] = []
    while batch := log.segments_after(have, BATCH_BYTES_MAX):
        frames += [segment.frame for segment in batch]
        have = session.advance(have, batch)
    return Answer(b"", tuple(frames))


class Network:
    """Carries requests between hosts."""

    def __init__(self, dice: Dice, rng: random.Random, latency_s: tuple[float, float] = LATENCY_S) -> None:
        self.hosts: dict[str, Host] = {}
        self.carried = 0
        self._cuts: list[Collection[tuple[str, str]]] = []
        """Of each partition the links (from, to) that it cuts."""
        self._dice = dice
        self._rng = rng
        self._one_way_s = latency_s

    def cut(self, links: Collection[tuple[str, str]], seconds: float) -> None:
        """Let nothing pass over `links` for a while."""
        self._cuts.append(links)
        self._later(seconds, self._mend, links)

    def heal(self) -> None:
        """End all partitions."""
        self._cuts.clear()

    def _mend(self, links: Collection[tuple[str, str]]) -> None:
        self._cuts = [cut for cut in self._cuts if cut is not links]

    def _is_cut(self, sender: str, receiver: str) -> bool:
        return any((sender, receiver) in links for links in self._cuts)

    async def ask(self, me: Host, peer: str, verb: str, body: bytes) -> Answer:
        """The answer of `peer`. Raises TransportError where there is none; ProtocolError where the peer finds fault with the request."""
        done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if verb == "push":
            body = self._reordered(body)
        self._carry(me, peer, verb, body, done)
        if self._dice.strike("duplication"):
            self._later(self._rng.uniform(0, 2 * DELAY_S_MAX), self._arrive, me, me.life, peer, verb, body, None)
        return await done

    def _carry(self, me: Host, peer: str, verb: str, body: bytes, done: asyncio.Future[Answer]) -> None:
        self.carried += 1
        if self._is_cut(me.name, peer) or self._dice.strike("loss"):
            self._lose(peer, done)
        else:
            self._later(self._latency_s(), self._arrive, me, me.life, peer, verb, body, done)

    def _arrive(self, me: Host, life: int, peer: str, verb: str, body: bytes, done: asyncio.Future[Answer] | None) -> None:
        """A request is there; `done` waits for its answer, unless it is a repetition."""
        host, back = self.hosts[peer], TransportError(f"{peer} is down")
        if life < me.lost_before:
            return
        result: Answer | Exception = back
        if host.up:
            try:
                result = host.answer(me.name, verb, body)
            except Crash:
                result = back
            except ProtocolError as error:
                result = error
        if done is None or done.done():
            return
        if isinstance(result, Answer) and self._is_cut(peer, me.name):
            self._lose(peer, done)
        elif isinstance(result, Answer):
            self._later(self._latency_s(), self._return, host, host.life, done, self._mishandled(result))
        else:
            self._later(REFUSED_S, _settle, done, result)

    def _return(self, host: Host, life: int, done: asyncio.Future[Answer], result: Answer | Exception) -> None:
        _settle(done, result if life >= host.lost_before else TransportError(f"{host.name} is gone"))

    def _mishandled(self, result: Answer) -> Answer | Exception:
        if self._dice.strike("loss"):
            if not result.frames:
                return TransportError("the connection broke")
            result = result._replace(frames=result.frames[: self._rng.randrange(len(result.frames))], whole=False)
        if len(result.frames) > 1 and self._dice.strike("reordering"):
            result = result._replace(frames=tuple(self._shuffled(result.frames)))
        return result

    def _reordered(self, body: bytes) -> bytes:
        frames = wire.decode_frames(body, wire.BODY_BYTES_MAX)
        return wire.encode_frames(self._shuffled(frames)) if len(frames) > 1 and self._dice.strike("reordering") else body

    def _lose(self, peer: str, done: asyncio.Future[Answer]) -> None:
        """Half the time the connection is refused, else there is silence."""
        after_s = self._rng.choice((REFUSED_S, SILENT_S))
        self._later(after_s, _settle, done, TransportError(f"{peer} did not answer"))

    def _latency_s(self) -> float:
        return self._rng.uniform(1, DELAY_S_MAX) if self._dice.strike("delay") else self._rng.uniform(*self._one_way_s)

    def _shuffled(self, frames: Sequence[bytes]) -> list[bytes]:
        return self._rng.sample(list(frames), len(frames))

    def _later(self, after_s: float, callback: object, *args: object) -> None:
        asyncio.get_running_loop().call_later(after_s, callback, *args)  # type: ignore[arg-type]


def _settle(done: asyncio.Future[Answer], result: Answer | Exception) -> None:
    if done.done():
        return  # whoever asked has died
    if isinstance(result, Answer):
        done.set_result(result)
    else:
        done.set_exception(result)


class Client:
    """One peer, as a host sees it: what `transport.client.PeerClient` is on HTTP."""

    def __init__(self, network: Network, me: Host, peer: str) -> None:
        self.name = peer
        self._network = network
        self._me = me

    async def hello(self, digest: bytes, since: Optional[bytes]) -> wire.HelloReply:
        roster = self._me.roster
        return wire.decode_hello_reply((await self._ask("hello", wire.encode_hello(digest, roster.digest, since))).body, roster)

    async def tell(self, heads: Sequence[Head]) -> bool:
        return wire.decode_tell_reply((await self._ask("tell", wire.encode_tell(heads))).body)

    async def notices(self, word: Word) -> Word:
        return notices.decode((await self._ask(notices.VERB, notices.encode(word))).body)

    async def pull(self, have: session.Have, take: Take) -> None:
        """What came whole before the connection broke is taken first."""
        answer = await self._ask("pull", wire.encode_have(have))
        frames = wire.decode_frames(wire.encode_frames(answer.frames), wire.PULL_BYTES_MAX)
        for batch in _batches(frames):
            if not await take(batch):
                return
        if not answer.whole:
            raise TransportError(f"{self.name}: the answer to a pull broke off")

    async def push(self, frames: Sequence[bytes]) -> Receipt:
        return wire.decode_receipt((await self._ask("push", wire.encode_frames(frames))).body)

    async def ask(self, verb: str, body: bytes, bytes_max: int, decode: Callable[[bytes], Any], s_max: float) -> Any:
        return decode((await self._ask(verb, body)).body)

    async def _ask(self, verb: str, body: bytes) -> Answer:
        return await self._network.ask(self._me, self.name, verb, body)


def _batches(frames: Sequence[bytes]) -> list[list[bytes]]:
    batches: list[list[bytes]] = []
    for frame in frames:
        if not batches or sum(map(len, batches[-1])) + len(frame) > BATCH_BYTES_MAX:
            batches.append([])
        batches[-1].append(frame)
    return batches
