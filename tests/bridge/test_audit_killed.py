"""What a namespace holds before nsync comes is published in parts: all of it, once, wherever the process is killed; and in memory
that does not grow with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from nsync.log.segment import decode_frame
from nsync.namespace.keys import Did, Replica, Rse
from nsync.namespace.ops import Assert, decode_op
from tests.support.bulk_rows import load_files
from tests.support.instances import Instance

FILES = 700
PLACES = ("work-locked:2", "publish-drained", "log-head-advanced", "publish-logged", "work-before-commit:2", "work-after-commit")
WORK = """
import resource, sys
from nsync.auth.keys import verify
from nsync.rucio_bridge.bridge import Bridge
from tests.support.federation import AUTHORITY, CHARTER, KEYS
from tests.support.instances import EXPRESSION, engine_of

engine, atlas = engine_of(sys.argv[1], durable=False), CHARTER.by_name("atlas")
bridge = Bridge(engine, AUTHORITY, atlas, KEYS["atlas"].sign, verify, EXPRESSION, bulk=int(sys.argv[2]))
now_ms = 1_700_000_000_000
while not bridge.work(now_ms).idle:
    now_ms += 1000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def work(instance: Instance, rows_max: int, failpoint: str = "") -> subprocess.CompletedProcess[str]:
    """A process that works until there is nothing to do, or it is killed."""
    environment = {**os.environ, "NSYNC_FAILPOINT": failpoint}
    command = [sys.executable, "-c", WORK, str(instance.path), str(rows_max)]
    return subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=280, check=False)


def loaded(template: Path, directory: Path, count: int) -> Instance:
    """An instance on a namespace of `count` files, of which no trigger told."""
    (directory / str(count)).mkdir()
    instance = Instance(template, directory / str(count), "atlas", ["atlas"], durable=False)
    instance.add_scope("atlas")
    load_files(instance, "atlas", count)
    with instance.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM nsync_outbox")
    return instance


def test_an_audit_that_is_killed_again_and_again_publishes_all_of_it_once(template_database: Path, tmp_path: Path) -> None:
    atlas = loaded(template_database, tmp_path, FILES)
    for place in PLACES:
        ended = work(atlas, 150, place)
        assert ended.returncode == -signal.SIGKILL, (place, ended.stderr[-2000:])
    assert work(atlas, 150).returncode == 0
    wanted = {Did("atlas", f"bulk.{i}") for i in range(FILES)}
    wanted |= {Replica(did, Rse("atlas", "DISK")) for did in wanted}  # type: ignore[arg-type]
    said = Counter(
        statement.key
        for frame in atlas.frames()
        for op in decode_frame(frame).ops
        for statement in decode_op(op)
        if isinstance(statement, Assert)
    )
    assert wanted <= said.keys() and max(said.values()) == 1
    assert wanted < atlas.catalogue().keys()
    assert atlas.query("SELECT count(*) FROM nsync_audit") == atlas.query("SELECT count(*) FROM nsync_outbox") == [(0,)]
    atlas.close()


@pytest.mark.timeout(600)
def test_memory_does_not_grow_with_what_is_published_at_first(template_database: Path, tmp_path: Path) -> None:
    peaks = []
    for count in (1_000, 4_000):
        atlas = loaded(template_database, tmp_path, count)
        ended = work(atlas, 500)
        assert ended.returncode == 0, ended.stderr[-2000:]
        assert atlas.query("SELECT count(*) FROM nsync_entry WHERE kind = 6") == [(count,)]
        peaks.append(int(ended.stdout) / 1024)
        atlas.close()
    assert peaks[1] < peaks[0] + 10, f"MiB: {peaks}"
