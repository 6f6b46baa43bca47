"""`nsync status` and `nsync conflict`: what this instance has, what it lacks, and what waits for a decision.

What needs Rucio is imported when a command runs: Rucio reads its configuration at import, and `--help` needs none.
"""

from __future__ import annotations

from collections.abc import Mapping

import click
from rich.console import Console
from rich.table import Table
from sqlalchemy.orm import Session

from nsync.auth.keys import verify
from nsync.authority.charter import Instance
from nsync.authority.effective import Authority
from nsync.cli.output import as_json
from nsync.rucio_bridge import charters, parked
from nsync.store import migrations
from nsync.store import status as store
from nsync.store.log import SqlLog
from nsync.transport.times import wall_ms

EXIT_BEHIND = 3
EXIT_ATTENTION = 4


@click.command()
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def status(json_: bool) -> None:
    """Show how far this instance is with each member's log, what the catalogue holds, and what needs attention.

    It speaks of this database only, and not of whether the node runs or its peers can be reached. Exit codes: 0 all in order,
    1 failed, 3 something is still to be applied or published, 4 conflicts, parked or refused changesets, or nothing is published here.
    """
    from nsync import config
    from nsync.rucio_bridge.engine import get_engine

    settings = config.read()
    with get_engine().connect() as connection:
        migrations.require_current(connection)
        found = store.status(connection)
        charter = charters.in_force(connection, verify) or settings.charter
        me = charter.by_name(settings.me.name) or settings.me
        sql_log = SqlLog(connection, Authority(charter))
        waits, read_only = sql_log.waits(wall_ms()), sql_log.read_only(me.author)
    stored = {log.author: log for log in found.logs}
    logs = {
        name: stored.get(life.author, store.LogStatus(life.author, 0, 0, None))
        for instance in charter.instances
        for name, life in zip(_names(instance), instance.incarnations)
    }
    logs.update({author.hex(): log for author, log in stored.items() if charter.life(author) is None})
    if json_:
        as_json(
            {
                **found._asdict(),
                "instance": settings.me.name,
                "read_only": read_only,
                "logs": {name: _log(log, waits) for name, log in logs.items()},
            }
        )
    else:
        table = Table("instance", "stored ops", "applied ops", "")
        for name, log in sorted(logs.items()):
            table.add_row(name, str(log.stored), str(log.applied), log.refused or waits.get(log.author, ""))
        Console().print(table)
        click.echo(f"{settings.me.name} shows " + ", ".join(f"{count} {kind}" for kind, count in found.shown.items()))
        click.echo(f"conflicts: {found.conflicts}  parked: {found.parked}  not published yet: {found.outbox}")
        if read_only is not None:
            click.echo(f"read-only: {read_only}")
        if found.conflicts or found.parked:
            click.echo("'nsync conflict list' says what they are and what resolves them")
    if found.conflicts or found.parked or read_only is not None or any(log.refused for log in found.logs):
        raise SystemExit(EXIT_ATTENTION)
    if found.outbox or any(log.stored != log.applied for log in found.logs):
        raise SystemExit(EXIT_BEHIND)


def _names(instance: Instance) -> list[str]:
    """How each of its incarnations is called: the present one by its name."""
    return [*(f"{instance.name} before {number}" for number in range(1, len(instance.past) + 1)), instance.name]


def _log(log: store.LogStatus, waits: Mapping[bytes, str]) -> dict[str, object]:
    return {"stored": log.stored, "applied": log.applied, "refused": log.refused, "waits": waits.get(log.author)}


@click.group()
def conflict() -> None:
    """What a rule of the namespace took away, and what does not fit this Rucio."""


@conflict.command("list")
@click.option("--all", "all_", is_flag=True, help="List also what only waits with something else.")
@click.option("--json", "json_", is_flag=True, help="Print JSON; always everything.")
def list_(all_: bool, json_: bool) -> None:
    """List conflicts and parked facts, each with what resolves it.

    A conflict is the same at every instance: a rule preferred one statement to another. A parked fact is this
    instance's own affair: rows that its Rucio cannot take. Exit codes: 0 nothing listed, 1 failed, 4 something is.
    """
    from nsync.rucio_bridge.engine import get_engine

    engine = get_engine()
    with engine.connect() as connection:
        migrations.require_current(connection)
        conflicts = store.conflicts(connection)
    with Session(engine) as session:
        waiting = parked.listing(session)
    if json_:
        about = [{"about": str(key), **found._asdict()} for key, found in conflicts]
        as_json({"conflicts": about, "parked": [{**entry._asdict(), "fact": str(entry.fact)} for entry in waiting]})
    else:
        for key, found in conflicts:
            click.echo(f"{key}: {found.rule}\n  stands: {found.winner}\n  lost:   {found.loser}\n  to resolve: {found.resolve}")
        batches: dict[str, list[parked.ParkedFact]] = {}
        for entry in waiting:
            batches.setdefault(entry.batch, []).append(entry)
        for batch, facts in batches.items():
            click.echo("\n".join(_parked(batch, facts, all_)))
    if conflicts or waiting:
        raise SystemExit(EXIT_ATTENTION)


def _parked(batch: str, facts: list[parked.ParkedFact], all_: bool) -> list[str]:
    """What is parked of one changeset: the causes first, the rest counted unless all is wanted."""
    ordered = sorted(facts, key=lambda entry: entry.reason.startswith("waits for"))
    causes = sum(not entry.reason.startswith("waits for") for entry in facts)
    shown = ordered if all_ else ordered[: max(causes, 1)]  # one at least: the cause may lie in another changeset
    lines = [f"parked with changeset {batch}:", *(f"  {entry.fact}\n    {entry.reason}" for entry in shown)]
    rest = len(ordered) - len(shown)
    return (
        [*lines, f"  and {rest} {'facts wait' if rest > 1 else 'fact waits'} with {'them' if len(shown) > 1 else 'it'} (--all lists all)"]
        if rest
        else lines
    )
