"""Faults that a database survives: a full disk, and a process that is killed.

After either, what was acknowledged must be there, and nothing of what was not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, NamedTuple

from sqlalchemy import Engine, event

from nsync.store.database import open_store

ROOT = Path(__file__).parents[2]
PROGRAM_S_MAX = 60.0


@contextmanager
def disk_full(engine: Engine) -> Iterator[None]:
    """Let no file of `engine`'s database grow within the block, and then again. No connection may be in use at either end.

    SQLite: `max_page_count`, so that the database file keeps its size. PostgreSQL: the system refuses the server process to make
    any file longer than a file of the server's log (1 MiB here), so that tables above that are full while the log goes on; the
    server takes that for a full disk, and rolls back. The driver's error is another one than on a full device (InternalError, not
    OperationalError), and a log that is full, which stops the whole server, is not played. The role must be a superuser.
    """
    limit, lift = _FULL[engine.dialect.name]
    events: list[tuple[str, Callable[..., None]]] = [
        ("checkout", lambda driver, record, proxy: limit(driver)),
        ("checkin", lambda driver, record: lift(driver) if driver is not None else None),
    ]
    for name, listener in events:
        event.listen(engine, name, listener)
    try:
        yield
    finally:
        for name, listener in events:
            event.remove(engine, name, listener)


def _pragma(value: int) -> Callable[[Any], None]:
    return lambda driver: driver.execute(f"PRAGMA max_page_count = {value}").close()


def _file_size(bytes_max: str) -> Callable[[Any], None]:
    """The shell that COPY starts is a child of the server process that serves this connection."""

    def set_limit(driver: Any) -> None:
        command = f"'prlimit --pid $PPID --fsize=' || {bytes_max} || ':'"
        driver.execute(f"DO $$ BEGIN EXECUTE format('COPY (SELECT WHERE false) TO PROGRAM %L', {command}); END $$")
        driver.commit()

    return set_limit


_FULL = {
    "sqlite": (_pragma(1), _pragma(1 << 30)),  # it is never below what the file has
    "postgresql": (_file_size("pg_size_bytes(current_setting('wal_segment_size'))"), _file_size("'unlimited'")),
}


class Crash(NamedTuple):
    """What a killed program left."""

    engine: Engine
    """The database, opened anew."""
    said: list[str]
    """The lines that the program had printed; it prints a line (with flush=True) when something is acknowledged."""
    was_killed: bool
    """False when it ended before it came to the place."""


@contextmanager
def killed_at(place: str, times: int, program: str, url: str) -> Iterator[Crash]:
    """Run the Python text `program` with `url` as its argument, and kill it when it passes failpoint `place` the `times`-th time."""
    done = subprocess.run(
        [sys.executable, "-c", program, url],
        cwd=ROOT,
        env={**os.environ, "NSYNC_FAILPOINT": f"{place}:{times}"},
        capture_output=True,
        text=True,
        timeout=PROGRAM_S_MAX,
    )
    assert done.returncode in (0, -signal.SIGKILL), f"the program failed by itself:\n{done.stdout}{done.stderr}"
    engine = open_store(url)
    try:
        yield Crash(engine, done.stdout.splitlines(), done.returncode != 0)
    finally:
        engine.dispose()
