"""`python -m nsync.testing`: tell the stories of some seeds, or of all there are."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import Optional

from nsync.errors import ConfigError
from nsync.testing import Failed, Simulation
from nsync.testing.faults import KINDS

TOLD_S = 60.0
"""How often to say how far it has come."""
NAMED_MAX = 20
"""Failing seeds named in the sum: each was told in full."""


def main(arguments: Optional[list[str]] = None) -> int:
    """Exit code 1 when a seed failed, 2 when what is asked for makes no sense."""
    asked = _parser().parse_args(arguments)
    seeds: Iterable[int] = itertools.count(asked.seeds.start) if asked.forever else asked.seeds
    kinds = asked.faults.split(",") if asked.faults else None
    failing: list[int] = []
    happened: Counter[str] = Counter()
    told, begun = 0, time.monotonic()
    last = begun
    try:
        for seed in seeds:
            try:
                story = Simulation(seed, asked.peers, kinds).run()
                happened.update(story.faults)
                happened.update({f"end at {place}": count for place, count in story.places.items()})
            except Failed as failure:
                failing.append(seed)
                print(f"seed {seed} FAILS: {failure}\n", flush=True)
            told += 1
            if time.monotonic() - last > TOLD_S:
                last = time.monotonic()
                print(_sum(told, last - begun, failing), flush=True)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    for what, count in sorted(happened.items()):
        print(f"{count:8d}  {what}")
    print(_sum(told, time.monotonic() - begun, failing))
    return 1 if failing else 0


def _sum(told: int, seconds: float, failing: list[int]) -> str:
    rate = f"{told} seeds in {seconds:.1f} s, {told / max(seconds, 1e-9):.2f} a second; "
    named = ", ".join(map(str, failing[:NAMED_MAX])) + (", …" if len(failing) > NAMED_MAX else "")
    return rate + (f"{len(failing)} FAIL: {named}" if failing else "all hold")


def _seeds(text: str) -> range:
    """One seed, or a range with both ends: `1-100`."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nsync.testing", description=__doc__.partition(": ")[2] if __doc__ else None)
    parser.add_argument("seeds", nargs="?", type=_seeds, default=range(100), help="one seed, or a range as 1-100 (0-99)")
    parser.add_argument("--forever", action="store_true", help="go on from the first seed until it is stopped")
    parser.add_argument("--peers", type=int, help="instances in each story (drawn: 3 to 5)")
    parser.add_argument("--faults", help=f"kinds of fault, with commas between them (drawn): {', '.join(KINDS)}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
