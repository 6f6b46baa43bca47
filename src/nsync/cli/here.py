"""This instance as commands find it that end: its configuration, read by the charter that its database has in force.

What needs Rucio is imported when a command runs: Rucio reads its configuration at import, and `--help` needs none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nsync.auth.keys import verify
from nsync.cli.output import fail, serve_no_metrics

if TYPE_CHECKING:
    from nsync.config import Settings


def settings_in_force(is_member: bool = True) -> Settings:
    """The settings, with the charter in force in the database in place of the file's. Raises ConfigError.

    `is_member`: end the command where that charter does not list this instance, which then can do nothing in it.
    """
    from nsync import config

    serve_no_metrics()
    from nsync.rucio_bridge import charters
    from nsync.rucio_bridge.engine import get_engine
    from nsync.store import migrations

    settings = config.read()
    with get_engine().connect() as connection:
        migrations.require_current(connection)
        charter = charters.in_force(connection, verify) or settings.charter
    me = charter.by_name(settings.me.name)
    if me is None and is_member:
        fail(f"the charter in force names no instance {settings.me.name!r}")
    return replace(settings, charter=charter, me=me or settings.me)
