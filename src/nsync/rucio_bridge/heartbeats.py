"""The node in Rucio's table of heartbeats, as Rucio's own daemons are: for operators and monitoring, and nothing is decided by it.

A heartbeat that fails is told once, and tried again; the node goes on.
"""

from __future__ import annotations

import logging
import threading
from typing import Optional

from rucio.core import heartbeat
from rucio.daemons.common import HeartbeatHandler

LOG = logging.getLogger(__name__)

EXECUTABLE = "rucio-nsync"
BEAT_S = 10
"""Between two heartbeats. Rucio counts a daemon whose last one is ten times as old as gone."""


class Heartbeats:
    """Of this process. Every method is for any thread, one at a time."""

    def __init__(self, payload: str) -> None:
        """`payload`: what `rucio-admin` and monitoring show of this node besides host and process."""
        self._payload = payload
        self._thread = threading.current_thread()
        self._handler: Optional[HeartbeatHandler] = None
        self._failing = False

    def beat(self) -> None:
        """Say that this node lives."""
        try:
            if self._handler is None:
                self._handler = self._begin()
            self._handler.live(force_renew=True, payload=self._payload)
            self._failing = False
        except Exception as error:  # Rucio wraps what its database says, or not
            if not self._failing:
                LOG.warning("no heartbeat of this node is in Rucio's table, until this is over: %s", error)
            self._failing = True

    def _begin(self) -> HeartbeatHandler:
        handler = HeartbeatHandler(EXECUTABLE, BEAT_S)
        handler.hb_thread = self._thread
        heartbeat.sanity_check(executable=EXECUTABLE, hostname=handler.hostname)  # whoever died on this host is taken out
        return handler

    def die(self) -> None:
        """Take this node out of the table: it stops in order."""
        handler, self._handler = self._handler, None
        try:
            if handler is not None:
                handler.__exit__(None, None, None)
        except Exception as error:
            LOG.warning("the heartbeat of this node stays in Rucio's table: %s", error)
