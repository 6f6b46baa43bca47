"""Migrations, on each back-end: the nsync tables by versions of their own, where Rucio's tables and versions stand too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Optional

import pytest
from sqlalchemy import Engine, Table, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

pytest.importorskip("alembic", reason="migrations are for databases beside Rucio, and come with the extra 'rucio'")

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from nsync.store import migrations, schema
from nsync.store.database import create_tables

RUCIO = ("alembic_version", "dids", "scopes")


@pytest.fixture
def engine(store_url: str) -> Iterator[Engine]:
    """A database in which some tables of Rucio's stand, at one of Rucio's versions."""
    engine = create_engine(store_url)
    with engine.begin() as connection:
        for table in RUCIO:
            connection.execute(text(f"CREATE TABLE {table} (version_num VARCHAR(32))"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('rucio-head')"))
    yield engine
    engine.dispose()


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names())


def current(engine: Engine) -> Optional[str]:
    with engine.connect() as connection:
        return migrations.current(connection)


def versions(engine: Engine, table: str) -> list[str]:
    with engine.connect() as connection:
        return list(connection.execute(text(f"SELECT version_num FROM {table}")).scalars())


def differences(engine: Engine) -> list[object]:
    """Between what was migrated and the schema, as alembic sees it."""
    with engine.connect() as connection:
        options = {
            "compare_type": True,
            "compare_server_default": True,
            "version_table": migrations.VERSION_TABLE,
            "include_name": lambda name, kind, parents: kind != "table" or name.startswith("nsync_"),
        }
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata))


def definitions(engine: Engine) -> set[str]:
    """Everything about the nsync tables that the database itself has written down."""
    with engine.connect() as connection:
        rows = connection.execute(text(_CATALOGUE[engine.name])).all()
    return {
        re.sub(r"\s+", " ", " ".join(map(str, row))).replace("( ", "(") for row in rows if migrations.VERSION_TABLE not in str(row).lower()
    }


_CATALOGUE = {
    "sqlite": "SELECT sql FROM sqlite_master WHERE tbl_name LIKE 'nsync%' AND sql IS NOT NULL",
    "postgresql": """
        SELECT table_name::text, column_name::text, data_type::text, character_maximum_length, is_nullable::text, column_default::text
        FROM information_schema.columns WHERE table_name LIKE 'nsync%' AND table_schema = current_schema()
        UNION ALL SELECT indexdef, '', '', 0, '', '' FROM pg_indexes WHERE tablename LIKE 'nsync%'
        UNION ALL SELECT conrelid::regclass::text, pg_get_constraintdef(oid), '', 0, '', '' FROM pg_constraint
        WHERE conrelid::regclass::text LIKE 'nsync%'""",
}


def a_row(table: Table) -> dict[str, Any]:
    """Values for every column that must have one."""
    values: dict[type, Any] = {int: 1, bytes: b"x" * 16, str: "x", bool: True}
    return {column.name: values[column.type.python_type] for column in table.columns if not column.nullable}


def test_upgrade_makes_the_tables_of_the_schema_and_no_other(engine: Engine) -> None:
    migrations.upgrade(engine)
    assert differences(engine) == []
    assert tables(engine) == {*schema.TABLES, migrations.VERSION_TABLE, *RUCIO}
    assert current(engine) == migrations.newest() is not None


def test_upgrade_and_create_tables_make_the_same(engine: Engine) -> None:
    migrations.upgrade(engine)
    migrated = definitions(engine)
    with engine.begin() as connection:
        schema.metadata.drop_all(connection)
    assert definitions(engine) == set()
    create_tables(engine)
    named = re.compile(
        r'CONSTRAINT "\w+_PK" |(?<= INDEX )("\w+_PK"|\w+_pkey) '
    )  # Rucio's models, once imported, name the primary keys of every table made after
    assert {named.sub("", line) for line in definitions(engine)} == {named.sub("", line) for line in migrated} != set()


def test_a_second_upgrade_changes_nothing(engine: Engine) -> None:
    migrations.upgrade(engine)
    with engine.begin() as connection:
        for table in schema.metadata.sorted_tables:
            connection.execute(table.insert().values(a_row(table)))
    migrations.upgrade(engine)
    with engine.connect() as connection:
        assert all(len(connection.execute(table.select()).all()) == 1 for table in schema.metadata.sorted_tables)


def test_down_by_every_version_and_up_again_gives_the_same_and_leaves_rucio_alone(engine: Engine) -> None:
    migrations.upgrade(engine)
    first = definitions(engine)
    while current(engine) is not None:
        migrations.downgrade(engine, "-1")
    assert tables(engine) - {migrations.VERSION_TABLE} == set(RUCIO)
    migrations.upgrade(engine)
    assert differences(engine) == []
    assert definitions(engine) == first
    assert versions(engine, "alembic_version") == ["rucio-head"]


def test_the_versions_are_kept_apart(engine: Engine) -> None:
    assert current(engine) is None  # not Rucio's
    migrations.upgrade(engine)
    assert versions(engine, migrations.VERSION_TABLE) == [migrations.newest()]
    assert versions(engine, "alembic_version") == ["rucio-head"]


def test_an_upgrade_that_fails_leaves_nothing_behind(engine: Engine) -> None:
    in_the_way = schema.metadata.sorted_tables[-1].name
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE {in_the_way} (mine INTEGER)"))
    before = tables(engine)
    with pytest.raises(DBAPIError, match=f"{in_the_way}.*already exists"):
        migrations.upgrade(engine)
    assert tables(engine) == before
