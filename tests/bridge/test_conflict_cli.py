"""`nsync conflict show` and `accept`: what an operator sees and decides about what does not fit (R7.6)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.bridge.test_accepted import SHARED, park_a_dataset
from tests.support.federation import KEYS, URLS, charter_document
from tests.support.instances import Instance, everything
from tests.unit.test_cli import run


@pytest.fixture
def cms(instances: list[Instance], tmp_path: Path) -> Instance:
    """With something parked."""
    park_a_dataset(instances)
    return instances[1]


@pytest.fixture
def config(cms: Instance, tmp_path: Path) -> Path:
    (tmp_path / "charter.json").write_text(charter_document(URLS))
    KEYS["cms"].save(tmp_path / "nsync.key")
    path = tmp_path / "rucio.cfg"
    options = f"instance = cms\ncharter = {tmp_path}/charter.json\nkey = {tmp_path}/nsync.key\nlisten = 127.0.0.1:1\n"
    path.write_text(f"[database]\ndefault = sqlite+nsync:///{cms.path}\n[nsync]\n{options}")
    return path


def said(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stderr
    return done.stdout


def test_show_tells_all_about_a_did_a_scope_an_rse_and_a_batch(cms: Instance, config: Path) -> None:
    listed = json.loads(said(run("conflict", "list", "--json", config=config), 4))["parked"]
    (batch,) = {one["batch"] for one in listed}
    shown = said(run("conflict", "show", f"{SHARED}:f1", config=config), 4)
    assert f"{SHARED}:f1: parked with {batch} since 2023-" in shown and "in Rucio: another one of its name: file of 7 bytes" in shown
    assert f"'nsync conflict accept \"{batch}\" --partial' would write some" in shown
    machine = {what: json.loads(said(run("conflict", "show", what, "--json", config=config), 4)) for what in (SHARED, batch)}
    assert len(machine[batch]["parked"]) == len(listed) == sum(machine[batch]["batches"][batch]["waits"].values())
    assert {one["here"] for one in machine[SHARED]["parked"]} == {"no row", "another one of its name: file of 7 bytes, adler32 00000007"}
    assert "at RSE DISK of atlas" in said(run("conflict", "show", "atlas/DISK", config=config), 4)
    assert "nothing of it is parked here" in said(run("conflict", "show", "atlas.shared:none", config=config), 0)


def test_accept_says_what_it_will_do_and_lets_the_node_do_it(cms: Instance, config: Path) -> None:
    (batch,) = {one["batch"] for one in json.loads(said(run("conflict", "list", "--json", config=config), 4))["parked"]}
    before = everything(cms)
    failed = run("conflict", "accept", batch, config=config)
    assert failed.returncode == 1 and "--partial' writes the rest" in failed.stderr
    dry = said(run("conflict", "accept", batch, "--partial", "--dry-run", config=config), 0)
    assert f"3 stay parked as '{batch} rest':" in dry and "exists here as file of 7 bytes" in dry and "and 2 facts wait with it" in dry
    assert run("conflict", "accept", batch, "--partial", config=config).returncode == 1  # nobody answers the question
    assert everything(cms) == before
    found = json.loads(said(run("conflict", "accept", batch, "--partial", "--yes", "--json", config=config), 0))
    assert len(found["rest"]) == 3 and found["written"] == len(before["nsync_parked"]) - 3
    cms.bridge.retry_parked(cms.now_ms)
    assert cms.names(SHARED) == {"f1", "f2", "f3", "d1"}
    again = run("conflict", "accept", batch, "--partial", config=config)
    assert again.returncode == 1 and f"nothing is parked as '{batch}'" in again.stderr
