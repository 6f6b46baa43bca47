"""The shell around repair below a floor: asks one peer over the network, and answers peers, the store always off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Optional, TypeVar, Union

from aiohttp import web

from nsync.authority.charter import Instance
from nsync.errors import NsyncError, ProtocolError
from nsync.log.repair import Found, Mended
from nsync.transport import repair
from nsync.transport.exchange import Peer
from nsync.transport.repair import Ask, Look, Mend, RepairLog
from nsync.transport.server import Verb
from nsync.transport.times import monotonic_ms

ASK_S_MAX = 300.0
"""For one answer: bitmaps of 8192 blocks are read in half a minute, and sent as they are read."""
FRUITLESS_MS = 600_000
"""How long a peer is left alone that had nothing to repair with, or lied; one that could not tell is asked at the next exchange."""

PARTS_MS_MAX = 60_000
"""Between two parts of what a peer repairs; after that another one is asked."""

T = TypeVar("T")


@dataclass
class _Course:
    """A repair from one peer, of which a part is done in each exchange with it."""

    peer: str
    floor: int
    steps: Generator[repair.Step, object, Found]
    mended: int = 0
    next: Optional[repair.Step] = None
    at_ms: int = 0
    """When the last part ended."""


class Mender:
    """Repair below the floor, for code on the event loop."""

    def __init__(self, log: RepairLog, executor: Optional[Executor]) -> None:
        self._log, self._executor = log, executor
        self._fruitless: dict[tuple[str, int], int] = {}
        """Which peers had nothing below which floor, and until when (ms) they are left alone."""
        self._busy = False
        self._course: Optional[_Course] = None

    @property
    def goes_on(self) -> bool:
        """Whether there is more to ask the peer that was asked last."""
        return self._course is not None

    async def run(self, peer: Peer) -> bool:
        """Repair a part of what is damaged here from `peer`, one peer at a time; whether there is more to ask it. Raises ProtocolError for
        a wrong op, and what `ask` raises."""
        if self._busy or self._is_anothers(peer.name):
            return False
        self._busy = True
        try:
            course = self._course or await self._begin(peer.name)
            self._course = None
            if course is not None and await self._part(peer, course):
                self._course = course
            return self.goes_on
        finally:
            self._busy = False

    def leave(self, name: str) -> None:
        """The peer `name` has failed: it is asked from the beginning when it is back, unless another one was."""
        if self._course is not None and self._course.peer == name:
            self._course = None

    def _is_anothers(self, name: str) -> bool:
        """Whether another peer has parts to give, and gave the last one not long ago."""
        if self._course is not None and self._course.peer != name and monotonic_ms() > self._course.at_ms + PARTS_MS_MAX:
            self._course = None
        return self._course is not None and self._course.peer != name

    async def _begin(self, name: str) -> Optional[_Course]:
        damage = await self._off(self._log.damage)
        if damage is None or monotonic_ms() < self._fruitless.get((name, damage.floor), 0):
            return None
        return _Course(name, damage.floor, repair.repair(damage))

    async def _part(self, peer: Peer, course: _Course) -> bool:
        """Go on up to the next ops that come; whether there is more after them."""
        step: Union[repair.Step, Found] = Found(None, 0)
        is_fruitless = False
        try:
            step = await self._steps(peer, course)
            is_fruitless = isinstance(step, Found) and step.differing is not None and not course.mended
        except ProtocolError:
            is_fruitless = True
            raise
        finally:
            if is_fruitless:
                self._fruitless[peer.name, course.floor] = monotonic_ms() + FRUITLESS_MS
            if isinstance(step, Found):
                await self._off(partial(self._log.repaired, course.floor, peer.name, step._replace(mended=course.mended)))
        return not isinstance(step, Found)

    async def _steps(self, peer: Peer, course: _Course) -> Union[repair.Step, Found]:
        step: Union[repair.Step, Found, None] = course.next
        if step is None:
            step = await self._off(partial(_next, course.steps, None))
        while not isinstance(step, Found):
            said, brought = await self._step(peer, course.floor, step), isinstance(step, Mend)
            step = await self._off(partial(_next, course.steps, said))
            if brought:
                assert isinstance(said, int)
                course.mended += said
                course.at_ms = monotonic_ms()
                course.next = None if isinstance(step, Found) else step
                break
        return step

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
