"""One real Rucio database, made once by Rucio's own build_database; tests copy it.

Rucio reads its configuration and policy at import, so the variable must be set before anything imports it: here, where
pytest comes first.
"""

from __future__ import annotations

import configparser
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from sqlalchemy import Engine

from nsync.store.database import create_tables, open_store
from tests.support import postgres

settings.register_profile("nsync", deadline=None)  # a busy machine is no bug
settings.load_profile("nsync")

_HOME = Path(tempfile.mkdtemp(prefix="nsync-tests-"))


def _write_config() -> None:
    from nsync.testbed import instance, layout

    template = layout.plan(_HOME, 1).instances[0]
    instance.write_files(template, _HOME / "charter.json")
    config = configparser.ConfigParser(interpolation=None)
    config.read(template.server_config)
    config.remove_section("metadata")  # with Rucio's own plugins, JSON on PostgreSQL among them; a plugin of nsync's has tests of its own
    with template.server_config.open("w", encoding="utf-8") as file:
        config.write(file)
    os.environ.update({"RUCIO_HOME": str(template.home), "RUCIO_CONFIG": str(template.server_config)})


try:
    import rucio  # noqa: F401

    HAS_RUCIO = True
    _write_config()
except ImportError:
    HAS_RUCIO = False


_NO_RUCIO = ("unit", "property", "conformance", "simulation")
"""The tests that need none. The modules of the others import it when they are collected, so a mark would come too late."""

collect_ignore = (
    [] if HAS_RUCIO else [path.name for path in Path(__file__).parent.iterdir() if path.is_dir() and path.name not in _NO_RUCIO]
)


def pytest_report_header() -> list[str]:
    """What is left out is told."""
    return [] if HAS_RUCIO else [f"rucio is not installed here: only the tests in {', '.join(_NO_RUCIO)} are run"]


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


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    """One PostgreSQL server for all tests of this process. Where none can be had the tests fail: CI must run them."""
    try:
        with postgres.serve() as server:
            yield server
    except postgres.NoServer as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def rucio_on_postgres(postgres_server: postgres.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a Rucio database on PostgreSQL, with nsync's tables and triggers, to copy."""
    from tests.support.federations import empty_postgres

    with empty_postgres(postgres_server, tmp_path_factory.mktemp("postgres")) as name:
        yield name


@pytest.fixture
def postgres_url(postgres_server: postgres.Server) -> Iterator[str]:
    """The URL of a new, empty database, dropped after the test."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture(scope="module")
def postgres_engine(postgres_server: postgres.Server) -> Iterator[Engine]:
    """A database on PostgreSQL with the nsync tables, for a module whose tests empty it themselves."""
    with postgres_server.database() as url:
        engine = open_store(url)
        create_tables(engine)
        yield engine
        engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new, empty database: the test runs once for each back-end."""
    return f"sqlite:///{tmp_path / 'nsync.db'}" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))
