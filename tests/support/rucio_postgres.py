"""A real Rucio database on PostgreSQL, with nsync's tables and triggers, driven by Rucio's core as those on SQLite are."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rucio.db.sqla.session import psql_convert_decimal_to_float
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import sessionmaker

from nsync.auth.keys import verify
from nsync.rucio_bridge import triggers
from nsync.rucio_bridge.bridge import Bridge
from nsync.store import migrations
from nsync.store.database import writing
from tests.support.federation import AUTHORITY, CHARTER, KEYS
from tests.support.instances import EXPRESSION, Instance


def build(url: str, directory: Path) -> None:
    """Make Rucio's tables in the empty database at `url`, and nsync's."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(os.environ["RUCIO_CONFIG"])
    alembic = configparser.ConfigParser(interpolation=None)
    alembic.read(config["alembic"]["cfg"])
    config["database"] = {"default": url}
    alembic["alembic"]["sqlalchemy.url"] = url
    config["alembic"]["cfg"] = str(directory / "alembic.ini")
    for parser, name in ((config, "rucio.cfg"), (alembic, "alembic.ini")):
        with (directory / name).open("w", encoding="utf-8") as file:
            parser.write(file)
    environment = {**os.environ, "RUCIO_CONFIG": str(directory / "rucio.cfg")}
    subprocess.run([sys.executable, "-m", "nsync.testbed.initdb", "DISK", f"{directory}/rse/"], check=True, env=environment)
    engine = engine_of(url)
    migrations.upgrade(engine)
    with writing(engine) as connection:
        triggers.install(connection)
    engine.dispose()


def engine_of(url: str) -> Engine:
    """As Rucio opens it."""
    engine = create_engine(url)
    event.listen(engine, "connect", psql_convert_decimal_to_float)
    return engine


class PostgresInstance(Instance):
    """The instance `name` on the database at `url`, which `build` made."""

    def __init__(self, url: str, name: str, shared: Sequence[str] = ()) -> None:
        self.name = name
        self.engine = engine_of(url)
        self.sessions = sessionmaker(bind=self.engine)
        me = CHARTER.by_name(name)
        assert me is not None
        self.bridge = Bridge(self.engine, AUTHORITY, me, KEYS[name].sign, verify, EXPRESSION)
        self.bridge.share(shared)
        self.now_ms = 1_700_000_000_000
