"""The commands about drift and provenance, as an operator runs them: `nsync diff`, `log`, `explain` and `did status`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nsync.log.stored import PeerRecord
from nsync.store.peers import PeerTable
from tests.support.instances import settle
from tests.support.nodes import Federation, Site, nsync

BEGAN_MS = 1_790_000_000_000
"""Some time before now: what the tests say must not lie in the future of the commands' clock."""


@pytest.fixture
def sites(template_database: Path, tmp_path: Path) -> Iterator[list[Site]]:
    """atlas and cms, who share a dataset of each."""
    bed = Federation(template_database, tmp_path)
    made = [bed.site("atlas", ["atlas", "atlas.shared"]), bed.site("cms", ["cms", "atlas.shared"])]
    for site in made:
        site.now_ms = BEGAN_MS
    atlas, cms = made
    for scope in ("atlas", "atlas.shared"):
        atlas.add_scope(scope)
    atlas.publish_dataset("atlas", "d1", doi="10.5072/ATLAS.D1")
    atlas.add_did("atlas.shared", "open")
    cms.add_scope("cms")
    cms.publish_dataset("cms", "c1")
    settle(made)
    yield made
    bed.close()


def said(site: Site, *arguments: str, code: int = 0) -> Any:
    done = nsync(site, *arguments, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_diff_finds_drift_repairs_it_when_it_is_told_to_and_says_so_by_its_exit_code(sites: list[Site]) -> None:
    _, cms = sites
    clean = said(cms, "diff")
    assert clean["compared"] > 10 and clean["differences"] == [] and not any(clean["counts"].values())
    cms.edit("UPDATE dids SET project = 'p' WHERE scope = 'atlas' AND name = 'd1'")
    cms.edit("UPDATE dids SET campaign = 'c' WHERE scope = 'cms' AND name = 'c1'", unheard=True)
    found = said(cms, "diff", code=4)
    by_owner = {one["owner"]: one for one in found["differences"]}
    atlas = by_owner["atlas"]
    assert (atlas["about"], atlas["field"], atlas["catalogue"], atlas["row"]) == ("atlas:d1", "project", None, "p")
    assert "--repair" in atlas["resolve"] and "nsync bridge audit" in by_owner["cms"]["resolve"]
    assert said(cms, "diff", "atlas", code=4)["counts"]["drift"] == 1
    declined = nsync(cms, "diff", "--repair")
    assert declined.returncode == 1 and "atlas:d1: project other value (drift; atlas decides)" in declined.stdout
    repaired = said(cms, "diff", "--repair", "--yes", code=4)
    assert repaired["repaired"] == {"written": ["atlas:d1"], "left": [], "more": False}
    assert [one["owner"] for one in repaired["differences"]] == ["cms"]
    assert nsync(cms, "bridge", "audit").returncode == 0
    waiting = nsync(cms, "status")
    assert waiting.returncode == 3 and "to be looked at: asked for by an operator" in waiting.stdout
    cms.now_ms += 10**7
    assert cms.work() == 1
    assert "no difference" in nsync(cms, "diff").stdout
    assert "nothing in scope 'none'" in nsync(cms, "diff", "none").stderr


def test_a_did_tells_who_said_what_why_it_shows_so_and_how_far_it_has_come(sites: list[Site]) -> None:
    atlas, cms = sites
    atlas.edit("UPDATE dids SET project = 'first' WHERE scope = 'atlas' AND name = 'd1'")
    atlas.work()
    atlas.edit("UPDATE dids SET project = 'second' WHERE scope = 'atlas' AND name = 'd1'")
    settle(sites)
    cms.set_open("atlas.shared", "open", False)
    assert cms.work() == 1
    heads = tuple(cms.bridge.heads())
    PeerTable(cms.engine).save([PeerRecord("atlas", contact_ms=1, heads=tuple(h for h in heads if h.author != cms.bridge.me.author))])

    log = said(cms, "log", "atlas:d1")["statements"]
    projects = [(one["said"], one["standing"]) for one in log if one["about"] == "project of atlas:d1"]
    assert projects == [("first", "superseded"), ("second", "effective")]
    assert {one["about"] for one in log} >= {"atlas:d1", "atlas:d1.f0 in atlas:d1", "doi of atlas:d1"}
    assert [one["time"] for one in log] == sorted(one["time"] for one in log)
    newest = said(cms, "log", "atlas:d1", "--limit", "1")
    assert [one["said"] for one in newest["statements"]] == ["second"] and newest["cut"]

    (project,) = said(cms, "explain", "atlas:d1", "project")["explanations"]
    assert project["shows"] == "second" and [line["said"] for line in project["lines"]] == ["first", "second"]
    waiting = nsync(cms, "explain", "atlas.shared:open", "closed")
    assert "waits: it removes, closes or publishes: it counts once atlas acknowledges it" in waiting.stdout

    whole = said(cms, "did", "status", "atlas:d1")
    count = whole["changesets"]
    assert count == whole["settled"] == 3 and whole["here"]["row"] and whole["here"]["differences"] == []
    assert whole["instances"]["atlas"] == {"said": 3, "has": 3, "saw": 3} and whole["instances"]["belle2"] == {
        "said": 0,
        "has": None,
        "saw": 0,
    }
    assert whole["instances"]["cms"]["saw"] == 3
    fresh = said(cms, "did", "status", "atlas.shared:open")
    assert (fresh["changesets"], fresh["settled"]) == (2, 1) and fresh["instances"]["atlas"] == {"said": 1, "has": 1, "saw": 1}
    assert fresh["here"]["differences"] == [{"about": "atlas.shared:open", "field": "closed", "standing": "outruled"}]

    unknown = nsync(cms, "log", "atlas:nothing")
    assert unknown.returncode == 1 and "nothing that is applied here speaks of atlas:nothing; its home is atlas" in unknown.stderr
    assert nsync(cms, "log", "nothing").returncode == 2
    assert "somebody did of closed, doi, opendata, project" in nsync(cms, "explain", "atlas:d1", "campaign").stderr
