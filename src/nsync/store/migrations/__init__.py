"""Versions of the nsync tables, by alembic, in a version table of their own: Rucio's chain is never touched."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from nsync.store.database import writing

VERSION_TABLE = "nsync_alembic_version"


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the nsync tables of this database to `revision`, in one transaction where the back-end allows it."""
    with writing(engine) as connection:
        command.upgrade(_config(connection), revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Take the nsync tables back to `revision`; "base" drops them."""
    with writing(engine) as connection:
        command.downgrade(_config(connection), revision)


def current(connection: Connection) -> Optional[str]:
    """The revision of this database's nsync tables, or None when it has none."""
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def newest() -> Optional[str]:
    """The revision that this nsync works with."""
    return ScriptDirectory.from_config(_config(None)).get_current_head()


def _config(connection: Optional[Connection]) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    return config
