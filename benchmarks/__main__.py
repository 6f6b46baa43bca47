"""Measure, print, and keep the numbers.

python -m benchmarks                     # all rows at 10 million entries, and the table in docs/BENCHMARKS.md
python -m benchmarks --quick             # all rows at 100 000, in some ten minutes
python -m benchmarks codec verify_ops    # families or rows whose names begin so
python -m benchmarks --entries 200000 bridge.pg    # one of the bridge's families, with a tenth as many files
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import bridge, bridge_capture, bridge_scale, codec, gossip, ingest, postgres, push, repair, rivals, rows, wire
from benchmarks.rows import Row, not_run, say

ENTRIES, QUICK_ENTRIES = 10_000_000, 100_000
LEFT_OUT = "left out of this run"

FAMILIES: dict[str, tuple[Sequence[str], Callable[[Path, int], Iterator[Row]]]] = {
    "codec": (codec.NAMES, codec.measure),
    "wire": (wire.NAMES, wire.measure),
    "gossip": (gossip.NAMES, gossip.measure),
    "push": (push.NAMES, push.measure),
    "repair": (repair.NAMES, repair.measure),
    "rivals": (rivals.NAMES, rivals.measure),
    "ingest": (ingest.NAMES, ingest.measure),
    "postgres": (postgres.NAMES, postgres.measure),
    "bridge.pg": (bridge.NAMES_PG, bridge.measure_pg),
    "bridge.sqlite": (bridge.NAMES_SQLITE, bridge.measure_sqlite),
    "bridge.client": (bridge.NAMES_CLIENT, bridge.measure_client),
    "bridge.capture": (bridge_capture.NAMES, bridge_capture.measure),
    "bridge.publish": (bridge_scale.NAMES_PUBLISH, bridge_scale.measure_publish),
    "bridge.receive": (bridge_scale.NAMES_RECEIVE, bridge_scale.measure_receive),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"families ({', '.join(FAMILIES)}) or rows; all when there is none")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ENTRIES:,} entries instead of {ENTRIES:,}")
    parser.add_argument("--entries", type=int, help="as many entries")
    parser.add_argument("--document", action="store_true", help="write the table to docs/BENCHMARKS.md; without NAME and --quick it is")
    parser.add_argument("--directory", type=Path, help="where databases and logs lie while they are measured; must be on a disk")
    options = parser.parse_args()
    entries = options.entries or (QUICK_ENTRIES if options.quick else ENTRIES)
    chosen = [name for name in FAMILIES if not options.names or _wanted(name, options.names)]
    if not chosen:
        parser.error(f"no family or row is called {' or '.join(options.names)}")
    found: list[Row] = []
    for name in chosen:
        with tempfile.TemporaryDirectory(dir=options.directory) as directory:
            found += run(name, Path(directory), entries)
    for name in (name for name in FAMILIES if name not in chosen):
        found += not_run(FAMILIES[name][0], LEFT_OUT)
    whole = not options.names and not options.quick
    rows.write(found, entries, chosen, "python -m benchmarks " + " ".join(sys.argv[1:]), options.document or whole)
    print(rows.table([row for row in found if row.value is not None or row.not_run != LEFT_OUT]))
    return 0 if all(row.value is not None or row.not_run == LEFT_OUT for row in found) else 1


def _wanted(family: str, names: Sequence[str]) -> bool:
    return any(known.startswith(name) for name in names for known in (family, *FAMILIES[family][0]))


def run(family: str, directory: Path, entries: int) -> list[Row]:
    """The rows of a family. One that fails leaves its other rows standing, and says why."""
    names, measure = FAMILIES[family]
    found: list[Row] = []
    try:
        for row in measure(directory, entries):
            say(rows.table([row]).splitlines()[-1])
            found.append(row)
    except Exception as error:
        say(f"{family}: {type(error).__name__}: {str(error)[:2000]}")
        done = {row.name for row in found}
        found += not_run([name for name in names if name not in done], f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return found


if __name__ == "__main__":
    sys.exit(main())
