"""Three instances on copies of one Rucio database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.instances import Instance, settle
from tests.support.postgres import Server
from tests.support.rucio_postgres import build
from tests.support.victims import Ground

SHARED = {"atlas": ["atlas.shared", "atlas"], "cms": ["atlas.shared", "cms"], "belle2": ["atlas.shared", "belle2"]}


@pytest.fixture
def instances(template_database: Path, tmp_path: Path) -> Iterator[list[Instance]]:
    """atlas, cms and belle2; each shares its own scope, and all share atlas.shared."""
    made = [Instance(template_database, tmp_path, name, shared) for name, shared in SHARED.items()]
    yield made
    for instance in made:
        instance.close()


@pytest.fixture(scope="session")
def prepared(template_database: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The databases of three instances that know each other's scopes; each has a private scope besides."""
    directory = tmp_path_factory.mktemp("prepared")
    made = [Instance(template_database, directory, name, shared, durable=False) for name, shared in SHARED.items()]
    for instance in made:
        instance.add_scope(instance.name)
        instance.add_scope(f"{instance.name}.private")
    made[0].add_scope("atlas.shared")
    settle(made)
    for instance in made:
        instance.checkpoint()
        instance.close()
    return {instance.name: instance.path for instance in made}


@pytest.fixture
def federation(prepared: dict[str, Path], tmp_path: Path) -> Iterator[list[Instance]]:
    """atlas, cms and belle2, whose scopes have reached each other."""
    made = [Instance(prepared[name], tmp_path, name, shared, durable=False) for name, shared in SHARED.items()]
    yield made
    for instance in made:
        instance.close()


# ---- databases whose bridge is killed


@pytest.fixture(scope="session")
def rucio_at_postgres(postgres_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Rucio database with nsync's part, to be copied."""
    with postgres_server.database() as url:
        build(url, tmp_path_factory.mktemp("rucio"))
        yield url


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """The tests run once for each back-end."""
    if request.param == "sqlite":
        template, server = f"sqlite+nsync:///{request.getfixturevalue('template_database')}", None
    else:
        template, server = request.getfixturevalue("rucio_at_postgres"), request.getfixturevalue("postgres_server")
    made = Ground(template, tmp_path_factory.mktemp("ground"), server)
    yield made
    made.close()
