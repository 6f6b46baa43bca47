"""`nsync charter` from the first key to an amendment in force: files that go round, and who is missing."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nsync.auth.keys import verify
from nsync.authority import amendments


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RUCIO_HOME", "RUCIO_CONFIG")}
    return subprocess.run([sys.executable, "-m", "nsync", "charter", *map(str, arguments)], capture_output=True, text=True, env=environment)


def done(*arguments: str | Path) -> str:
    finished = run(*arguments)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def init(home: Path, name: str, *more: str | Path) -> Any:
    url = f"https://{name}.example.org"
    said = done(
        "init", "test", "--member", name.upper(), "--instance", name, "--url", url, "--scope", name, "--dir", home / name, "--json", *more
    )
    return json.loads(said)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two members have agreed on a charter."""
    atlas = init(tmp_path, "atlas", "--certificate")
    cms = init(tmp_path, "cms", "--with", atlas["member"])
    path = tmp_path / "charter.json"
    path.write_text(Path(cms["charter"]).read_text())
    assert "still missing: member 'ATLAS'" in done("sign", path, "--key", cms["root_key"])
    assert json.loads(done("sign", path, "--key", atlas["root_key"], "--json")) == {
        "path": str(path),
        "version": 1,
        "complete": True,
        "missing": [],
    }
    return tmp_path


def in_force(home: Path) -> Any:
    return amendments.read((home / "charter.json").read_text(), verify).charter


def test_init_makes_keys_an_entry_and_a_draft_and_overwrites_nothing(home: Path) -> None:
    made = home / "cms"
    assert {path.name for path in made.iterdir()} == {"root.key", "nsync.key", "cms.member.json", "charter.json"}
    assert {stat.S_IMODE((made / key).stat().st_mode) for key in ("root.key", "nsync.key")} == {0o600}
    assert (home / "atlas" / "tls.key").exists() and len(in_force(home).by_name("atlas").tls) == 1
    before = {path: path.read_bytes() for path in made.iterdir()}
    again = run("init", "test", "--member", "CMS", "--instance", "cms", "--url", "https://x", "--scope", "x", "--dir", made)
    assert again.returncode == 1 and "root.key exists, and is never overwritten" in again.stderr
    assert before == {path: path.read_bytes() for path in made.iterdir()}


def test_init_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """So the corrected command finds nothing that it must not overwrite; and what is there is found before anything is written."""
    start = [
        "init",
        "test",
        "--member",
        "CMS",
        "--url",
        "https://cms.example.org",
        "--scope",
        "cms",
        "--certificate",
        "--dir",
        tmp_path / "cms",
    ]
    wrong = run(*start, "--instance", "No Name")
    assert wrong.returncode == 1 and "No Name" in wrong.stderr
    assert not (tmp_path / "cms").exists() or not list((tmp_path / "cms").iterdir())
    done(*start, "--instance", "cms")
    (tmp_path / "dune").mkdir()
    (tmp_path / "dune" / "tls.pem").write_text("mine")
    kept = run(*start[:-1], tmp_path / "dune", "--instance", "dune")
    assert kept.returncode == 1 and "tls.pem exists, and is never overwritten" in kept.stderr
    assert [path.name for path in (tmp_path / "dune").iterdir()] == ["tls.pem"]


def test_a_member_is_admitted_by_the_signatures_of_the_others(home: Path) -> None:
    path, dune = home / "charter.json", init(home, "dune")
    said = done("propose", path, "--admit", dune["member"], "--threshold", "2")
    assert "proposes version 2, and 2 of 2 members must sign it" in said
    shown = done("show", path)
    assert "version 1" in shown.splitlines()[0] and "proposed: version 2, which does not count yet: 0 of the 2 members needed" in shown
    assert "+   dune of DUNE at https://dune.example.org" in shown and "-   amendments need 2 of 2 members" in shown
    twice = run("propose", path, "--revote-after", "3")
    assert twice.returncode == 1 and "proposes version 2 already" in twice.stderr
    stranger = run("sign", path, "--key", dune["root_key"])
    assert stranger.returncode == 1 and "is no root key of version 1" in stranger.stderr
    assert "1 of the 2 members needed have signed version 2; member 'CMS'" in done("sign", path, "--key", home / "atlas" / "root.key")
    early = run("join", path, "--instance", "dune", "--key", dune["key"])
    assert early.returncode == 1 and "version 1 of the charter names no such instance: dune" in early.stderr
    assert "by enough members: version 2 counts" in done("sign", path, "--key", home / "cms" / "root.key")
    assert in_force(home).version == 2 and in_force(home).by_name("dune") is not None
    shown = json.loads(done("show", path, "--json"))
    assert (shown["version"], shown["threshold"], shown["proposal"]) == (2, 2, None)


def test_floors_are_voted_for_anew_where_one_version_says_so(home: Path) -> None:
    path = home / "charter.json"
    done("propose", path, "--revote-after", "3")
    assert "+   floors after 3 are voted for anew" in done("show", path)
    for name in ("atlas", "cms"):
        done("sign", path, "--key", home / name / "root.key")
    assert (in_force(home).revoted(3), in_force(home).revoted(4)) == (1, 2)
    done("propose", path, "--url", "cms", "https://elsewhere.example.org")
    assert json.loads(done("show", path, "--json"))["proposal"]["revote_after"] is None


def test_one_who_leaves_retires_where_it_is_said(home: Path) -> None:
    path = home / "charter.json"
    done("retire", "cms", path, "--final", "7", "ab" * 16)
    proposal = json.loads(done("show", path, "--json"))["proposal"]
    assert [i["retired"] for i in proposal["instances"] if i["instance"] == "cms"] == [[7, "ab" * 16]]
    for name in ("atlas", "cms"):
        done("sign", path, "--key", home / name / "root.key")
    assert in_force(home).by_name("cms").retired == (7, b"\xab" * 16)
    gone = run("join", path, "--instance", "cms", "--key", home / "cms" / "nsync.key")
    assert gone.returncode == 1 and "has it retired" in gone.stderr


def test_a_key_and_an_address_are_replaced(home: Path) -> None:
    path = home / "charter.json"
    key, pin = done("keygen", home / "new.key").strip(), "cd" * 32
    done("propose", path, "--replace", "cms", key, "--final", "cms", "0", "00" * 16, "--url", "cms", "https://new.org", "--pin", "cms", pin)
    for name in ("atlas", "cms"):
        done("sign", path, "--key", home / name / "root.key")
    cms = in_force(home).by_name("cms")
    assert (cms.key.hex(), cms.url, len(cms.past), cms.tls) == (key, "https://new.org", 1, (bytes.fromhex(pin),))


def test_a_newcomer_learns_whom_it_reaches_and_how_to_be_configured(home: Path) -> None:
    path, target = home / "charter.json", home / "etc.json"
    joined = run("join", path, "--instance", "cms", "--key", home / "cms" / "nsync.key", "--install", target, "--json")
    assert joined.returncode == 5 and "atlas (https://atlas.example.org" in joined.stderr
    found = json.loads(joined.stdout)
    assert set(found["peers"]) == {"atlas"} and found["own_url"] and f"charter = {target}" in found["config"]
    assert target.read_text() == path.read_text()
    wrong = run("join", path, "--instance", "cms", "--key", home / "atlas" / "nsync.key")
    assert wrong.returncode == 1 and "is not the key that the charter has for cms" in wrong.stderr
    other = home / "other.json"
    other.write_text((home / "atlas" / "charter.json").read_text())
    unsigned = run("join", other, "--instance", "atlas", "--key", home / "atlas" / "nsync.key", "--install", target)
    assert unsigned.returncode == 1 and "'ATLAS' has 0 valid signatures of the 1 needed" in unsigned.stderr
    assert target.read_text() == path.read_text()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "say what shall be different"),
        (("--final", "cms", "7", "xx"), "is not the hash of a segment's header"),
        (("--retire",), "requires an argument"),
        (("--threshold", "0"), "0 is not in the range"),
    ],
)
def test_wrong_usage_changes_nothing(arguments: tuple[str, ...], text: str, home: Path) -> None:
    path = home / "charter.json"
    before = path.read_bytes()
    failed = run("propose", path, *arguments)
    assert failed.returncode == 2 and text in failed.stderr and path.read_bytes() == before


def test_without_a_database_the_ends_of_logs_must_be_given(home: Path) -> None:
    path = home / "charter.json"
    before = path.read_bytes()
    failed = run("retire", "cms", path)
    assert failed.returncode == 1 and failed.stderr.startswith("Error: "), failed.stderr
    assert path.read_bytes() == before
