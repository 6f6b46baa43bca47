"""`nsync bridge`: nsync's part of a Rucio database: its tables and its triggers.

What needs Rucio is imported when a command runs: Rucio reads its configuration at import, and `--help` needs none.
"""

from __future__ import annotations

from typing import Optional

import click

from nsync.auth.keys import verify
from nsync.authority.effective import Authority
from nsync.cli.output import as_json, fail
from nsync.rucio_bridge import charters, triggers
from nsync.rucio_bridge.guard import unknown_schema
from nsync.store import migrations
from nsync.store.database import writing
from nsync.transport.times import wall_ms

EXIT_ATTENTION = 4


@click.group()
def bridge() -> None:
    """Install and check nsync's part of a Rucio database."""


@bridge.command()
@click.option("--dry-run", is_flag=True, help="Print the SQL of the triggers, and change nothing.")
def install(dry_run: bool) -> None:
    """Make nsync's tables (nsync_*, with a version table of their own) and triggers, or bring them up to date.

    Rucio's own tables and migrations are not touched. Exit codes: 0 done, 1 failed.
    """
    if dry_run:
        click.echo(";\n".join(triggers.statements()) + ";")
        return
    from nsync import config
    from nsync.rucio_bridge.engine import get_engine

    engine = get_engine()
    with engine.connect() as connection:
        reason = unknown_schema(connection)
    if reason is not None:
        fail(reason)
    settings = config.read()
    migrations.upgrade(engine)
    with writing(engine) as connection:
        triggers.install(connection)
        charters.following(connection, settings.charter_text, verify)
        if charters.in_force(connection, verify) is None:
            charters.keep(connection, settings.charter_text)
    click.echo(f"nsync is installed in {engine.url.render_as_string()}")


@bridge.command()
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def check(json_: bool) -> None:
    """Say whether the database's URL, its tables and triggers are as nsync needs them, and this Rucio's schema is a tested one.

    Exit codes: 0 all in order, 1 failed, 4 something needs attention.
    """
    from nsync.rucio_bridge.engine import any_engine, unsuited

    engine = any_engine()
    with engine.connect() as connection:
        found = {
            "database": unsuited(engine),
            "rucio_schema": unknown_schema(connection),
            "tables": migrations.outdated(connection),
            "triggers": _missing(triggers.missing(connection)),
        }
    if json_:
        as_json(found)
    else:
        for part, problem in found.items():
            click.echo(f"{part}: {problem or 'ok'}")
    if any(found.values()):
        raise SystemExit(EXIT_ATTENTION)


def _missing(names: list[str]) -> Optional[str]:
    return f"missing: {', '.join(names)}; run 'nsync bridge install'" if names else None


@bridge.command()
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def rebuild(json_: bool) -> None:
    """Derive the catalogue anew from the logs, and write the rows of what is different then.

    Needed when a new nsync judges by other rules: the node says so, and applies nothing until then. Rucio's own writers wait
    meanwhile: some 10 000 files a second. Exit codes: 0 done, 1 failed.
    """
    from nsync import config
    from nsync.rucio_bridge.bridge import Bridge
    from nsync.rucio_bridge.engine import get_engine

    settings, engine = config.read(), get_engine()
    with engine.connect() as connection:
        charter = charters.in_force(connection, verify) or settings.charter
    me = charter.by_name(settings.me.name)
    if me is None:
        fail(f"the charter in force names no instance {settings.me.name!r}")
    moved = Bridge(engine, Authority(charter), me, settings.key.sign, verify, settings.rse_expression).rebuild(wall_ms())
    if json_:
        as_json({"changed": moved})
    else:
        click.echo(f"the catalogue is derived anew: {moved} entries are different")


@bridge.command()
@click.confirmation_option(prompt="Stop capturing changes of this Rucio? What the namespace has stays.")
def remove() -> None:
    """Drop the triggers: Rucio works as before nsync came. The nsync tables stay; a later install captures anew."""
    from nsync.rucio_bridge.engine import any_engine

    with writing(any_engine()) as connection:
        triggers.remove(connection)
    click.echo("the triggers are removed")
