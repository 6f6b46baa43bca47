"""What users do is published and reaches the peers long before the node's poll: the database's word wakes it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nodes import Federation, Site, ask, wait_until

SLEEP_S = 120.0
"""Between two polls; a wait of SOON_S ends before one."""
SOON_S = 40.0

SEGMENTS = "SELECT count(*) FROM nsync_segment s JOIN nsync_branch b ON b.id = s.branch WHERE b.author = ?"


@pytest.fixture
def bed(template_database: Path, tmp_path: Path) -> Iterator[Federation]:
    made = Federation(template_database, tmp_path)
    yield made
    made.close()


def sleepy(bed: Federation, name: str) -> Site:
    site = bed.site(name, [name])
    site.options |= {"sleep_time": str(SLEEP_S), "gossip_interval": str(SLEEP_S)}
    return site


def test_a_change_is_published_and_pushed_long_before_the_poll(bed: Federation) -> None:
    atlas, cms = sleepy(bed, "atlas"), sleepy(bed, "cms")
    nodes = [site.serve() for site in (atlas, cms)]
    atlas.add_scope("atlas")
    wait_until(lambda: ask(cms.path, SEGMENTS, atlas.author) != [(0,)], lambda: "the first change", SOON_S)
    for name in ("d1", "d2", "d3"):
        (before,) = ask(cms.path, SEGMENTS, atlas.author)
        time.sleep(1)  # the node has done all that it was woken for
        atlas.add_did("atlas", name)
        began = time.monotonic()
        wait_until(lambda: ask(cms.path, SEGMENTS, atlas.author) > [before], lambda: f"{name} in the log at cms", SOON_S)  # noqa: B023
        print(f"{name}: in the log of cms {time.monotonic() - began:.3f} s after Rucio's commit")
    for node in nodes:
        node.stop()
