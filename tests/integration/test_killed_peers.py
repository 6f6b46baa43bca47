"""Nodes are killed while they exchange, and links fail one way only: what is interrupted resumes, and nothing comes twice or is lost.

Real processes and sockets (tests.support.lones). How much came is counted in the network between them.
"""

from __future__ import annotations

import asyncio
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.lones import Lones, Process, until
from tests.support.proxy import Faults

SEED = 20_250_602
SETTLE_S_MAX = 60.0
NAMES = ("atlas", "cms", "belle2")

BIG_OPS, BIG_BYTES = 3, 50_000
"""Of a segment that hardly compresses: some 115 kB on the wire."""
SEGMENTS = 14
SLOW = Faults({"slow": 1.0}, latency_s=(0.0, 0.0), bytes_per_s=115_000.0)
"""About one segment a second, so that a kill finds one under way."""
LEGS_SEGMENTS = (4.0, 5.0)
"""What is carried before the first kill, and between two."""
KILLS = 2

RECEIVING = {
    # name: the how manieth time it is passed
    "receive-verified": 1,
    "intake-headers-written": 1,
    "intake-ops-written": 1,
    "log-segment-stored": 1,
    "receive-before-commit": 1,
    "receive-after-commit": 1,
    "work-locked": 2,
    "log-slots-joined": 1,
    "log-head-advanced": 2,
    "log-catalogue-shown": 1,
    "work-before-commit": 2,
    "work-after-commit": 2,
}
SENDING = {
    # the first transaction of a process finds nothing to do
    "publish-signed": 1,
    "log-head-advanced": 1,
    "work-before-commit": 2,
    "work-after-commit": 2,
    "serve-batch": 1,
}
DURABLE = 2
"""Of these, how many kill what is committed already."""
CHANGESETS = 3
"""That are waiting for the process that is to be killed over them."""

Stored = set[tuple[Any, ...]]


def stored(state: dict[str, Any]) -> Stored:
    """The segments of a state, none of which is there twice."""
    found = [tuple(row) for row in state["stored"]]
    places = {(author, first) for author, first, _, _ in found}
    assert len(places) == len(found), "a segment is stored twice"
    return set(found)


async def publish_big(process: Process, segments: int) -> None:
    for _ in range(segments):
        await process.ask("publish", big_ops=BIG_OPS, size=BIG_BYTES)


# ---- at random moments


@pytest.mark.parametrize(("victim", "again_max"), [("cms", 3.0), ("atlas", 2.5)], ids=["receiver", "sender"])
def test_an_exchange_whose_end_is_killed_resumes(tmp_path: Path, victim: str, again_max: float) -> None:
    """`atlas` has much that `cms` lacks. What comes again after a kill is measured in segments: the one under way, and one more
    that the receiver was about to write down, or that the sender pushes before `cms` knows that it is back."""
    asyncio.run(_kill(tmp_path, victim, again_max))


async def _kill(directory: Path, victim: str, again_max: float) -> None:
    rng = random.Random(SEED)
    async with Lones(directory, NAMES, SEED) as lones:
        lones.proxy.set(SLOW, [("atlas", "cms"), ("cms", "atlas")])
        await lones.start("atlas")
        await publish_big(lones["atlas"], SEGMENTS)
        segment_bytes = await _undisturbed_bytes(lones, "atlas", "belle2") / SEGMENTS
        await lones.start("cms")
        kept: Stored = set()
        for _ in range(KILLS):
            end = lones.proxy.carried["atlas", "cms"] + rng.uniform(*LEGS_SEGMENTS) * segment_bytes
            await until(partial(_has_carried, lones, end), SETTLE_S_MAX, lones.said)
            lones.proxy.sever(victim)
            await lones[victim].kill()
            await lones.start(victim)
            now = stored(await lones["cms"].ask("state"))
            assert kept < now, f"of {len(kept)} that were stored {len(kept - now)} are lost, and none is new"
            kept = now
        atlas, _ = await lones.settled(SETTLE_S_MAX, "atlas", "cms")
        assert len(stored(atlas)) == SEGMENTS
        again = lones.proxy.carried["atlas", "cms"] / segment_bytes - SEGMENTS
        assert again <= KILLS * again_max, f"{again:.1f} segments came twice\n{lones.said()}"


def _has_carried(lones: Lones, end: float) -> bool:
    return lones.proxy.carried["atlas", "cms"] >= end


async def _undisturbed_bytes(lones: Lones, author: str, newcomer: str) -> int:
    """What it costs to bring everything to a newcomer whom nobody disturbs."""
    await lones.start(newcomer)
    await lones.settled(SETTLE_S_MAX, author, newcomer)
    await lones[newcomer].stop()
    return lones.proxy.carried[author, newcomer]


# ---- at named places


def test_a_receiver_killed_between_any_two_steps_goes_on(tmp_path: Path) -> None:
    asyncio.run(_kill_receiver(tmp_path))


async def _kill_receiver(directory: Path) -> None:
    """Each process begins on what the one before it left, and is killed over what is waiting for it."""
    async with Lones(directory, NAMES[:2], SEED) as lones:
        await lones.start("atlas")
        for place, count in RECEIVING.items():
            for _ in range(CHANGESETS):
                await lones["atlas"].ask("publish")
            await lones["cms"].start(f"{place}:{count}")
            await lones["cms"].killed()
        await lones.start("cms")
        atlas, _ = await lones.settled(SETTLE_S_MAX)
        assert len(stored(atlas)) >= CHANGESETS * len(RECEIVING)


def test_a_sender_killed_between_any_two_steps_goes_on(tmp_path: Path) -> None:
    asyncio.run(_kill_sender(tmp_path))


async def _kill_sender(directory: Path) -> None:
    """What it had made durable before it was killed is at the receiver in the end, and its log goes on without a fork."""
    async with Lones(directory, NAMES[:2], SEED) as lones:
        await lones.start("cms")
        durable: Stored = set()
        for place, count in SENDING.items():
            await lones["atlas"].start(f"{place}:{count}")
            await lones["atlas"].ask_or_killed("publish")
            await lones["atlas"].killed()
            await lones.start("atlas")
            durable |= stored(await lones["atlas"].ask("state"))
            await lones.settled(SETTLE_S_MAX)
            await lones["atlas"].stop()
        await lones.start("atlas")
        said = await lones["atlas"].ask("publish")
        atlas, cms = await lones.settled(SETTLE_S_MAX)
        assert durable < stored(cms) and atlas["read_only"] is None
        assert len(durable) == DURABLE
        assert max(last for author, _, last, _ in stored(cms) if author == said["author"]) >= said["last"]


# ---- one way


def test_who_is_not_heard_is_heard_through_a_third(tmp_path: Path) -> None:
    asyncio.run(_one_way(tmp_path))


async def _one_way(directory: Path) -> None:
    """atlas hears cms, and cms hears nothing of what atlas says, whoever calls; belle2 and each of them hear each other."""
    async with Lones(directory, NAMES, SEED) as lones:
        lones.proxy.lost.add(("atlas", "cms"))
        await lones.start()
        for _ in range(3):
            for name in NAMES:
                await lones[name].ask("publish")
        states = await lones.settled(SETTLE_S_MAX)
        assert len({author for author, *_ in stored(states[0])}) == len(NAMES)
        assert lones.proxy.carried["atlas", "cms"] == 0 and lones.proxy.struck["lost"]
        assert lones.proxy.carried["belle2", "cms"], "through the third"
