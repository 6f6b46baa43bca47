"""One seed, one story: instances on virtual time, faults first, then peace, and everything must come right.

For FAULTS_S, or until each has happened, everything goes wrong that the story has (faults.KINDS), and users go on publishing. Then
the network heals, clocks are right, whoever was down is up; hostile instances stay hostile, and the departed stay away.
Within HEALED_S_MAX the honest ones must hold the same logs. Then all clocks go past the latest stamp, what was held for its stamp
must be applied, and all rows must be the same, and right (oracles). While it goes on the ledger checks every step.

HEALED_S_MAX is no more than what the transport promises: an exchange that hangs (30 s), the longest back-off (60 s), the longest
interval (7.5 s), and what then travels.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Optional

from nsync.errors import ConfigError
from nsync.testing import faults, oracles
from nsync.testing.director import Cast, Director, cast
from nsync.testing.faults import Dice
from nsync.testing.federation import federation
from nsync.testing.host import Host, is_quiet
from nsync.testing.ledger import Broken, Ledger, hold
from nsync.testing.stage import Stage
from nsync.testing.trace import Trace
from nsync.testing.virtual import run

FAULTS_S = 60.0
HEALED_S_MAX = 110.0
PEERS = (3, 3, 3, 4, 5)
LOOK_S = 0.5
LINES_SHOWN = 40
STAYING_MIN = 2


@dataclass(frozen=True)
class Story:
    """What one seed told."""

    seed: int
    peers: int
    faults: Mapping[str, int]
    """How often each kind came to pass."""
    places: Mapping[str, int]
    """Where processes ended."""
    changesets: int
    requests: int
    floors: int
    """How many were decided."""
    held: int
    """Segments that waited for the clock when everybody agreed."""
    healed_s: float
    """From the end of the faults until the honest instances agreed."""
    virtual_s: float
    trace: tuple[str, ...]
    trace_hash: str


class Failed(AssertionError):
    """A seed that shows a bug. The text tells how it came about, and how to see it again."""


class Simulation:
    """Run it with `run`. The number of peers and the kinds of fault follow from the seed, unless they are given."""

    def __init__(self, seed: int, peers: Optional[int] = None, kinds: Optional[Collection[str]] = None) -> None:
        """Raises ConfigError for faults that there are none of, or more than so few peers can have."""
        rng = random.Random(f"{seed}/plan")  # noqa: S311 - a story, no secret
        drawn = faults.draw(rng) if kinds is None else frozenset(kinds)
        unknown = sorted(drawn - set(faults.KINDS))
        if unknown:
            raise ConfigError(f"there are no faults called {', '.join(unknown)}; see nsync.testing.faults")
        needed = STAYING_MIN + bool(drawn & set(faults.HOSTILE)) + ("departure" in drawn)
        if peers is not None and peers < needed and kinds is None:
            drawn -= {"departure"} if peers == needed - 1 else drawn
        elif peers is not None and peers < needed:
            raise ConfigError(f"these faults leave fewer than {STAYING_MIN} of {peers} peers; have {needed}")
        self.seed = seed
        self.peers = peers or max(needed, rng.choice(PEERS))
        self.kinds = drawn
        self._rng = rng

    def run(self) -> Story:
        """The story of the seed. Raises Failed."""
        with _quiet():
            return run(self._tell())

    async def _tell(self) -> Story:
        loop = asyncio.get_running_loop()
        members = federation(self.peers)
        parts = cast(tuple(members.keys), self.kinds, self._rng)
        trace = Trace(loop.time)
        dice = Dice(self.kinds, random.Random(f"{self.seed}/dice"), FAULTS_S / 2, loop.time)  # noqa: S311 - a story, no secret
        ledger = Ledger(members, [name for name in parts.names if name != parts.hostile])
        stage = Stage(self.seed, members, dice, trace, ledger)
        try:
            return await self._acts(stage, parts)
        except (Exception, asyncio.CancelledError) as error:
            cause = stage.failure or error
            if not isinstance(cause, Exception):
                raise
            raise Failed(self._report(trace, cause)) from cause

    async def _acts(self, stage: Stage, parts: Cast) -> Story:
        trace = stage.trace
        trace.say(f"seed {self.seed}: {parts}, faults: {', '.join(sorted(self.kinds)) or 'none'}")
        director = Director(stage, parts, FAULTS_S)
        staying = [director.hosts[name] for name in parts.staying]
        try:
            await director.play()
            director.heal()
            healed_s = await _agree(stage, staying)
            held = sum(not row.is_applied for row in staying[0].peer.rows())
            _past_the_latest_stamp(stage, list(director.hosts.values()))
            await _agree(stage, staying)
            for host in staying:
                host.collect()
            oracles.check_agreement(staying)
            oracles.check_released(stage.ledger, staying)
            oracles.check_kept(stage.ledger, staying)
            oracles.check_silence(stage.ledger, staying)
            oracles.check_voice(stage.ledger, staying)
            floors = len(staying[0].peer.floors())
            if staying[0].peer.is_whole():  # what only hostile ones are left to have is lost to all
                oracles.check_catalogue(staying[0].name, staying[0].peer, stage.ledger.whole)
            never = stage.dice.never_happened()
            hold(not never, f"the story was to have {', '.join(never)}, and that never happened")
            trace.say(f"all agree on {_digest(staying[0])}")
        finally:
            for host in director.hosts.values():
                host.close()
        return Story(
            self.seed,
            self.peers,
            dict(sorted(stage.dice.counts.items())),
            dict(sorted(stage.places.items())),
            stage.ledger.published,
            stage.network.carried,
            floors,
            held,
            healed_s,
            asyncio.get_running_loop().time(),
            tuple(trace.lines),
            trace.hash,
        )

    def _report(self, trace: Trace, cause: Exception) -> str:
        what = str(cause) if isinstance(cause, Broken) else f"{type(cause).__name__}: {cause}"
        again = f"python -m nsync.testing {self.seed} --peers {self.peers} --faults {','.join(sorted(self.kinds))}"
        return "\n".join([what, "", *trace.lines[-LINES_SHOWN:], "", f"To see it again: {again}"])


async def _agree(stage: Stage, hosts: Sequence[Host]) -> float:
    """Wait until `hosts` hold the same logs and have nothing to do. Returns the virtual seconds. Raises Broken when it takes too long."""
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    while not is_quiet(hosts) or any([host.settle() for host in hosts]):
        waited_s = loop.time() - begun_s
        hold(waited_s < HEALED_S_MAX, f"after {waited_s:.0f} s without faults the logs are not the same: {_heads(hosts)}")
        await asyncio.sleep(LOOK_S)
    stage.trace.say("the honest instances hold the same logs")
    return loop.time() - begun_s


def _past_the_latest_stamp(stage: Stage, hosts: Sequence[Host]) -> None:
    ahead_ms = stage.ledger.max_stamp_ms() - hosts[0].now_ms()
    if ahead_ms > 0:
        stage.trace.say(f"all clocks go on by {ahead_ms} ms")
        for host in hosts:
            host.skew_ms += ahead_ms
            host.wake()


def _digest(host: Host) -> str:
    return hashlib.blake2b(repr(host.peer.tables()).encode(), digest_size=16).hexdigest()


def _heads(hosts: Sequence[Host]) -> str:
    heads = ", ".join
    return "; ".join(f"{host.name} has " + heads(f"{h.author.hex()[:8]} {h.seq}" for h in host.peer.heads()) for host in hosts)


@contextmanager
def _quiet() -> Iterator[None]:
    """What would be logged about peers that lie, and about what they withhold, is what the story is about."""
    loggers = [logging.getLogger(name) for name in ("nsync.transport.gossip", "nsync.store.repair")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before):
            logger.disabled = disabled
