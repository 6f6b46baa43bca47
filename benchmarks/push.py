"""How soon what one instance publishes is visible at all eight: real processes on this machine, without faults.

The processes are those of the tests (tests.support.lones); each reaches the others directly. From the moment in which an author is given its ops,
before it signs them, to the commit by which they take effect at the last of the eight.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
from collections.abc import Iterator
from pathlib import Path

from tests.support.lones import EIGHT, Lones

from benchmarks.rows import Row

NAMES = ("push_visible_p99_ms_8_nodes",)
PUBLICATIONS, QUICK_PUBLICATIONS = 120, 40
PAUSE_S = 1.0
"""Between two publications: it is the delay of one that is measured, not how many eight processes on one machine can bear."""
SETTLE_S_MAX = 60.0
SEED = 8


def measure(directory: Path, entries: int) -> Iterator[Row]:
    """The same for any number of `entries`, but that few are measured with fewer publications."""
    found = sorted(asyncio.run(_delays_ms(directory, PUBLICATIONS if entries > 100_000 else QUICK_PUBLICATIONS)))
    p99, worst = found[int(0.99 * len(found))], found[-1]
    what = (
        f"ms until a changeset is applied at the last of 8; {len(found)} of them, median {statistics.median(found):.0f}, worst {worst:.0f}; "
        f"load {os.getloadavg()[0]:.0f} on {os.cpu_count()} CPUs, these processes included"
    )
    yield Row(NAMES[0], p99, what)


async def _delays_ms(directory: Path, publications: int) -> list[float]:
    """Of each publication, the delay until it is visible at the last instance."""
    rng = random.Random(SEED)
    async with Lones(directory, EIGHT, SEED, proxied=False, interval_s=5.0) as lones:
        await lones.start()
        await lones.settled(SETTLE_S_MAX)
        said = []
        for _ in range(publications):
            said.append(await lones[rng.choice(EIGHT)].ask("publish"))
            await asyncio.sleep(PAUSE_S)
        await lones.settled(SETTLE_S_MAX)
        seen = [{(author, last): ns for author, last, ns in (await each.ask("visible"))["visible"]} for each in lones.all]
    return [(max(at[one["author"], one["last"]] for at in seen) - one["began_ns"]) / 1e6 for one in said]
