"""The command line: help without the heavy libraries, one text per failure, and exit codes that say which."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import nsync
from nsync.cli.main import COMMANDS
from tests.support.federation import KEYS, NAMES, ROOTS, URLS, charter_document

HEAVY = ("rucio", "sqlalchemy", "aiohttp", "nacl", "alembic", "rich")


def run(*arguments: str, config: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RUCIO_HOME", "RUCIO_CONFIG")}
    environment.update({"RUCIO_CONFIG": str(config)} if config else {})
    return subprocess.run([sys.executable, "-m", "nsync", *arguments], capture_output=True, text=True, env=environment)


def test_help_imports_no_heavy_library() -> None:
    running = "import runpy, sys\ntry:\n    runpy.run_module('nsync', run_name='__main__')\nfinally:\n    "
    code = running + f"print([m for m in {HEAVY!r} if m in sys.modules])"
    for arguments in (["--help"], ["--version"]):
        shown = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.endswith("[]\n"), shown.stdout


def test_help_lists_every_command_and_the_exit_codes() -> None:
    shown = run("--help").stdout
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert "Exit codes: 0 done, 1 failed" in shown
    assert run("--version").stdout.strip() == f"nsync, version {nsync.__version__}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--nonsense"],
        ["charter", "nonsense"],
        ["charter", "keygen"],
        ["charter", "sign", "x"],
        ["serve", "--json"],
        ["diff", "--yes"],
        ["log"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    assert run(*arguments).returncode == 2


@pytest.mark.parametrize("arguments", [["serve"], ["status"]])
def test_what_cannot_start_is_1_with_one_text(arguments: list[str], tmp_path: Path) -> None:
    config = tmp_path / "rucio.cfg"
    config.write_text("[database]\ndefault = sqlite://\n")
    failed = run(*arguments, config=config)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("Error: ") and "Traceback" not in failed.stderr
    assert "rucio.cfg" in failed.stderr or "pip install 'nsync[" in failed.stderr


COMMANDS_ON_A_DATABASE = (["status"], ["conflict", "list"], ["bridge", "check"], ["bridge", "install"], ["bridge", "remove", "--yes"])


def instance(tmp_path: Path, database: str) -> Path:
    """The rucio.cfg of cms, on a database that Rucio made but nsync was not installed in."""
    pytest.importorskip("rucio")
    path = tmp_path / "rucio.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS alembic_version (version_num TEXT)")
    (tmp_path / "charter.json").write_text(charter_document(URLS))
    if not (tmp_path / "nsync.key").exists():
        KEYS["cms"].save(tmp_path / "nsync.key")
    config = tmp_path / "rucio.cfg"
    options = f"instance = cms\ncharter = {tmp_path}/charter.json\nkey = {tmp_path}/nsync.key\nlisten = 127.0.0.1:1\n"
    config.write_text(f"{database.format(path)}\n[nsync]\n{options}")
    return config


@pytest.mark.parametrize(
    "database", ["", "[database]", "[database]\ndefault = nonsense", "[database]\ndefault = sqlite+nsync:////none/x.db"]
)
def test_without_a_database_commands_say_so(database: str, tmp_path: Path) -> None:
    config = instance(tmp_path, database)
    for arguments in COMMANDS_ON_A_DATABASE:
        failed = run(*arguments, config=config)
        assert failed.returncode == 1 and failed.stderr.startswith("Error: [database] default"), failed.stderr


def test_before_the_installation_commands_name_it(tmp_path: Path) -> None:
    config = instance(tmp_path, "[database]\ndefault = sqlite+nsync:///{}")
    for arguments in (["status"], ["conflict", "list"], ["serve", "--run-once"]):
        failed = run(*arguments, config=config)
        assert failed.returncode == 1 and "the nsync tables are not in this database; run 'nsync bridge install'" in failed.stderr
    checked = run("bridge", "check", "--json", config=config)
    found = json.loads(checked.stdout)
    assert checked.returncode == 4 and found["database"] is None and "nsync bridge install" in found["tables"]


def test_the_stock_url_is_reported_and_refused(tmp_path: Path) -> None:
    config = instance(tmp_path, "[database]\ndefault = sqlite:///{}")
    checked = run("bridge", "check", config=config)
    assert checked.returncode == 4 and checked.stdout.startswith("database: [database] default begins with 'sqlite:'")
    for arguments in (["bridge", "install"], ["serve", "--run-once"], ["serve"]):
        failed = run(*arguments, config=config)
        assert failed.returncode == 1 and "write 'sqlite+nsync:' in its place" in failed.stderr, failed.stderr


def test_status_names_every_instance_and_conflicts_come_causes_first(tmp_path: Path) -> None:
    config = instance(tmp_path, "[database]\ndefault = sqlite+nsync:///{}")
    from sqlalchemy import create_engine, insert

    from nsync.namespace.keys import Scope, key_bytes
    from nsync.store import migrations, schema

    engine = create_engine(f"sqlite+nsync:///{tmp_path / 'rucio.db'}")
    migrations.upgrade(engine)
    shown = run("status", "--json", config=config)
    none = {"stored": 0, "applied": 0, "refused": None, "waits": None}
    assert shown.returncode == 0 and json.loads(shown.stdout)["logs"] == dict.fromkeys(NAMES, none)
    table = run("status", config=config).stdout
    assert " instance " in table and all(f" {name} " in table for name in NAMES)
    reasons = {"atlas.a": "waits for scope atlas.z", "atlas.b": "waits for scope atlas.z", "atlas.z": "is taken here"}
    rows = [
        {"key": key_bytes(Scope(s)), "batch": "atlas 1-3", "reason": reason, "since_ms": 1, "had_row": False}
        for s, reason in reasons.items()
    ]
    with engine.begin() as connection:
        connection.execute(insert(schema.parked), rows)
    engine.dispose()
    brief, whole, machine = (run("conflict", "list", *options, config=config) for options in ([], ["--all"], ["--json"]))
    assert {done.returncode for done in (brief, whole, machine)} == {4}
    assert brief.stdout.splitlines()[0] == "parked with changeset atlas 1-3:" and "atlas.a" not in brief.stdout
    assert brief.stdout.index("is taken here") < brief.stdout.index("and 2 facts wait with it")
    assert whole.stdout.index("is taken here") < whole.stdout.index("waits for scope atlas.z") and "and 2 facts" not in whole.stdout
    assert len(json.loads(machine.stdout)["parked"]) == 3


def test_status_tells_an_instance_that_publishes_nothing_more(tmp_path: Path) -> None:
    config = instance(tmp_path, "[database]\ndefault = sqlite+nsync:///{}")
    from sqlalchemy import create_engine

    from nsync.log.stored import Head
    from nsync.store import migrations
    from nsync.store.log import SqlLog
    from tests.support.federation import AUTHOR, AUTHORITY

    engine = create_engine(f"sqlite+nsync:///{tmp_path / 'rucio.db'}")
    migrations.upgrade(engine)
    assert json.loads(run("status", "--json", config=config).stdout)["read_only"] is None
    with engine.begin() as connection:
        SqlLog(connection, AUTHORITY).heard(AUTHOR["cms"], [Head(AUTHOR["cms"], 5, bytes(16))])
    engine.dispose()
    shown, machine = run("status", config=config), run("status", "--json", config=config)
    assert shown.returncode == machine.returncode == 4
    assert "read-only: a peer has this instance's own log up to 5" in shown.stdout
    assert json.loads(machine.stdout)["read_only"].endswith("Ask for a new incarnation in the charter")


def test_a_charter_is_made_signed_and_shown(tmp_path: Path) -> None:
    key, path = tmp_path / "root.key", tmp_path / "charter.json"
    made = run("charter", "keygen", str(key))
    assert made.returncode == 0 and stat.S_IMODE(key.stat().st_mode) == 0o600
    again = run("charter", "keygen", str(key))
    assert again.returncode == 1 and "never overwritten" in again.stderr
    member = tmp_path / "cms.json"
    said = ["--root", made.stdout.strip(), "--key", KEYS["cms"].public.hex(), "--url", "http://cms.example.org", "--scope", "cms"]
    member.write_text(run("charter", "member", "CMS", "--instance", "cms", *said).stdout)
    path.write_text(run("charter", "draft", "test", str(member)).stdout)
    unsigned = run("charter", "show", str(path))
    assert unsigned.returncode == 1 and "0 valid signatures of the 1 needed" in unsigned.stderr
    KEYS["cms"].save(tmp_path / "instance.key")
    stranger = run("charter", "sign", str(path), "--key", str(tmp_path / "instance.key"))
    assert stranger.returncode == 1 and "is no member's root key" in stranger.stderr
    signed = run("charter", "sign", str(path), "--key", str(key))
    assert signed.returncode == 0 and "by every member" in signed.stdout
    shown = run("charter", "show", str(path), "--json")
    assert shown.returncode == 0 and [i["instance"] for i in json.loads(shown.stdout)["instances"]] == ["cms"]


def test_a_charter_says_whose_signatures_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "charter.json"
    path.write_text(json.dumps({**json.loads(charter_document()), "signatures": {}}))
    ROOTS["cms"].save(tmp_path / "root.key")
    said = run("charter", "sign", str(path), "--key", str(tmp_path / "root.key")).stdout
    assert "still missing: member 'ATLAS' has 0 valid signatures of the 1 needed; member 'BELLE2'" in said and "CMS" not in said


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"charter": null, "signatures": {}}', '{"charter": {}}'])
def test_a_file_that_is_no_charter_is_1_with_one_text(content: str, tmp_path: Path) -> None:
    path, key = tmp_path / "charter.json", tmp_path / "key"
    path.write_text(content)
    ROOTS["cms"].save(key)
    for arguments in (["charter", "show", str(path)], ["charter", "sign", str(path), "--key", str(key)]):
        failed = run(*arguments)
        assert failed.returncode == 1 and failed.stderr.startswith("Error: ") and len(failed.stderr.splitlines()) == 1, failed.stderr
        assert path.read_text() == content


def test_the_charter_of_the_tests_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "charter.json"
    path.write_text(charter_document())
    shown = run("charter", "show", str(path))
    assert shown.returncode == 0 and all(f"  {name} of {name.upper()} at " in shown.stdout for name in NAMES)
