"""Migrations: the nsync tables by versions of their own, in a database where Rucio's tables and versions stand too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, inspect, text

pytest.importorskip("alembic", reason="migrations are for databases beside Rucio, and come with the extra 'rucio'")

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from nsync.store import migrations, schema
from nsync.store.database import create_tables

RUCIO = ("alembic_version", "dids", "scopes")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A database in which some tables of Rucio's stand, at one of Rucio's versions."""
    engine = create_engine(f"sqlite:///{tmp_path / 'rucio.db'}")
    with engine.begin() as connection:
        for table in RUCIO:
            connection.execute(text(f"CREATE TABLE {table} (version_num VARCHAR(32))"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('rucio-head')"))
    yield engine
    engine.dispose()


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names())


def differences(engine: Engine) -> list[object]:
    with engine.connect() as connection:
        options = {
            "compare_type": True,
            "compare_server_default": True,
            "version_table": migrations.VERSION_TABLE,
            "include_name": lambda name, kind, parents: kind != "table" or name.startswith("nsync_"),
        }
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata))


def test_upgrade_makes_the_tables_of_the_schema_and_no_other(engine: Engine) -> None:
    migrations.upgrade(engine)
    assert differences(engine) == []
    assert tables(engine) == {*schema.TABLES, migrations.VERSION_TABLE, *RUCIO}
    with engine.connect() as connection:
        assert migrations.current(connection) == migrations.newest() is not None


def test_upgrade_and_create_tables_write_the_same_sql(engine: Engine, tmp_path: Path) -> None:
    def definitions(of: Engine) -> set[str]:
        with of.connect() as connection:
            rows = connection.execute(text("SELECT sql FROM sqlite_master WHERE tbl_name LIKE 'nsync%' AND sql IS NOT NULL"))
            return {named.sub("", " ".join(sql.split())).replace("( ", "(") for (sql,) in rows if migrations.VERSION_TABLE not in sql}

    named = re.compile(r'CONSTRAINT "\w+_PK" ')  # Rucio's models, once imported, name the primary keys of every table made after
    migrations.upgrade(engine)
    alone = create_engine(f"sqlite:///{tmp_path / 'alone.db'}")
    create_tables(alone)
    assert definitions(engine) == definitions(alone)
    alone.dispose()


def test_a_second_upgrade_changes_nothing(engine: Engine) -> None:
    migrations.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(schema.shared_scope.insert().values(scope="atlas"))
    migrations.upgrade(engine)
    with engine.connect() as connection:
        assert connection.execute(schema.shared_scope.select()).scalars().all() == ["atlas"]


def test_downgrade_to_base_drops_all_of_nsync_and_nothing_of_rucio(engine: Engine) -> None:
    migrations.upgrade(engine)
    migrations.downgrade(engine, "base")
    assert tables(engine) - {migrations.VERSION_TABLE} == set(RUCIO)
    with engine.connect() as connection:
        assert migrations.current(connection) is None
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == ["rucio-head"]
    migrations.upgrade(engine)
    assert differences(engine) == []


def test_the_versions_are_kept_apart(engine: Engine) -> None:
    with engine.connect() as connection:
        assert migrations.current(connection) is None  # not Rucio's
    migrations.upgrade(engine)
    with engine.connect() as connection:
        assert connection.execute(text(f"SELECT version_num FROM {migrations.VERSION_TABLE}")).scalars().all() == [migrations.newest()]
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == ["rucio-head"]


def test_an_upgrade_that_fails_leaves_nothing_behind(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE nsync_step (mine INTEGER)"))
    before = tables(engine)
    with pytest.raises(Exception, match="nsync_step already exists"):
        migrations.upgrade(engine)
    assert tables(engine) == before
