"""nsync installs beside Rucio without a conflict, and its core runs on every Python that it names (promise 7).

Each test makes a virtual environment of its own from a package index. They are made side by side, since each takes a minute.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Optional

import pytest

ROOT = Path(__file__).parents[2]
RUCIO = ("rucio==41.5.1", "rucio-clients==41.5.1")
VERSIONS = ("3.9", "3.12")
pytestmark = pytest.mark.timeout(900)  # whole suites on other Pythons, beside everything else

UNITS = ("tests/unit", "tests/conformance", "--ignore=tests/unit/test_fuzz.py", "--ignore=tests/unit/test_costs.py")
PURE = {"3.9": (*UNITS, "tests/property/test_store.py"), "3.12": (*UNITS, "--ignore=tests/unit/test_charter_cli.py")}
"""By version: the oldest one that Rucio's images run plays histories too. What things cost is the same on all."""


def clean() -> dict[str, str]:
    """The environment without what would lead a new interpreter back to this one's packages or to this Rucio's files."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "RUCIO", "COV_"))}


def run(*command: object, cwd: Path = ROOT, timeout: int = 560) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, env=clean(), capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def fresh(python: str, directory: Path, *packages: str) -> Path:
    """The interpreter of a new virtual environment with `packages`."""
    run(python, "-m", "venv", directory)
    inside = directory / "bin" / "python"
    run(inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", *packages)
    return inside


def interpreter(version: str) -> Optional[str]:
    """A Python of `version` that really starts: on the path, or behind a version manager whose shims name one that is not chosen here."""
    candidates = [shutil.which(f"python{version}"), *sorted(Path(sys.base_prefix).parent.glob(f"{version}.*/bin/python{version}"))]
    starts = (str(c) for c in candidates if c and subprocess.run([c, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0)
    return next(starts, None)


def beside_rucio(directory: Path) -> None:
    """What `pip install nsync[rucio]` gives to an instance of Rucio."""
    python = fresh(sys.executable, directory / "venv", f"{ROOT}[rucio]", *RUCIO)
    assert "No broken requirements" in run(python, "-m", "pip", "check")
    installed = run(python, "-m", "pip", "freeze")
    assert all(f"{pin}\n" in installed for pin in RUCIO), "Rucio is the one that was asked for"
    assert all((directory / "venv" / "bin" / command).exists() for command in ("nsync", "rucio-nsync"))
    assert "Exit codes" in run(directory / "venv" / "bin" / "nsync", "--help", cwd=directory)
    code = "import nsync, sqlalchemy; print(nsync.__file__, sqlalchemy.create_engine('sqlite+nsync://').dialect.name)"
    where, dialect = run(python, "-c", code, cwd=directory).split()
    assert where.startswith(str(directory)) and dialect == "sqlite"
    assert run(python, "-c", "from nsync.store import migrations; print(migrations.newest())", cwd=directory).strip() not in ("", "None")


def without_rucio(interpreter: str, directory: Path, tests: Sequence[str]) -> None:
    """The installed package, and the tests of everything that knows no Rucio."""
    python = fresh(interpreter, directory / "venv", str(ROOT), "pytest", "hypothesis", "pytest-timeout")
    shutil.copytree(ROOT / "tests", directory / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", directory)
    assert run(python, "-c", "import nsync; print(nsync.__file__)", cwd=directory).startswith(str(directory)), "the installed one"
    assert " passed" in run("env", "NSYNC_STORIES=20", python, "-m", "pytest", "-q", "-m", "not postgres", *tests, cwd=directory)
    assert "rucio is not installed here" in run(python, "-m", "pytest", "--collect-only", cwd=directory), (
        "the rest is left out, and says so"
    )


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    """All of it under way."""
    with ThreadPoolExecutor() as pool:
        jobs = {"rucio": pool.submit(beside_rucio, tmp_path_factory.mktemp("rucio"))}
        for version in VERSIONS:
            found = interpreter(version)
            if found is not None:
                jobs[version] = pool.submit(without_rucio, found, tmp_path_factory.mktemp(f"python{version}"), PURE[version])
        yield jobs


def test_beside_rucio_pip_finds_nothing_broken(environments: dict[str, Future[None]]) -> None:
    environments["rucio"].result()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_core_runs_without_rucio_on(version: str, environments: dict[str, Future[None]]) -> None:
    if version not in environments:
        pytest.skip(f"there is no python{version} here that starts: the core is not tested on it")
    environments[version].result()
