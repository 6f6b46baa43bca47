"""Three instances on copies of real Rucio databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.federations import KINDS, MIXED, POSTGRESQL, SHARED, SQLITE, Prepared, empty_postgres, prepare
from tests.support.instances import Instance
from tests.support.postgres import Server


@pytest.fixture
def instances(template_database: Path, tmp_path: Path) -> Iterator[list[Instance]]:
    """atlas, cms and belle2; each shares its own scope, and all share atlas.shared."""
    made = [Instance(template_database, tmp_path, name, shared) for name, shared in SHARED.items()]
    yield made
    for instance in made:
        instance.close()


@pytest.fixture(scope="session")
def prepared(template_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The databases of three instances that know each other's scopes; each has a private scope besides."""
    with prepare(KINDS[SQLITE], template_database, None, "", tmp_path_factory.mktemp("prepared")) as made:
        yield {name: Path(place) for name, place in made.places.items()}


@pytest.fixture
def federation(prepared: dict[str, Path], tmp_path: Path) -> Iterator[list[Instance]]:
    """atlas, cms and belle2, whose scopes have reached each other."""
    with Prepared(prepared).copied(tmp_path) as made:
        yield made


# ---- on either kind of database


@pytest.fixture(scope="session")
def rucio_on_postgres(postgres_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a Rucio database on PostgreSQL to copy."""
    with empty_postgres(postgres_server, tmp_path_factory.mktemp("postgres")) as name:
        yield name


@pytest.fixture(scope="session")
def prepared_sqlite(prepared: dict[str, Path]) -> Prepared:
    return Prepared(prepared)


@pytest.fixture(scope="session")
def prepared_postgresql(postgres_server: Server, rucio_on_postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    with prepare(KINDS[POSTGRESQL], None, postgres_server, rucio_on_postgres, tmp_path_factory.mktemp("prepared")) as made:
        yield made


@pytest.fixture(scope="session")
def prepared_mixed(
    template_database: Path, postgres_server: Server, rucio_on_postgres: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prepared]:
    with prepare(KINDS[MIXED], template_database, postgres_server, rucio_on_postgres, tmp_path_factory.mktemp("prepared")) as made:
        yield made


@pytest.fixture(params=[SQLITE, pytest.param(POSTGRESQL, marks=pytest.mark.postgres)])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Instance]]:
    """atlas, cms and belle2, whose scopes have reached each other: on SQLite, then on PostgreSQL."""
    prepared: Prepared = request.getfixturevalue(f"prepared_{request.param}")
    with prepared.copied(tmp_path) as made:
        yield made
