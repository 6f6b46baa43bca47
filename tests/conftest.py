"""One real Rucio database, made once by Rucio's own build_database; tests copy it.

Rucio reads its configuration and policy at import, so the variable must be set before anything imports it: here, where
pytest comes first.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_HOME = Path(tempfile.mkdtemp(prefix="nsync-tests-"))


def _write_config() -> None:
    from nsync.testbed import instance, layout

    template = layout.plan(_HOME, 1).instances[0]
    instance.write_files(template, _HOME / "charter.json")
    os.environ.update({"RUCIO_HOME": str(template.home), "RUCIO_CONFIG": str(template.server_config)})


try:
    import rucio  # noqa: F401

    HAS_RUCIO = True
    _write_config()
except ImportError:
    HAS_RUCIO = False


collect_ignore = [] if HAS_RUCIO else ["bridge", "integration"]
"""Their modules import Rucio when they are collected, so a mark would come too late."""


def pytest_report_header() -> list[str]:
    """What is left out is told."""
    return [] if HAS_RUCIO else ["rucio is not installed here: tests/bridge and tests/integration are left out"]


def pytest_sessionfinish() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def template_database() -> Iterator[Path]:
    """A Rucio database with root, an RSE called DISK, and nsync's tables and triggers."""
    home = Path(os.environ["RUCIO_HOME"])
    subprocess.run([sys.executable, "-m", "nsync.testbed.initdb", "DISK", str(home / "rse") + "/"], check=True, env=dict(os.environ))
    from tests.support.instances import install

    path = home / "rucio.db"
    install(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    yield path
