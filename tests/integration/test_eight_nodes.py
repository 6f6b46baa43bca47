"""Eight nodes, real processes and sockets, and a network that does all that networks do: they converge, and nothing is lost.

`NSYNC_EIGHT_NODES_S` makes the faults of the long story last so many seconds; CI's last some.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import Iterable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_transport import on_a_loop
from tests.support.lones import EIGHT, Lones, Process
from tests.support.proxy import Faults, Link

SEED = 20_250_601
FAULTS_S = float(os.environ.get("NSYNC_EIGHT_NODES_S", "10"))
PAUSE_S = 0.25
"""Between two publications."""
SETTLE_S_MAX = 120.0
"""After the faults; mostly some seconds, and a peer that was silent is given up after 30 s."""
VISIBLE_S_MAX = 30.0

LINKS: Sequence[Link] = tuple(permutations(EIGHT, 2))
MIXTURE = Faults({"slow": 0.25, "cut": 0.25, "half-open": 0.04, "reset": 0.15, "overtaken": 0.1})
KINDS = {*MIXTURE.shares, "lost"}
CUT_OFF = Faults({"reset": 1.0})
CUT_OFF_S = 4.0

STATED = (
    r"INFO nsync\.",
    r"WARNING nsync\.transport\.gossip: peer (?P<peer>\w+): (?P=peer) \(http://[\d.:]+/nsync/v1/\w+\) "
    r"(could not be reached|did not answer in time|is not able to answer now: (408|429|503))",
)
"""What a log may hold: an exchange that failed says with whom, and how."""


def unstated(processes: Iterable[Process]) -> list[str]:
    """Lines of their logs that are not in STATED."""
    lines = (f"{process.name}: {line}" for process in processes for line in process.said().splitlines())
    return [line for line in lines if not any(re.match(r"\w+: " + stated, line) for stated in STATED)]


def whole(states: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Where the log of each author ends, if all are stored without a gap, and once."""
    ends: dict[str, int] = {}
    for author, first, last, _ in states[0]["stored"]:
        assert first == ends.get(author, 0) + 1, f"{author} has {first} after {ends.get(author, 0)}"
        ends[author] = last
    return ends


async def publish(lones: Lones, rng: random.Random, seconds: float) -> dict[str, int]:
    """Let random instances publish for so long; how far each log had come at the last time."""
    ends: dict[str, int] = {}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        size = {"big_ops": rng.randint(1, 3), "size": 20_000} if rng.randrange(4) == 0 else {}
        said = await lones[rng.choice(EIGHT)].ask("publish", **size)
        ends[said["author"]] = said["last"]
        await asyncio.sleep(PAUSE_S)
    return ends


async def faults(lones: Lones, rng: random.Random, seconds: float) -> None:
    """Draw anew all the time which links are faulty, and which lose everything; at last cut the federation into halves."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        lones.proxy.heal()
        lones.proxy.set(MIXTURE, rng.sample(LINKS, len(LINKS) * 3 // 4))
        lones.proxy.lost.update(rng.sample(LINKS, 3))
        await asyncio.sleep(rng.uniform(1, 3))
    half = set(rng.sample(EIGHT, len(EIGHT) // 2))
    lones.proxy.set(CUT_OFF, [(one, other) for one, other in LINKS if (one in half) != (other in half)])
    await asyncio.sleep(CUT_OFF_S)


@pytest.mark.timeout(300 + 2 * FAULTS_S)
def test_eight_nodes_converge_after_every_kind_of_fault(tmp_path: Path) -> None:
    asyncio.run(_converge(tmp_path))


async def _converge(directory: Path) -> None:
    rng = random.Random(SEED)
    async with Lones(directory, EIGHT, SEED) as lones:
        await lones.start()
        _, ends = await asyncio.gather(faults(lones, random.Random(SEED + 1), FAULTS_S), publish(lones, rng, FAULTS_S + CUT_OFF_S))
        assert len({str(state["stored"]) for state in await lones.states()}) > 1, "there is nothing to converge"
        lones.proxy.heal()
        states = await lones.settled(SETTLE_S_MAX)
        found = whole(states)
        assert {author: found.get(author, 0) >= end for author, end in ends.items()} == dict.fromkeys(ends, True)
        assert [state["read_only"] for state in states] == [None] * len(EIGHT)
        assert set(lones.proxy.struck) == KINDS, "a kind of fault never struck"
        for process in lones.all:
            await process.stop()
        assert unstated(lones.all) == []


@on_a_loop
async def test_a_push_becomes_visible_everywhere(tmp_path: Path) -> None:
    """How fast is a benchmark's to say (benchmarks/push.py)."""
    async with Lones(tmp_path, EIGHT, SEED, interval_s=1000.0) as lones:
        await lones.start()
        for name in EIGHT[:3]:
            said = await lones[name].ask("publish")
            await asyncio.wait_for(_visible(lones, said["author"], said["last"]), VISIBLE_S_MAX)


async def _visible(lones: Lones, author: str, last: int) -> None:
    for process in lones.all:
        while not any(seen[0] == author and seen[1] >= last for seen in (await process.ask("visible"))["visible"]):
            await asyncio.sleep(0.05)
