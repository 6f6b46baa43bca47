"""A full disk amid a large changeset: what the transaction did is undone whole, and done when there is room again.

SQLite counts its pages (`max_page_count`). A database of PostgreSQL lies in a tablespace on a file system of its own that is as large as
what it holds; making one takes root, and where the tests may not the test is skipped, which the report says.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Callable

import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from tests.bridge.test_crash_points import after, work
from tests.support.faults import disk_full
from tests.support.postgres import Server
from tests.support.victims import Ground, Job, Lab, difference, everything, failpoint, observed

FILES = 300
ROOM = "256m"
FULL = "database or disk is full|No space left on device"

Place = tuple[Lab, Lab, Callable[[], AbstractContextManager[None]]]
"""An instance, its twin, and in what the first has no more room."""


@pytest.fixture
def small(ground: Ground, request: pytest.FixtureRequest) -> Iterator[Place]:
    source = ground.lab("belle2")
    source.join(["belle2"])
    source.add_scope("belle2")
    source.work()
    if source.engine.dialect.name == "sqlite":
        yield source, ground.lab("belle2", source), lambda: no_pages(source)
        return
    with on_small_disk(request.getfixturevalue("postgres_server"), source) as (lab, without_room):
        yield lab, source, without_room


@contextmanager
def no_pages(lab: Lab) -> Iterator[None]:
    """Nor any that are free."""
    lab.engine.dispose()
    with closing(sqlite3.connect(lab.path)) as connection:
        connection.execute("VACUUM")
    with disk_full(lab.engine):
        yield


@contextmanager
def on_small_disk(server: Server, source: Lab) -> Iterator[tuple[Lab, Callable[[], AbstractContextManager[None]]]]:
    """A copy of `source` on a disk that can be made as small as what is on it."""
    disk = Path(server.plan.directory) / "small"
    disk.mkdir()
    owner = "" if server.plan.uid is None else f",uid={server.plan.uid},gid={server.plan.gid}"
    mounted = mount(disk, f"size={ROOM},mode=0700{owner}")
    if mounted.returncode:
        disk.rmdir()
        pytest.skip(f"not run: a small file system cannot be mounted here ({mounted.stderr.strip()})")
    source.engine.dispose()
    try:
        server.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
        server.execute(f"CREATE DATABASE small TEMPLATE {make_url(source.url).database} TABLESPACE small")
        lab = Lab(server.url("small"), source.name)
        try:
            yield lab, lambda: shrunk(disk, server)
        finally:
            lab.engine.dispose()
            server.execute("DROP DATABASE small WITH (FORCE)")
            server.execute("DROP TABLESPACE small")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
        disk.rmdir()


@contextmanager
def shrunk(disk: Path, server: Server) -> Iterator[None]:
    server.execute("CHECKPOINT")
    found = os.statvfs(disk)
    assert mount(disk, f"remount,size={(found.f_blocks - found.f_bfree) * found.f_frsize}").returncode == 0
    try:
        yield
    finally:
        assert mount(disk, f"remount,size={ROOM}").returncode == 0


def mount(disk: Path, options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True, text=True)


def receive(lab: Lab, frames: list[bytes]) -> None:
    assert lab.bridge.receive(frames, "atlas").rejected == ()


def test_a_large_changeset_without_room(ground: Ground, small: Place) -> None:
    """Published, received, and applied."""
    survivor, twin, without_room = small
    atlas = ground.lab("atlas")
    atlas.join(["atlas"])
    for lab in (atlas, twin, survivor):
        lab.now_ms += 1000
        if lab is atlas:
            lab.add_scope("atlas")
        lab.publish_dataset(lab.name, "large", files=FILES)
    atlas.work()
    frames = atlas.frames()
    jobs: list[tuple[Job, list[list[bytes]]]] = [(work, []), (receive, [frames]), (work, [])]
    for job, arguments in jobs:
        done = observed(twin, job, *arguments)
        with without_room():
            with pytest.raises(DBAPIError, match=FULL):
                job(survivor, *arguments)
            assert after(done, survivor, failpoint("full")) == 0
        job(survivor, *arguments)
        assert not (found := difference(everything(survivor), everything(twin))), found
    assert survivor.log() == twin.log()
    assert len(survivor.query("SELECT name FROM dids WHERE scope = 'atlas'")) == FILES + 1
