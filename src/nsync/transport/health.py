"""Whether this node is well, for whoever watches it: load balancers, orchestrators, operators.

    GET /health/live     200 {"alive": true}                    the event loop answers
    GET /health/ready    200 {"ready": true, "reasons": {}}     it can do all that it is for
                         503 {"ready": false, "reasons": {…}}   what it cannot do, by name, each with what to do

Anybody may ask, so nothing is told that is not for everybody: the texts are fixed ones, without paths, names or errors. And
asking is cheap: the checks run at most once in CHECK_S_MIN and once at a time, and whoever comes meanwhile gets the same answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Callable, Optional

from aiohttp import web

logger = logging.getLogger("nsync.transport.health")

CHECK_S_MIN = 1.0
"""How long one answer counts."""

CHECK_S_MAX = 5.0
"""How long the checks may take; the database is waited for no longer."""

Reasons = dict[str, str]
"""What is not well, and what to do about it; empty when all is well."""

SLOW = {"database": "the database does not answer; see the node's log"}


class Health:
    """The two routes. `check` is called on the event loop."""

    def __init__(self, check: Callable[[], Awaitable[Reasons]], s_max: float = CHECK_S_MAX) -> None:
        self._check = check
        self._s_max = s_max
        self._answer: Optional[asyncio.Task[Reasons]] = None
        self._until = 0.0

    def add_to(self, app: web.Application) -> None:
        """Let `app` answer both."""
        app.router.add_get("/health/live", self._live)
        app.router.add_get("/health/ready", self._ready)

    async def _live(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"alive": True})

    async def _ready(self, _: web.Request) -> web.StreamResponse:
        reasons = await self.reasons()
        return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def reasons(self) -> Reasons:
        """Why the node is not ready, as of now or a second ago."""
        now = asyncio.get_running_loop().time()
        if self._answer is None or (self._answer.done() and now >= self._until):
            self._until = now + CHECK_S_MIN
            self._answer = asyncio.ensure_future(self._look())
        return await asyncio.shield(self._answer)

    async def _look(self) -> Reasons:
        try:
            return await asyncio.wait_for(self._check(), self._s_max)
        except asyncio.TimeoutError:
            return SLOW
        except Exception:
            logger.exception("the node's health could not be told")
            return {"node": "its health cannot be told; see the node's log"}
