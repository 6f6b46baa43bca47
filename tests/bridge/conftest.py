"""Three instances on copies of real Rucio databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.support.federations import KINDS, MIXED, POSTGRESQL, SHARED, SQLITE, Prepared, copied, prepare
from tests.support.grown import GROWN, grow
from tests.support.instances import Instance
from tests.support.postgres import Server
from tests.support.rucio_postgres import PostgresInstance
from tests.support.victims import Ground


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


@pytest.fixture(scope="session")
def grown(template_database: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("drift")
    made = [Instance(template_database, directory, name, shared, durable=False) for name, shared in GROWN.items()]
    grow(made[0], made[1])
    for one in made:
        one.checkpoint()
        one.close()
    return {one.name: one.path for one in made}


@pytest.fixture(scope="session")
def grown_on_postgres(postgres_server: Server, rucio_on_postgres: str) -> Iterator[str]:
    """The name of cms' database, to copy."""
    with postgres_server.database(template=rucio_on_postgres) as one, postgres_server.database(template=rucio_on_postgres) as other:
        atlas, cms = PostgresInstance(one, "atlas", GROWN["atlas"]), PostgresInstance(other, "cms", GROWN["cms"])
        grow(atlas, cms)
        atlas.close()
        cms.close()
        yield str(make_url(other).database)


@pytest.fixture(params=[SQLITE, pytest.param(POSTGRESQL, marks=pytest.mark.postgres)])
def cms(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Instance]:
    """cms, which has what atlas shares."""
    if request.param == SQLITE:
        place, server = request.getfixturevalue("grown")["cms"], None
    else:
        place, server = request.getfixturevalue("grown_on_postgres"), request.getfixturevalue("postgres_server")
    with copied(server, place, tmp_path, "cms", GROWN["cms"]) as made:
        yield made


# ---- databases whose bridge is killed


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """The tests run once for each back-end."""
    if request.param == "sqlite":
        template, server = f"sqlite+nsync:///{request.getfixturevalue('template_database')}", None
    else:
        server = request.getfixturevalue("postgres_server")
        template = server.url(request.getfixturevalue("rucio_on_postgres"))
    made = Ground(template, tmp_path_factory.mktemp("ground"), server)
    yield made
    made.close()
