"""The shell around repair below a floor: asks one peer over the network, and answers peers, the store always off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor
from functools import partial
from typing import Any, Optional, Protocol, TypeVar, Union

from aiohttp import web

from nsync.authority.charter import Instance
from nsync.errors import NsyncError, ProtocolError
from nsync.log.repair import Damage, Found, Mended
from nsync.transport import repair
from nsync.transport.repair import Ask, Look, RepairLog
from nsync.transport.server import Verb
from nsync.transport.times import monotonic_ms

ASK_S_MAX = 300.0
"""For one answer: bitmaps of 8192 blocks are read in half a minute, and sent as they are read."""
FRUITLESS_MS = 600_000
"""How long a peer is left alone that had nothing to repair with, or lied; one that could not tell is asked at the next exchange."""

T = TypeVar("T")


class Peer(Protocol):
    """What is asked of one peer: `client.PeerClient`, or a simulation's."""

    name: str

    async def ask(self, verb: str, body: bytes, bytes_max: int, decode: Callable[[bytes], Any], s_max: float) -> Any:
        """What `decode` makes of the answer."""


class Mender:
    """Repair below the floor, for code on the event loop."""

    def __init__(self, log: RepairLog, executor: Optional[Executor]) -> None:
        self._log, self._executor = log, executor
        self._fruitless: dict[tuple[str, int], int] = {}
        """Which peers had nothing below which floor, and until when (ms) they are left alone."""
        self._busy = False

    async def run(self, peer: Peer) -> Optional[Found]:
        """Repair from `peer` what is damaged here, one peer at a time. Raises ProtocolError for a wrong op, and what `ask` raises."""
        if self._busy:
            return None
        self._busy = True
        try:
            damage = await self._off(self._log.damage)
            if damage is None or monotonic_ms() < self._fruitless.get((peer.name, damage.floor), 0):
                return None
            found, is_fruitless = Found(None, 0), False
            try:
                found = await self._course(peer, damage)
                is_fruitless = found.differing is not None and not found.mended
            except ProtocolError:
                is_fruitless = True
                raise
            finally:
                if is_fruitless:
                    self._fruitless[peer.name, damage.floor] = monotonic_ms() + FRUITLESS_MS
                await self._off(partial(self._log.repaired, damage.floor, peer.name, found))
            return found
        finally:
            self._busy = False

    async def _course(self, peer: Peer, damage: Damage) -> Found:
        course = repair.repair(damage)
        said: object = None
        while True:
            step = await self._off(partial(_next, course, said))
            if isinstance(step, Found):
                return step
            said = await self._step(peer, damage.floor, step)

    async def _step(self, peer: Peer, floor: int, step: repair.Step) -> object:
        if isinstance(step, Ask):
            return await peer.ask(step.verb, step.body, step.bytes_max, bytes, ASK_S_MAX)
        if isinstance(step, Look):
            return await self._off(partial(self._log.bitmaps, floor, step.blocks))
        mended: Mended = await self._off(partial(self._log.mend, floor, step.numbers, step.ops, peer.name))
        if mended.refused:
            raise ProtocolError(f"{peer.name} sent {len(mended.refused)} wrong ops; the first: {mended.refused[0]}")
        return mended.taken

    def verbs(self) -> tuple[Verb, ...]:
        """What peers ask, for the server."""
        return tuple(Verb(name, repair.QUESTION_BYTES_MAX, partial(self._answer, name)) for name in repair.VERBS)

    async def _answer(self, verb: str, request: web.Request, caller: Instance, body: bytes) -> web.StreamResponse:
        """Sent piece by piece: what reads the store waits until the caller has read what was sent."""
        pieces = repair.answer(self._log, verb, body)
        first = await self._off(partial(next, pieces, None))
        if first is None:
            return web.Response()
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        await response.prepare(request)
        try:
            await asyncio.wait_for(self._send(response, first, pieces), ASK_S_MAX)
        except (NsyncError, ConnectionError, asyncio.TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _send(self, response: web.StreamResponse, piece: Optional[bytes], pieces: Iterator[bytes]) -> None:
        while piece is not None:
            if piece:
                await response.write(piece)
            piece = await self._off(partial(next, pieces, None))
        await response.write_eof()

    async def _off(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, job)


def _next(course: Generator[repair.Step, object, Found], said: object) -> Union[repair.Step, Found]:
    """The next step, or what came of it all. Answers have some MiB when they are inflated: it takes a while."""
    try:
        return course.send(said)
    except StopIteration as end:
        found: Found = end.value
        return found
