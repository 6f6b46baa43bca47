"""What a request passes before it is answered, in this order; what fails at one has cost nothing of the next.

    who asks                     401, empty: a stranger learns nothing, not even why
    a connection of that member  429, and the connection ends
    its budgets                  429, a second later: whoever does not wait is made to
    a free place                 503, try later; those that are answered with a stream, for minutes perhaps, take no other's place
    no encoding                  415
    size; room for it; rate      413; 429; 408
    the body is the signed one   401
    the message                  400 with a text

Memory: `budgets.BYTES_MAX` for all bodies and segments under way, and a batch of the log for each stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Callable

from aiohttp import web

from nsync import metrics
from nsync.authority.charter import Charter, Instance
from nsync.errors import NotAuthorised, ProtocolError, TransportError
from nsync.transport import wire
from nsync.transport.budgets import BODY_BYTES, CPU_MS, REFUSALS_TOLD, SIGNATURES, Bucket, Budgets, Exhausted, Take, body_s_max
from nsync.transport.listener import introduce
from nsync.transport.metering import CHECKS, METER
from nsync.transport.requests import Verifier, body_digest
from nsync.transport.times import aside, wall_ms

logger = logging.getLogger("nsync.transport.server")

EXCHANGES_MAX = 16
"""Requests of members answered at the same time, and as many streams: bounds the queue before the log."""

PEER_EXCHANGES_MAX = 2
"""Of these, for one peer, so that none can take all places."""

RETRY_AFTER_S = 1

EXHAUSTED_S = 1.0
"""How long the answer to a member over its budget is held back, without a place: it gets as many of them as it has connections."""


STRANGERS = ""
"""Under this name refusals of requests are told whose caller is not known."""


class _Work:
    """What threads have done for one request."""

    def __init__(self, name: str, charge: Callable[[float], None]) -> None:
        self.name = name
        self.ms = 0.0
        self._charge = charge

    def add(self, ms: float) -> None:
        self.ms += ms
        self._charge(ms)


_WORK: ContextVar[_Work] = ContextVar("_WORK")


class Gates:
    """The gates of one server."""

    def __init__(self, charter: Charter, me: Instance, now_ms: Callable[[], int] = wall_ms, body_s_max: float = wire.BODY_S_MAX) -> None:
        self._verifier = Verifier(charter, me.author)
        self._now_ms = now_ms
        self._body_s_max = body_s_max
        self._busy: Counter[str] = Counter()
        self._streams: Counter[str] = Counter()
        self._budgets = Budgets([i.name for i in charter.instances], now_ms())
        self._told = {name: Bucket(REFUSALS_TOLD, now_ms()) for name in (STRANGERS, *(i.name for i in charter.instances))}
        self._untold: Counter[str] = Counter()

    @asynccontextmanager
    async def passed(self, request: web.Request, bytes_max: int, streams: bool) -> AsyncIterator[tuple[Instance, bytes]]:
        """The member that asks, and the body that it has signed; both have room until the request is answered, with a stream perhaps.

        Raises what `refusal` makes an answer of."""
        caller = self._verifier.check(request.headers.get("Authorization", ""), request.method, request.path, self._now_ms())
        name = caller.instance.name
        work = _Work(name, partial(self._charge, name, CPU_MS))
        _WORK.set(work)
        METER.set(work.add)
        CHECKS.set(partial(self._charge, name, SIGNATURES))
        introduce(request, name)
        self._budgets.admit(name, self._now_ms())
        with _place(self._streams if streams else self._busy, name), self._budgets.room(name) as take:
            body = await self._body(request, bytes_max, take)
            self._charge(name, BODY_BYTES, len(body))
            if await aside(len(body), partial(body_digest, body)) != caller.body_digest:
                raise NotAuthorised(f"{name}: the body is not the one that was signed")
            yield caller.instance, body

    async def refusal(self, request: web.Request, error: Exception) -> web.Response:
        """The answer to a request that did not pass, or could not be answered."""
        work = _WORK.get(None)
        who = STRANGERS if work is None else work.name
        if isinstance(error, NotAuthorised):
            self.tell(who, logging.INFO, f"refused a request from {request.remote}: {error}")
            return _closing(web.Response(status=401))  # and not a byte of the body is read
        if isinstance(error, ProtocolError):
            self.tell(who, logging.WARNING, f"{who} {request.path}: {error}")
            return web.Response(status=400, text=wire.clean(str(error)))
        if isinstance(error, Exhausted):
            metrics.LIMIT_HITS.labels(error.limit).inc()
            self.tell(who, logging.WARNING, f"{who} is asked to come later: {error}")
            await asyncio.sleep(EXHAUSTED_S)
            return _closing(web.Response(status=429, text=str(error), headers={"Retry-After": str(error.retry_s)}))
        if isinstance(error, TransportError):
            return web.Response(status=503, text=str(error), headers={"Retry-After": str(RETRY_AFTER_S)})
        self.tell(who, logging.ERROR, f"could not answer {who} {request.path}: {type(error).__name__}: {wire.clean(str(error))}")
        logger.debug("could not answer", exc_info=error)
        return web.Response(status=503, headers={"Retry-After": str(RETRY_AFTER_S)})

    @contextmanager
    def segments(self, name: str, frames: list[bytes]) -> Iterator[None]:
        """Room for the segments that the peer `name` brought, until they are durable. Raises Exhausted."""
        with self._budgets.room(name) as take:
            take(sum(map(len, frames)), len(frames))
            yield

    def brought(self, name: str, count: int, new: int) -> None:
        """Of `count` segments that the peer `name` brought, `new` were new: what these cost is given back."""
        self._charge(name, SIGNATURES, count - new)
        self._charge(name, CPU_MS, -_WORK.get().ms * new / max(1, count))

    def _charge(self, name: str, budget: str, amount: float) -> None:
        self._budgets.charge(name, budget, amount, self._now_ms())

    async def _body(self, request: web.Request, bytes_max: int, take: Take) -> bytes:
        if "Content-Encoding" in request.headers:
            metrics.LIMIT_HITS.labels("encoding").inc()
            raise web.HTTPUnsupportedMediaType(text="bodies are sent without Content-Encoding")
        try:
            return await _read(request, bytes_max, self._body_s_max, take)
        except asyncio.TimeoutError:
            metrics.LIMIT_HITS.labels("body_rate").inc()
            raise web.HTTPRequestTimeout(text=f"the body came too slowly, or took longer than {self._body_s_max:g} s") from None
        except ConnectionError:
            raise web.HTTPBadRequest(text="the body was cut short") from None

    def tell(self, who: str, level: int, text: str) -> None:
        """Log a refusal; any number of them can be caused, so of many only some are told."""
        now_ms, bucket = self._now_ms(), self._told[who]
        if bucket.wait_ms(now_ms):
            self._untold[who] += 1
            return
        bucket.charge(1, now_ms)
        untold = self._untold.pop(who, 0)
        logger.log(level, "%s%s", text, f" ({untold} refusals before it were not told)" if untold else "")


@contextmanager
def _place(places: Counter[str], name: str) -> Iterator[None]:
    """One of the places for requests. Raises TransportError when all are taken."""
    if places[name] >= PEER_EXCHANGES_MAX or sum(places.values()) >= EXCHANGES_MAX:
        metrics.LIMIT_HITS.labels("places").inc()
        raise TransportError(f"busy with {places[name]} requests of {name} and {sum(places.values())} in all")
    places[name] += 1
    try:
        yield
    finally:
        places[name] -= 1


async def _read(request: web.Request, bytes_max: int, s_max: float, take: Take) -> bytes:
    """The body, of which never more than `bytes_max` and one read buffer are held. Raises HTTPRequestEntityTooLarge, TimeoutError,
    Exhausted."""
    if request.content_length is not None and request.content_length > bytes_max:
        raise _too_large(bytes_max, request.content_length)
    body, loop = bytearray(), asyncio.get_running_loop()
    begun = loop.time()
    while not request.content.at_eof():
        left_s = begun + body_s_max(len(body), s_max) - loop.time()
        piece = await asyncio.wait_for(request.content.readany(), max(0.0, left_s))
        take(len(piece))
        body += piece
        if len(body) > bytes_max:
            raise _too_large(bytes_max, len(body))
    return bytes(body)


def _too_large(bytes_max: int, actual: int) -> web.HTTPException:
    metrics.LIMIT_HITS.labels("body_size").inc()
    return web.HTTPRequestEntityTooLarge(max_size=bytes_max, actual_size=actual)


def _closing(response: web.Response) -> web.Response:
    response.force_close()
    return response
