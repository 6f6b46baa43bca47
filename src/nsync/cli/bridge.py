"""`nsync bridge`: nsync's part of a Rucio database: its tables and its triggers.

What needs Rucio is imported when a command runs: Rucio reads its configuration at import, and `--help` needs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

import click

from nsync.auth.keys import verify
from nsync.cli.here import settings_in_force
from nsync.cli.output import as_json, fail
from nsync.rucio_bridge import audit as audits
from nsync.rucio_bridge import charters, triggers
from nsync.rucio_bridge.guard import unknown_schema
from nsync.store import migrations, peers
from nsync.store.database import writing
from nsync.transport.peers import held_back_by
from nsync.transport.times import wall_ms

if TYPE_CHECKING:
    from sqlalchemy import Connection

EXIT_ATTENTION = 4

_FOR_A_DBA = """\
-- To be run on the database {database}, by the role of [database] default ({role}), which then owns the nsync tables. It needs
-- CREATE on the schema {schema}, and TRIGGER on Rucio's tables there; to drop or renew triggers it must own these tables.
-- The functions run with its rights (SECURITY DEFINER), so that who writes into Rucio's tables needs none on the nsync tables.
-- CREATE TRIGGER waits for the transactions that write its table, and those after it wait meanwhile: one table at a time, and
-- SET lock_timeout = '2s' with another try keep that short, as 'nsync bridge install' does by itself.
"""


@click.group()
def bridge() -> None:
    """Install and check nsync's part of a Rucio database."""


@bridge.command()
@click.option("--dry-run", is_flag=True, help="Print the SQL that would be run on this database, and change nothing.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def install(dry_run: bool, json_: bool) -> None:
    """Make nsync's tables (nsync_*, with a version table of their own) and triggers, or bring them up to date.

    With [nsync] capture = poll there are no triggers, and those that are there go. Rucio's own tables and migrations are not touched.
    Where triggers were made or dropped, the node looks once more at everything that may be shared.

    Exit codes: 0 done, 1 failed.
    """
    from nsync import config
    from nsync.rucio_bridge.engine import get_engine

    engine = get_engine()
    with engine.connect() as connection:
        reason = unknown_schema(connection)
        if reason is not None:
            fail(reason)
        if dry_run:
            _print_sql(_installation(connection, config.is_polled()), json_)
            return
    settings = config.read()
    migrations.upgrade(engine)
    made = triggers.install_beside(engine, settings.polling is None)
    with writing(engine) as connection:
        charters.following(connection, settings.charter_text, verify)
        if charters.in_force(connection, verify) is None:
            charters.keep(connection, settings.charter_text)
    url = engine.url.render_as_string()
    if json_:
        as_json({"database": url, "tables_with_new_triggers": made})
    else:
        click.echo(f"nsync is installed in {url}")


def _installation(connection: Connection, polls: bool) -> list[str]:
    sql, tables = [migrations.upgrade_sql(connection).strip()], triggers.installation(connection, not polls)
    for statements in tables.values():
        sql += ["BEGIN;", *(f"{statement};" for statement in statements), "COMMIT;"]
    if tables:
        sql.append(f"INSERT INTO {triggers.qualified(connection, 'nsync_audit')} (reason) VALUES ('triggers were installed');")  # noqa: S608
    return [_for_a_dba(connection), *filter(None, sql)] if any(sql) else []


def _for_a_dba(connection: Connection) -> str:
    if connection.dialect.name != "postgresql":
        return ""
    database, role, schema = connection.exec_driver_sql("SELECT current_database(), current_user, quote_ident(current_schema())").one()
    return _FOR_A_DBA.format(database=database, role=role, schema=schema) + f"SET search_path = {schema};"


def _print_sql(sql: list[str], json_: bool) -> None:
    if json_:
        as_json({"sql": sql})
    else:
        click.echo("\n".join(filter(None, sql)))


@bridge.command()
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def check(json_: bool) -> None:
    """Say whether the database's URL, its tables and triggers are as nsync needs them, and this Rucio's schema is a tested one.

    Exit codes: 0 all in order, 1 failed, 4 something needs attention.
    """
    from nsync import config
    from nsync.rucio_bridge.engine import any_engine, unsuited

    engine = any_engine()
    with engine.connect() as connection:
        found = {
            "database": unsuited(engine),
            "rucio_schema": unknown_schema(connection),
            "tables": migrations.outdated(connection),
            "triggers": _not_as_wanted(connection, config.is_polled()),
        }
    if json_:
        as_json(found)
    else:
        for part, problem in found.items():
            click.echo(f"{part}: {problem or 'ok'}")
    if any(found.values()):
        raise SystemExit(EXIT_ATTENTION)


def _not_as_wanted(connection: Connection, polls: bool) -> Optional[str]:
    if polls:
        there = len(triggers.installed(connection))
        return f"{there} are there, though [nsync] capture = poll; run 'nsync bridge install' to drop them" if there else None
    wrong = {"missing": triggers.missing(connection), "not as this nsync makes them, or switched off": triggers.outdated(connection)}
    parts = [f"{how}: {', '.join(names)}" for how, names in wrong.items() if names]
    return "; ".join([*parts, "run 'nsync bridge install'"]) if parts else None


@bridge.command()
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def audit(json_: bool) -> None:
    """Let the node look at everything that may be shared, and publish what differs from the catalogue.

    For a database that was changed unseen: restored, loaded without triggers, repaired by hand. The node does it in parts, at
    once when it runs. Exit codes: 0 asked for, 1 failed.
    """
    from nsync.rucio_bridge.engine import get_engine

    with writing(get_engine()) as connection:
        migrations.require_current(connection)
        audits.ask(connection, "asked for by an operator")
    if json_:
        as_json({"asked": True})
    else:
        click.echo("the node looks at everything that may be shared")


@bridge.command()
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def rebuild(json_: bool) -> None:
    """Derive the catalogue anew from the logs, and write the rows of what is different then.

    Needed when a new nsync judges by other rules: the node says so, and applies nothing until then. Rucio's own writers wait
    meanwhile: some 10 000 files a second. Exit codes: 0 done, 1 failed.
    """
    settings = settings_in_force()
    from nsync.node import bridge_of

    here, now_ms = bridge_of(settings), wall_ms()
    with here.engine.connect() as connection:
        clock = held_back_by(peers.load(connection), now_ms)
    if clock is not None:
        fail(f"nothing is rebuilt: {clock}")  # it publishes first what users changed
    moved = here.rebuild(now_ms)
    if json_:
        as_json({"changed": moved})
    else:
        click.echo(f"the catalogue is derived anew: {moved} entries are different")


@bridge.command()
@click.option("--tables", is_flag=True, help="Drop the nsync tables too, with the log, the catalogue and what is not published yet.")
@click.option("--dry-run", is_flag=True, help="Print the SQL that would be run on this database, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def remove(tables: bool, dry_run: bool, yes: bool, json_: bool) -> None:
    """Drop the triggers: Rucio works as before nsync came. The nsync tables stay; a later install captures anew.

    With --tables they go too, after the triggers; Rucio's rows stay as they are. Stop the node before. Exit codes: 0 done, 1 failed.
    """
    from nsync.rucio_bridge.engine import any_engine

    engine = any_engine()
    if dry_run:
        with engine.connect() as connection:
            sql = [f"{statement};" for statement in triggers.removal(connection)]
            _print_sql([_for_a_dba(connection), *sql, *([migrations.drop_sql(connection).strip()] if tables else [])], json_)
        return
    question = "Stop capturing changes of this Rucio? What the namespace has stays."
    if tables:
        question = "Stop capturing, and drop all nsync tables with this instance's log and what others said? Only peers have them then."
    if not yes:
        click.confirm(question, abort=True)
    dropped = triggers.remove_beside(engine)
    if tables:
        migrations.drop(engine)
    if json_:
        as_json({"triggers": dropped, "tables": tables})
    else:
        click.echo("the triggers and the nsync tables are removed" if tables else "the triggers are removed")
