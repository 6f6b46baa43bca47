"""Who does what, and when: the events of a story, drawn from its seed before it begins.

An event that is not possible when its time comes (the process is down) is tried again a second later. Faults that strike by
chance, message by message, are the dice's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Callable, NamedTuple, Optional

from nsync.authority.charter import Place
from nsync.log.stored import BEGINNING
from nsync.testing.faults import ATTACKS, HOSTILE
from nsync.testing.federation import Federation, amended
from nsync.testing.host import PLACES, Host
from nsync.testing.hostile import HostileHost
from nsync.testing.peer import Image
from nsync.testing.stage import Stage
from nsync.testing.workload import Workload

CHANGESETS = (6, 11)
LONG_SHARE = 0.1
"""Stories with a changeset of several segments; each costs as much as some tens of others."""
SKEWS_MS = (1_000, 59_000, 61_000, 300_000, 3_600_000, 31_536_000_000)
STEPS_MAX = 12
"""How many steps ahead a crash is planned."""
OPENING_S_MAX = 10.0
"""When the home in whose scopes they meet grants the first rights."""
RETRY_S = 1.0
GONE_OVER_S_MAX = 30.0
"""How long an operator takes over a new charter."""
BURSTS_MAX = 20
BURST_S = 5.0
ALONE_S = 5.0
"""How long a restored instance that does not wait is cut off."""

Act = Callable[[], bool]
"""Does what is to be done; tells whether that was possible."""


class Event(NamedTuple):
    at_s: float
    act: Act


class Cast(NamedTuple):
    """Who plays which part. All others are honest and stay."""

    names: tuple[str, ...]
    hostile: Optional[str]
    departing: Optional[str]

    @property
    def staying(self) -> list[str]:
        """The honest instances that are there at the end."""
        return [name for name in self.names if name not in (self.hostile, self.departing)]


def cast(names: Sequence[str], kinds: frozenset[str], rng: random.Random) -> Cast:
    """Draw the parts that `kinds` need."""
    hostile = rng.choice(names) if kinds & set(HOSTILE) else None
    departing = rng.choice([name for name in names if name != hostile]) if "departure" in kinds else None
    return Cast(tuple(names), hostile, departing)


class Director:
    """Makes the hosts and plays the events."""

    def __init__(self, stage: Stage, parts: Cast, until_s: float) -> None:
        self._stage = stage
        self._rng = stage.rng("director")
        self._until_s = until_s
        self._workload = Workload(stage.rng("workload"), parts.names)
        self._images: dict[str, Image] = {}
        self._amended: dict[str, Federation] = {}
        """Who has not gone over to the amended charter yet."""
        self.hosts = {name: self._host(name, name == parts.hostile) for name in parts.names}
        stage.network.hosts.update(self.hosts)
        self._hostile = self.hosts.get(parts.hostile or "")
        self._departing = self.hosts.get(parts.departing or "")
        self._honest = [host for host in self.hosts.values() if host is not self._hostile]

    def _host(self, name: str, hostile: bool) -> Host:
        return HostileHost(self._stage, name, self._workload) if hostile else Host(self._stage, name)

    async def play(self) -> None:
        """Start everybody, and let the events happen."""
        for host in self.hosts.values():
            host.boot()
        events = sorted((*self._users(), *self._faults()), key=lambda event: event.at_s)
        loop = asyncio.get_running_loop()
        while events:
            event = events.pop(0)
            await asyncio.sleep(max(0.0, event.at_s - loop.time()))
            if not event.act() and event.at_s < self._until_s - RETRY_S:
                events = sorted([*events, event._replace(at_s=loop.time() + RETRY_S)], key=lambda e: e.at_s)
        await asyncio.sleep(self._until_s - loop.time())
        for _ in range(BURSTS_MAX):
            if not self._stage.dice.never_happened():
                break
            await self._burst()

    async def _burst(self) -> None:
        """What strikes messages has not had its opportunity yet: let there be some."""
        for host in [host for host in self.hosts.values() for _ in range(3)]:
            self._publish(host, False)
        await asyncio.sleep(BURST_S)

    def heal(self) -> None:
        """The network is whole, clocks are right, everybody is up but the departed."""
        self._stage.trace.say("everything is healed")
        self._stage.dice.peace = True
        self._stage.network.heal()
        for host in self.hosts.values():
            self._go_over(host)
            host.heal()

    # ---- events

    def _users(self) -> Iterator[Event]:
        first = next(iter(self.hosts.values()))
        yield Event(self._rng.uniform(0, OPENING_S_MAX), partial(self._open, first))
        count = self._rng.randint(*CHANGESETS)
        long = self._rng.randrange(count) if self._rng.random() < LONG_SHARE else None
        for index in range(count):
            host = self._rng.choice(list(self.hosts.values()))
            yield Event(self._rng.uniform(0, 0.95 * self._until_s), partial(self._publish, host, index == long))

    def _faults(self) -> Iterator[Event]:
        """Each kind that is planned, one to three times; crashes twice as often, since there are many places for them."""
        plans: dict[str, Act] = {"partition": self._partition, "crash": self._crash, "skew": self._skew}
        plans.update({kind: partial(self._attack, kind) for kind in ATTACKS})
        for kind, act in plans.items():
            times = self._rng.randint(1, 3) * (1 + (kind == "crash"))
            for _ in range(times if kind in self._stage.dice.kinds else 0):
                yield Event(self._rng.uniform(0.05, 0.8) * self._until_s, act)
        for kind in ("restore", "amnesia"):
            if kind in self._stage.dice.kinds:
                host = self._rng.choice([host for host in self._honest if host is not self._departing])
                yield Event(self._rng.uniform(0.05, 0.3) * self._until_s, partial(self._back_up, kind, host))
                yield Event(self._rng.uniform(0.5, 0.8) * self._until_s, partial(self._restore, kind, host))
        if "succession" in self._stage.dice.kinds:
            yield Event(self._rng.uniform(0.3, 0.8) * self._until_s, self._succeed)
        if self._departing is not None:
            yield Event(self._rng.uniform(0.3, 0.9) * self._until_s, self._depart)

    def _open(self, host: Host) -> bool:
        return self._say(host, self._workload.opening(host.name))

    def _publish(self, host: Host, long: bool) -> bool:
        return self._say(host, self._workload.changeset(host.name, long))

    def _say(self, host: Host, ops: Sequence[bytes]) -> bool:
        published = host.publish(ops)
        if published is not None:
            self._workload.published(host.name, published.author, published.first, ops)
        return host.up

    def _partition(self) -> bool:
        """Cut one instance off, or some links, each in one direction or in both."""
        names = list(self.hosts)
        alone = self._rng.choice(names)
        links = [(a, b) for a in names for b in names if a != b]
        shapes = (
            [link for link in links if alone in link],
            [link for link in links if link[0] == alone],
            [link for link in links if link[1] == alone],
            self._rng.sample(links, self._rng.randint(1, len(links) - 1)),
        )
        cut, seconds = self._rng.choice(shapes), self._rng.uniform(3, 20)
        self._stage.trace.say(f"for {seconds:.1f} s no way from " + ", ".join(f"{a} to {b}" for a, b in cut))
        self._stage.dice.counts["partition"] += 1
        self._stage.network.cut(cut, seconds)
        return True

    def _crash(self) -> bool:
        up = [host for host in self._honest if host.up and not host.is_armed]
        if up:
            aimed = self._rng.randrange(2)
            host, steps, place = self._rng.choice(up), self._rng.randint(1, STEPS_MAX), self._rng.choice(PLACES)
            host.arm(*((1, place) if aimed else (steps,)))
        return bool(up)

    def _skew(self) -> bool:
        host = self._rng.choice(self._honest)
        host.skew_ms = self._rng.choice(SKEWS_MS) * self._rng.choice((1, 1, -1)) if self._rng.randrange(4) or not host.skew_ms else 0
        self._stage.trace.say(f"the clock of {host.name} is {host.skew_ms} ms ahead")
        self._stage.dice.counts["skew"] += 1
        return True

    def _attack(self, kind: str) -> bool:
        assert isinstance(self._hostile, HostileHost), "whoever attacks is cast"
        self._hostile.attack(kind)
        return True

    def _back_up(self, kind: str, host: Host) -> bool:
        self._images[kind] = host.peer.image()
        return True

    def _restore(self, kind: str, host: Host) -> bool:
        """Put the backup in the place of the database; for amnesia its users go on at once, and nobody can reach it."""
        others = [other for other in self.hosts.values() if other is not host and not other.gone]
        self._stage.dice.counts[kind] += 1
        host.hasty = host.hasty or kind == "amnesia"
        host.restore(self._images[kind], others)
        if kind == "restore":
            asyncio.get_running_loop().call_later(self._rng.uniform(0.5, 5), host.again, host.life)
            return True
        links = [link for other in self.hosts for link in ((host.name, other), (other, host.name))]
        self._stage.network.cut(links, ALONE_S)
        host.boot()
        return self._publish(host, False)

    def _succeed(self) -> bool:
        """End the log of an instance where the one who has most of it has applied it; one that may not sign is served first."""
        staying = [host for host in self._honest if host is not self._departing]
        silent = [host for host in staying if host.peer.read_only() is not None]
        heir = self._rng.choice(silent or staying)
        heads = [head for host in staying for head in host.peer.applied_heads() if head.author == heir.me.author]
        last = max(heads, key=lambda head: (head.seq, head.hash), default=None)
        members = amended(self._stage.federation, heir.name, BEGINNING if last is None else Place(last.seq, last.hash))
        self._stage.trace.say(f"the charter ends the log of {heir.name} at {0 if last is None else last.seq}")
        self._stage.dice.counts["succession"] += 1
        self._stage.ledger.succeeded(heir.name, members.instance(heir.name).author)
        for host in self.hosts.values():
            self._amended[host.name] = members
            asyncio.get_running_loop().call_later(self._rng.uniform(0, GONE_OVER_S_MAX), self._go_over, host)
        return True

    def _go_over(self, host: Host) -> None:
        members = self._amended.pop(host.name, None)
        if members is not None:
            host.amend(members)

    def _depart(self) -> bool:
        assert self._departing is not None, "whoever departs is cast"
        self._departing.depart()
        self._stage.dice.counts["departure"] += 1
        return True
