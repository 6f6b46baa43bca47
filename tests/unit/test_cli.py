"""The command line: help without the heavy libraries, one text per failure, and exit codes that say which."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import nsync
from nsync.cli.main import COMMANDS
from tests.support.federation import KEYS, NAMES, ROOTS, charter_document

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
    "arguments", [["nonsense"], ["--nonsense"], ["charter", "nonsense"], ["charter", "keygen"], ["charter", "sign", "x"]]
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
    assert run("charter", "sign", str(path), "--key", str(key)).returncode == 0
    shown = run("charter", "show", str(path), "--json")
    assert shown.returncode == 0 and [i["instance"] for i in json.loads(shown.stdout)["instances"]] == ["cms"]


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
