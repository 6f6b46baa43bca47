"""Three instances on real Rucio databases of either kind: prepared once, copied for each test.

`prepare` lets atlas, cms and belle2 get to know each other's scopes; `Prepared.copied` gives a test copies of their databases. Which
of them stand on SQLite and which on PostgreSQL is told by KINDS.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Optional, Union

import pytest
from sqlalchemy import make_url

from tests.support.instances import Instance, settle
from tests.support.postgres import Server
from tests.support.rucio_postgres import PostgresInstance, build

SHARED = {"atlas": ["atlas.shared", "atlas"], "cms": ["atlas.shared", "cms"], "belle2": ["atlas.shared", "belle2"]}

SQLITE, POSTGRESQL, MIXED = "sqlite", "postgresql", "mixed"
KINDS: Mapping[str, Mapping[str, str]] = {
    SQLITE: dict.fromkeys(SHARED, SQLITE),
    POSTGRESQL: dict.fromkeys(SHARED, POSTGRESQL),
    MIXED: {"atlas": POSTGRESQL, "cms": POSTGRESQL, "belle2": SQLITE},
}
"""Federations by name, and on what each of their instances stands."""

Place = Union[Path, str]
"""Where a database is: a file of SQLite, or the name of a database of PostgreSQL."""


class Prepared(NamedTuple):
    """The databases of three instances that know each other's scopes; nothing is connected to them."""

    places: Mapping[str, Place]
    server: Optional[Server] = None

    @contextmanager
    def copied(self, directory: Path) -> Iterator[list[Instance]]:
        """Instances on copies of them, which go at the end."""
        with ExitStack() as opened:
            made = []
            for name, place in self.places.items():
                made.append(opened.enter_context(copied(self.server, place, directory, name, SHARED[name])))
            yield made


@contextmanager
def copied(server: Optional[Server], place: Place, directory: Path, name: str, shared: Sequence[str]) -> Iterator[Instance]:
    """The instance `name` on a copy of the database at `place`, which goes at the end."""
    if isinstance(place, Path):
        made = Instance(place, directory, name, shared, durable=False)
        try:
            yield made
        finally:
            made.close()
        return
    assert server is not None, "a database of PostgreSQL has a server"
    with server.database(template=place) as url:
        made = PostgresInstance(url, name, shared)
        try:
            yield made
        finally:
            made.close()


@contextmanager
def lone(request: pytest.FixtureRequest, kind: str, directory: Path) -> Iterator[Instance]:
    """atlas, which shares its scope, on a new Rucio database of this kind."""
    if kind == SQLITE:
        place, server = request.getfixturevalue("template_database"), None
    else:
        place, server = request.getfixturevalue("rucio_on_postgres"), request.getfixturevalue("postgres_server")
    with copied(server, place, directory, "atlas", ["atlas"]) as made:
        yield made


def introduce(made: list[Instance]) -> None:
    """Each makes its scopes, a private one besides, and hears of the others'."""
    for instance in made:
        instance.add_scope(instance.name)
        instance.add_scope(f"{instance.name}.private")
    made[0].add_scope("atlas.shared")
    settle(made)


@contextmanager
def empty_postgres(server: Server, directory: Path) -> Iterator[str]:
    """The name of a Rucio database on PostgreSQL with nsync's tables and triggers, to make others from."""
    with server.database() as url:
        build(url, directory)
        yield database_of(url)


@contextmanager
def prepare(
    kinds: Mapping[str, str], sqlite: Optional[Path], server: Optional[Server], template: str, directory: Path
) -> Iterator[Prepared]:
    """Prepared databases of `kinds`, made from an empty one of each: the file `sqlite`, and `template` on `server`."""
    with ExitStack() as opened:
        made: list[Instance] = []
        places: dict[str, Place] = {}
        for name, kind in kinds.items():
            if kind == SQLITE:
                assert sqlite is not None, "there is an empty database to copy"
                made.append(Instance(sqlite, directory, name, SHARED[name], durable=False))
                places[name] = made[-1].path
            else:
                assert server is not None, "a database of PostgreSQL has a server"
                url = opened.enter_context(server.database(template=template))
                made.append(PostgresInstance(url, name, SHARED[name]))
                places[name] = database_of(url)
        introduce(made)
        for instance in made:
            if isinstance(places[instance.name], Path):
                instance.checkpoint()
            instance.close()
        yield Prepared(places, server)


def database_of(url: str) -> str:
    """The name of the database that a URL leads to."""
    return str(make_url(url).database)
