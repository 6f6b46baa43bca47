"""Rucio's own daemons, as operators start them, between the bridge's steps: everybody's promises hold (tests/support/promises.py).

The histories of test_state_machine.py call the functions that these daemons call, since a start takes seconds.
"""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from nsync.namespace.keys import Did
from tests.support.deeds import Act, conveyor
from tests.support.instances import Instance
from tests.support.promises import keep
from tests.support.story import Story


def start_once(instance: Instance, daemon: str, directory: Path) -> None:
    """`rucio-DAEMON --run-once` on the database of `instance`, to its end."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(os.environ["RUCIO_CONFIG"])
    config["database"] = {"default": instance.engine.url.render_as_string(hide_password=False).replace("%", "%%")}  # Rucio interpolates
    path = directory / f"{instance.name}.cfg"
    with path.open("w", encoding="utf-8") as file:
        config.write(file)
    command = [str(Path(sys.executable).with_name(f"rucio-{daemon}")), "--run-once"]
    done = subprocess.run(command, env={**os.environ, "RUCIO_CONFIG": str(path)}, capture_output=True, text=True, timeout=120)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "Traceback" not in said and "\tERROR\t" not in said, f"{daemon} at {instance.name}: {said[-3000:]}"


def test_daemons_as_they_are_break_no_promise(either: list[Instance], tmp_path: Path) -> None:
    atlas, cms, belle2 = either
    story = Story(either)

    def users(who: str, what: str, name: str, other: Any = None, scope: str = "atlas.shared") -> None:
        before = story.done[what]
        story.act(Act(who, what, Did(scope, name), other))
        assert story.done[what] == before + 1, f"Rucio refused {what} of {scope}:{name} at {who}"

    def daemons(who: str, *names: str) -> None:
        for name in names:
            story.local(who, partial(start_once, daemon=name, directory=tmp_path))

    users("atlas", "publish", "d1", ("f1", "f2"))
    users("atlas", "dataset", "d2", ("f2", "f3"))
    users("belle2", "dataset", "d1", ("f1",), "belle2")
    story.settle()
    users("cms", "rule", "d2")
    users("cms", "rule", "d1", scope="belle2")
    story.local("cms", conveyor)
    story.settle()
    locks = "SELECT name FROM locks ORDER BY name"
    assert cms.query(locks) == [("f1",), ("f2",), ("f3",)]

    users("atlas", "detach", "d2", Did("atlas.shared", "f3"))
    users("atlas", "attach", "d2", Did("atlas.shared", "f1"))
    users("atlas", "meta", "d2", ("project", "data24"))
    users("belle2", "files", "f2", 1, "belle2")
    users("belle2", "attach", "d1", Did("belle2", "f2"), "belle2")
    users("atlas", "tombstone", "f3")
    story.settle()
    daemons("cms", "judge-evaluator", "abacus-rse", "abacus-collection-replica", "transmogrifier")
    assert cms.query("SELECT scope, name FROM locks ORDER BY scope, name") == [
        ("atlas.shared", "f1"),
        ("atlas.shared", "f2"),
        ("belle2", "f1"),
        ("belle2", "f2"),
    ], "the judge took what came, and let go what went"
    for waited in ("updated_dids", "updated_rse_counters", "updated_col_rep"):
        assert cms.query(f"SELECT count(*) FROM {waited}") == [(0,)], f"{waited}: the judge and abacus took what was written for them"
    assert cms.query("SELECT count(*) FROM dids WHERE is_new") == [(0,)], "and the transmogrifier"
    story.local("cms", conveyor)
    story.settle()

    users("belle2", "expire", "d1", scope="belle2")
    users("cms", "unrule", "d2")
    users("atlas", "expire", "d1")
    users("cms", "expire", "d2")
    daemons("cms", "judge-cleaner", "undertaker", "reaper", "abacus-rse")
    daemons("atlas", "undertaker", "reaper")
    assert "d2" in atlas.names("atlas.shared") and "d1" not in atlas.names("atlas.shared"), "the undertaker took it"
    at = "SELECT s.rse FROM replicas r JOIN rses s ON s.id = r.rse_id WHERE r.name = 'f3' ORDER BY s.rse"
    assert atlas.query(at) == [("CMS_DISK",)], "the reaper took its own replica, and left the one that cms has"
    keep(story)
    assert cms.query(at) == [("DISK",)] and belle2.query(at) == [("CMS_DISK",)]
    assert "d1" not in cms.names("atlas.shared") | belle2.names("atlas.shared"), "what its home removed has gone everywhere"
