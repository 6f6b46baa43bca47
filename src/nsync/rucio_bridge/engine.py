"""Rucio's own engine: the database of rucio.cfg, with the pool that its operator configured.

`get_engine` gives it only where nsync can work beside Rucio, so that no command and no node starts on another one.
"""

from __future__ import annotations

from configparser import Error
from typing import Optional

from rucio.db.sqla import session
from sqlalchemy import Engine
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from nsync.errors import ConfigError


def get_engine() -> Engine:
    """The engine, of a database that nsync can share with Rucio. Raises ConfigError."""
    engine = any_engine()
    problem = unsuited(engine)
    if problem is not None:
        raise ConfigError(problem)
    return engine


def any_engine() -> Engine:
    """The engine, whatever its dialect; the database was opened once. Raises ConfigError."""
    try:
        engine: Engine = session.get_engine()
        engine.connect().close()
    except Error as error:
        raise ConfigError(
            "[database] default is not set in rucio.cfg: the server's file is needed, not a client's (RUCIO_CONFIG)"
        ) from error
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigError(f"[database] default is no URL of a database: {error}") from error
    except DBAPIError as error:
        raise ConfigError(f"[database] default: the database cannot be opened: {error.orig}") from error
    return engine


def unsuited(engine: Engine) -> Optional[str]:
    """Why nsync does not work beside Rucio with this URL, with the way out; None when it does."""
    name, driver = engine.dialect.name, engine.dialect.driver
    if driver == "nsync" or (name, driver) == ("postgresql", "psycopg"):
        return None
    if name == "sqlite":
        return (
            "[database] default begins with 'sqlite:', with which Rucio loses calls beside a second writer; write 'sqlite+nsync:' "
            "in its place, here and as sqlalchemy.url in alembic.ini, and restart Rucio (README, 'Beside your own Rucio', step 2)"
        )
    if name == "postgresql":
        return f"[database] default is read with {driver}; write 'postgresql+psycopg:' in its place, and install psycopg"
    return f"[database] default is of {name}; nsync works on PostgreSQL and SQLite"
