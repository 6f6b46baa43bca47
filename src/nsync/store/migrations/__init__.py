"""Versions of the nsync tables, by alembic, in a version table of their own: Rucio's chain is never touched."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Callable, Optional

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from nsync.errors import ConfigError
from nsync.store.database import writing

VERSION_TABLE = "nsync_alembic_version"


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the nsync tables of this database to `revision`, in one transaction where the back-end allows it."""
    with writing(engine) as connection:
        command.upgrade(_config(connection), revision)


def upgrade_sql(connection: Connection) -> str:
    """The SQL that `upgrade` would run, for somebody else to run it; empty when there is nothing to do."""
    found = current(connection)
    return "" if found == newest() else _sql(connection, command.upgrade, f"{found or 'base'}:head")


def drop_sql(connection: Connection) -> str:
    """The SQL that `drop` would run; empty when there are no tables."""
    found = current(connection)
    return "" if found is None else _sql(connection, command.downgrade, f"{found}:base")


def drop(engine: Engine) -> None:
    """Drop the nsync tables and their version table. Triggers go before."""
    with writing(engine) as connection:
        command.downgrade(_config(connection), "base")
        connection.exec_driver_sql(f"DROP TABLE {VERSION_TABLE}")


def downgrade(engine: Engine, revision: str) -> None:
    """Take the nsync tables back to `revision`; "base" drops them."""
    with writing(engine) as connection:
        command.downgrade(_config(connection), revision)


def current(connection: Connection) -> Optional[str]:
    """The revision of this database's nsync tables, or None when it has none."""
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def outdated(connection: Connection) -> Optional[str]:
    """Why nsync cannot work with the tables of this database, with the way out; None when it can."""
    found, wanted = current(connection), newest()
    if found == wanted:
        return None
    state = "are not in this database" if found is None else f"are at revision {found}, and this nsync needs {wanted}"
    return f"the nsync tables {state}; run 'nsync bridge install'"


def require_current(connection: Connection) -> None:
    """Raises ConfigError unless the nsync tables are there, at the revision that this nsync works with."""
    problem = outdated(connection)
    if problem is not None:
        raise ConfigError(problem)


def newest() -> Optional[str]:
    """The revision that this nsync works with."""
    return ScriptDirectory.from_config(_config(None)).get_current_head()


def _sql(connection: Connection, run: Callable[..., None], revisions: str) -> str:
    config = _config(connection)
    config.output_buffer = StringIO()
    run(config, revisions, sql=True)
    return config.output_buffer.getvalue()


def _config(connection: Optional[Connection]) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    return config
