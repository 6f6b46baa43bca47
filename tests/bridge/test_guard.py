"""Each transaction looks at Rucio's schema: once it is one that nsync was not tested with, no row is written, whoever asks (R7.7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from nsync.errors import ConfigError
from nsync.namespace.keys import Did
from nsync.rucio_bridge import guard
from nsync.rucio_bridge.bridge import Bridge
from nsync.rucio_bridge.rehearsal import rehearse
from tests.bridge.test_drift import diff
from tests.support.instances import Instance, everything, settle

WAITS: dict[str, Callable[[Bridge, int], Any]] = {
    "work": lambda bridge, now_ms: bridge.work(now_ms),
    "retry": lambda bridge, now_ms: bridge.retry_parked(now_ms),
}
"""What daemons do: it waits for the operator, and says so in the log."""
REFUSES: dict[str, Callable[[Bridge, int], Any]] = {
    "rebuild": lambda bridge, now_ms: bridge.rebuild(now_ms),
    "repair": lambda bridge, now_ms: bridge.mend_drift(None, now_ms),
    "accept --dry-run": lambda bridge, now_ms: bridge.would_accept("atlas 1-1", now_ms),
    "run --dry-run": lambda bridge, now_ms: rehearse(bridge, ["cms"], {}, now_ms),
}
"""What an operator asks for."""


def test_into_an_unknown_schema_nothing_is_written(either: list[Instance], caplog: pytest.LogCaptureFixture) -> None:
    """There is something to publish, to apply, to try again and to repair, and the schema changes while the bridge runs."""
    atlas, cms, _ = either
    atlas.publish_dataset("atlas", "open")
    settle([atlas, cms])
    cms.add_files("atlas", ["taken"], 7, "00000007")
    atlas.add_files("atlas", ["taken"])
    settle([atlas, cms])
    assert cms.parked().keys() >= {Did("atlas", "taken")}
    with cms.engine.begin() as connection:
        connection.execute(text("UPDATE dids SET project = 'other' WHERE name = 'open'"))
    cms.delete_replicas("atlas", ["taken"])
    atlas.add_did("atlas", "later")
    atlas.work()
    cms.fetch(atlas)
    assert diff(cms).drifts == {("atlas:open", "project")}
    before = everything(cms)
    (tested,) = guard.TESTED_HEADS
    _set_head(cms, "tomorrow")
    for name, act in WAITS.items():
        act(cms.bridge, cms.now_ms)
        assert "Rucio's schema is at tomorrow" in caplog.text, name
        caplog.clear()
        cms.bridge._warned = None
    for name, act in REFUSES.items():
        with pytest.raises(ConfigError, match="Rucio's schema is at tomorrow"):
            act(cms.bridge, cms.now_ms)
            pytest.fail(name)
    _set_head(cms, tested)
    assert {table: rows for table, rows in everything(cms).items() if table != "alembic_version"} == {
        table: rows for table, rows in before.items() if table != "alembic_version"
    }
    settle([atlas, cms])
    cms.bridge.retry_parked(cms.now_ms)
    assert cms.bridge.mend_drift(None, cms.now_ms).written == (Did("atlas", "open"),)
    assert cms.parked() == {} and diff(cms).drifts == set() and cms.rows()["dids"] == atlas.rows()["dids"]


def _set_head(instance: Instance, head: str) -> None:
    with instance.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :head"), {"head": head})
