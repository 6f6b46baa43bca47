"""Fuzz for SECONDS: `python -m tests.fuzz SECONDS`, half of the time with msgpack's C extension, half without it.

With atheris installed (`pip install atheris`) the second half is led by coverage; else Hypothesis does both. What fails is
printed with its bytes.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz import wire
from tests.fuzz.targets import TARGETS


def with_hypothesis(seconds: float) -> None:
    end, rounds = time.monotonic() + seconds, 0
    unhurried = settings(
        max_examples=2000, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink)
    )
    while time.monotonic() < end:
        for target in TARGETS.values():
            unhurried(given(st.shared(wire.hostile(target.good), key=str(rounds)))(target.check))()
        rounds += 1
    print(f"{rounds * 2000} inputs for each of {', '.join(TARGETS)}")


def with_atheris(seconds: float) -> None:
    import atheris  # type: ignore[import-not-found]

    targets = list(TARGETS.values())

    def one(data: bytes) -> None:
        if data:
            targets[data[0] % len(targets)].check(data[1:])

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-max_total_time={int(seconds)}", "-max_len=4096"], one)
    atheris.Fuzz()


def main() -> int:
    if len(sys.argv) == 3:  # one of the two processes that the call below starts
        {"hypothesis": with_hypothesis, "atheris": with_atheris}[sys.argv[1]](float(sys.argv[2]))
        return 0
    half = str(float(sys.argv[1]) / 2)
    guided = "atheris" if importlib.util.find_spec("atheris") else "hypothesis"
    for pure, how in (("", "hypothesis"), ("1", guided)):
        print(f"{how}, msgpack {'in Python' if pure else 'in C'}, {half} s", flush=True)
        done = subprocess.run([sys.executable, "-m", "tests.fuzz", how, half], env={**os.environ, "MSGPACK_PUREPYTHON": pure})
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
