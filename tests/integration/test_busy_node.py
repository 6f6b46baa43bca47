"""Two real servers with busy nodes: stock clients lose no call, and what they made is everywhere at the end."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from nsync.rucio_bridge.snapshot import shared_rows
from nsync.testbed import control, layout
from nsync.testbed.layout import Instance, Layout
from tests.integration.test_sqlite_locking import add_scope, hammer

pytestmark = pytest.mark.servers

SETTLE_S_MAX = 60


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Layout]:
    arguments = ["testbed", "up", "--dir", str(tmp_path), "--detach", "--instances", "2", "--share", "atlas=atlas", "--share", "cms=cms"]
    done = subprocess.run([sys.executable, "-m", "nsync", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    yield layout.load(tmp_path)
    control.down(layout.load(tmp_path))


def rows(instance: Instance) -> dict[str, frozenset[tuple[object, ...]]]:
    engine = create_engine(instance.database_url)
    with engine.connect() as connection:
        found = shared_rows(connection, instance.name)
    engine.dispose()
    return found


def test_stock_clients_lose_no_call_beside_busy_nodes(bed: Layout) -> None:
    for instance in bed.instances:
        add_scope(instance)
    calls, failures = hammer(bed.instances, seconds=10, until="end")
    assert failures == []
    assert calls > 40
    atlas, cms = bed.instances
    deadline = time.monotonic() + SETTLE_S_MAX
    while rows(atlas) != rows(cms) or len({scope for (scope,) in rows(cms)["scopes"]}) < 2:
        assert time.monotonic() < deadline, {table: found ^ rows(cms)[table] for table, found in rows(atlas).items()}
        time.sleep(0.5)
    datasets = [row for row in rows(cms)["dids"] if row[2] == "D"]
    assert {scope for scope, *_ in datasets} == {"atlas", "cms"}
    assert len(datasets) >= calls // 4
