"""Where the seconds go when a dataset crosses: the slowest SQL statements and functions at the publisher and at the receiver.

    python -m benchmarks.bridge_profile [--files 5000] [--sqlite] [--functions 30]

The profiler makes Python slower than it is; the seconds within SQL statements are true.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmarks import instances
from benchmarks.bridge import crossing
from benchmarks.instances import on_postgres, on_sqlite, timed
from benchmarks.rows import Spent

STATEMENTS, STATEMENT_CHARS = 12, 160


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bridge_profile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--sqlite", action="store_true", help="in place of PostgreSQL")
    parser.add_argument("--functions", type=int, default=30, help="how many to list")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:

        def opened(name: str, shared: Sequence[str], like: Any) -> AbstractContextManager[Any]:
            return on_sqlite(Path(directory), name, shared, like) if options.sqlite else on_postgres(name, shared, like or "rucio")

        def publishing(atlas: Any, work: Callable[[], object]) -> Spent:
            return profiled("published at atlas, stored at cms", atlas, work, options.functions)

        with crossing(options.files, opened, publishing) as (_, ready), opened("cms", (), ready) as cms:
            profiled("applied at cms", cms, cms.work, options.functions)
            assert instances.count(cms) == options.files


def profiled(title: str, instance: Any, work: Callable[[], object], functions: int) -> Spent:
    """Do `work`, print what took how long at `instance`, and return its seconds."""
    from sqlalchemy import event

    spent: dict[str, tuple[int, float]] = {}

    def before(connection: Any, *_: Any) -> None:
        connection.info["began"] = time.perf_counter()

    def after(connection: Any, _: Any, statement: str, *__: Any) -> None:
        text = " ".join(statement.split())[:STATEMENT_CHARS]
        times, seconds = spent.get(text, (0, 0.0))
        spent[text] = times + 1, seconds + time.perf_counter() - connection.info["began"]

    event.listen(instance.engine, "before_cursor_execute", before)
    event.listen(instance.engine, "after_cursor_execute", after)
    profile = cProfile.Profile()
    seconds = timed(instance, lambda: profile.runcall(work))
    in_sql = sum(each for _, each in spent.values())
    print(f"== {title}: {seconds.wall_s:.2f} s, of them {in_sql:.2f} in SQL statements")
    for text, (times, each) in sorted(spent.items(), key=lambda item: -item[1][1])[:STATEMENTS]:
        print(f"{each:8.2f} s {times:6d} times  {text}")
    pstats.Stats(profile).sort_stats("cumulative").print_stats(functions)
    return seconds


if __name__ == "__main__":
    main()
