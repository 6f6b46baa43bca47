"""What all parts of a simulation share: the federation, the dice, the ledger, the trace, and where a failure is reported."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any, Optional

from nsync.testing.faults import Dice
from nsync.testing.federation import Federation
from nsync.testing.ledger import Ledger
from nsync.testing.network import Network
from nsync.testing.trace import Trace


class Stage:
    """One per story; made in the task that tells it."""

    def __init__(self, seed: int, federation: Federation, dice: Dice, trace: Trace, ledger: Ledger) -> None:
        self.seed = seed
        self.federation = federation
        self.dice = dice
        self.trace = trace
        self.ledger = ledger
        self.network = Network(dice, self.rng("network"))
        self.places: Counter[str] = Counter()
        """Where processes ended."""
        self.failure: Optional[BaseException] = None
        self._teller = asyncio.current_task()

    def rng(self, *names: object) -> random.Random:
        """A stream of random numbers of its own, so that one part's draws do not move another's."""
        return random.Random("/".join(map(str, (self.seed, *names))))  # noqa: S311 - a story, no secret

    def fail(self, error: BaseException) -> None:
        """The story ends here; the first failure is the one that counts."""
        if self.failure is None and self._teller is not None:
            self.failure = error
            self._teller.cancel()

    def ended(self, task: asyncio.Task[Any]) -> None:
        """A task of a host has ended: by a crash, or by a bug."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.fail(error)
