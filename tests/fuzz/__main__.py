"""Fuzz for SECONDS: `python -m tests.fuzz SECONDS`, half of the time with msgpack's C extension, half without it.

With atheris installed (`pip install atheris`) the second half is led by coverage; else Hypothesis does both. What fails is
printed with its bytes.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz import wire
from tests.fuzz.targets import TARGETS

ROUND = 2000


def with_hypothesis(seconds: float) -> None:
    """New inputs, a round for each target after the other, until the time is over."""
    end, rounds = time.monotonic() + seconds, 0
    unhurried = settings(
        max_examples=ROUND, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink)
    )
    while time.monotonic() < end:
        for target in TARGETS.values():
            unhurried(given(wire.hostile(target.good))(target.check))()
        rounds += 1
    print(f"{rounds * ROUND} inputs for each of {', '.join(TARGETS)}")


def with_atheris(seconds: float) -> None:
    """Inputs that reach new code, from the vectors on; the first byte says which target the others are for. Ends the process."""
    import atheris  # type: ignore[import-not-found]

    targets, corpus = list(TARGETS.values()), Path(os.environ["NSYNC_FUZZ_CORPUS"])
    for index, target in enumerate(targets):
        for number, raw in enumerate(target.good):
            (corpus / f"{index}-{number}").write_bytes(bytes([index]) + raw)

    def one(data: bytes) -> None:
        if data:
            targets[data[0] % len(targets)].check(data[1:])

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-max_total_time={int(seconds)}", "-max_len=4096", f"-artifact_prefix={corpus}-", str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    if len(sys.argv) == 3:  # one of the two processes that are started below
        {"hypothesis": with_hypothesis, "atheris": with_atheris}[sys.argv[1]](float(sys.argv[2]))
        return 0
    half = str(float(sys.argv[1]) / 2)
    guided = "atheris" if importlib.util.find_spec("atheris") else "hypothesis"
    with tempfile.TemporaryDirectory() as corpus:
        for pure, how in (("", "hypothesis"), ("1", guided)):
            print(f"{how}, msgpack {'in Python' if pure else 'in C'}, {half} s", flush=True)
            environment = {**os.environ, "MSGPACK_PUREPYTHON": pure, "NSYNC_FUZZ_CORPUS": corpus}
            done = subprocess.run([sys.executable, "-m", "tests.fuzz", how, half], env=environment)
            if done.returncode:
                return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
