"""`nsync serve`: the node of one Rucio instance, until it is told to stop.

What needs Rucio is imported when the command runs: Rucio reads its configuration at import, and `--help` needs none.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Optional

import click

from nsync.auth.keys import verify
from nsync.authority import amendments
from nsync.cli.output import as_json, fail, metrics_served, serve_no_metrics, setup_logging
from nsync.errors import CharterMoved, ConfigError, NsyncError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from nsync.config import Settings
    from nsync.node import Node
    from nsync.transport.gossip import SyncReport

LOG = logging.getLogger(__name__)

EXIT_UNREACHABLE = 5

SECONDS_MAX, BULK_MAX = 86_400, 100_000
"""As `nsync.config` has them, which is not imported before the command runs."""

Given = Mapping[str, Any]
"""What the command line says in the place of rucio.cfg, by the names of `Settings`."""


@click.command(
    epilog="Exit codes: 0 stopped in an orderly way, 1 failed, 2 wrong usage, 5 (with --run-once) an exchange with a peer failed."
)
@click.option("--run-once", is_flag=True, help="Publish, exchange with every peer until all that it told of is here, apply it, and end.")
@click.option("--sleep-time", type=click.FloatRange(0, SECONDS_MAX, min_open=True), metavar="S", help="In place of [nsync] sleep_time.")
@click.option("--bulk", type=click.IntRange(1, BULK_MAX), metavar="N", help="In place of [nsync] bulk.")
@click.option("--dry-run", is_flag=True, help="Say what would be published and applied now, change nothing, call nobody, and end.")
@click.option("--json", "json_", is_flag=True, help="With --run-once or --dry-run: print JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def serve(run_once: bool, sleep_time: Optional[float], bulk: Optional[int], dry_run: bool, json_: bool, verbose: bool) -> None:
    """Run the node of this Rucio instance: peers' API, gossip and bridge.

    Configured in the [nsync] section of rucio.cfg; logs to standard error, as its [common] section says. SIGTERM and Ctrl-C stop it:
    the transaction at hand ends first. SIGHUP lets it take up an amended charter, and read its key and TLS files anew; a charter that
    cannot be taken up is logged, and changes nothing.
    """
    if json_ and not (run_once or dry_run):
        raise click.UsageError("--json goes with --run-once and --dry-run")
    given = {name: value for name, value in (("sleep_time_s", sleep_time), ("bulk", bulk)) if value is not None}
    setup_logging(verbose)
    if dry_run:
        _tell_rehearsal(_read(given), json_)
        return
    settings = _read(given)
    if run_once:
        reports = asyncio.run(_once(settings))
        if json_:
            as_json([report._asdict() for report in reports])
        else:
            for report in reports:
                click.echo(f"{report.peer}: {report.error or f'pulled {report.pulled} segments, pushed {report.pushed}'}")
        failed = [report for report in reports if report.error]
        if failed:
            fail("; ".join(report.error for report in failed), EXIT_UNREACHABLE)
        return
    asyncio.run(_serve(settings, given))


def _read(given: Given) -> Settings:
    """What rucio.cfg says, and the command line in its place. Raises ConfigError."""
    from nsync import config

    return replace(config.read(), **given)


def _tell_rehearsal(settings: Settings, json_: bool) -> None:
    serve_no_metrics()
    from nsync.node import bridge_of
    from nsync.rucio_bridge import charters, rehearsal
    from nsync.transport.times import wall_ms

    with _database() as connection:
        text = charters.text_in_force(connection)
    settings = _with_charter(settings, text) if text is not None else settings
    logging.getLogger("nsync").setLevel(logging.ERROR)  # what is undone is told below
    found = rehearsal.rehearse(bridge_of(settings), settings.shared_scopes, settings.scope_map, wall_ms())
    if json_:
        as_json(found._asdict())
        return
    click.echo(f"would publish: {_counted(found.published)}")
    click.echo(f"would apply changesets: {_counted(found.changesets)}")
    click.echo(f"would apply statements: {_counted(found.applied)}")
    for fact, reason in found.parked:
        click.echo(f"would park {fact}: {reason}")
    if not found.is_all:
        click.echo("and perhaps more: there was no time to look at all, or it waits for transactions of Rucio that run; try again")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"


async def _once(settings: Settings) -> list[SyncReport]:
    return await _node(settings).run_once()


async def _serve(settings: Settings, given: Given) -> None:
    stop, ending = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    current = [settings]
    looks: set[asyncio.Task[None]] = set()

    def end() -> None:
        ending.set()
        stop.set()

    async def look() -> None:
        found = await loop.run_in_executor(None, _anew, current[0], given)
        if found is not None:
            current[:] = [found]
            stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)

    def begin_look() -> None:
        looks.add(task := loop.create_task(look()))
        task.add_done_callback(looked)

    def looked(task: asyncio.Task[None]) -> None:
        looks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            LOG.error("SIGHUP changes nothing: %s", task.exception(), exc_info=task.exception())

    loop.add_signal_handler(signal.SIGHUP, begin_look)
    while not ending.is_set():
        stop.clear()
        try:
            await _node(current[0]).run(stop)
        except CharterMoved as error:
            LOG.warning("%s", error)
            current[:] = [_followed(current[0])]


def _anew(settings: Settings, given: Given) -> Optional[Settings]:
    """What the files say now, if a node with `settings` may go on with it."""
    from nsync.rucio_bridge import charters

    try:
        found = _read(given)
        amendments.go_on(settings.charter, found.charter_text, verify)
        with _database() as connection:
            reason = charters.put_off(connection, found.charter_text, verify)
        if reason is not None:
            raise ConfigError(reason)
    except NsyncError as error:
        LOG.error("SIGHUP changes nothing: %s", error)
        return None
    LOG.info("SIGHUP: the node starts anew, with version %d of the charter", found.charter.version)
    return found


def _node(settings: Settings) -> Node:
    """The node, in a process that has imported all it needs.

    Python's collector need not look through those 200 000 objects of Rucio again: it takes a quarter of the time of each transaction,
    and most of a second when the process ends.
    """
    with metrics_served():
        from nsync.node import Node

    node = Node(_in_force(settings))
    gc.freeze()
    return node


def _in_force(settings: Settings) -> Settings:
    """`settings`; with the charter in force, as long as the one that they name cannot be adopted (R7.7). Raises ConfigError."""
    from nsync.rucio_bridge import charters

    with _database() as connection:
        reason, text = charters.put_off(connection, settings.charter_text, verify), charters.text_in_force(connection)
    if reason is None or text is None:
        return settings
    found = _with_charter(settings, text)
    LOG.error("version %d of the charter stays in force: %s", found.charter.version, reason)
    return found


def _followed(settings: Settings) -> Settings:
    """`settings`, with the charter that another node on this database went over to. Raises ConfigError where it cannot be followed."""
    from nsync.rucio_bridge import charters

    with _database() as connection:
        text = charters.text_in_force(connection)
    assert text is not None, "somebody went over to it"
    amendments.go_on(settings.charter, text, verify)
    found = _with_charter(settings, text)
    LOG.warning("the node starts anew, with version %d of the charter; put its file where [nsync] charter points", found.charter.version)
    return found


def _with_charter(settings: Settings, text: str) -> Settings:
    charter = amendments.read(text, verify).charter
    me = charter.by_name(settings.me.name)
    if me is None or me.key != settings.key.public:
        raise ConfigError(f"[nsync] key is not that of {settings.me.name} in version {charter.version}; use the one before until then")
    shared = tuple(scope for scope in settings.shared_scopes if charter.may_write(me, scope))
    return replace(settings, me=me, charter=charter, charter_text=text, shared_scopes=shared)


@contextmanager
def _database() -> Iterator[Connection]:
    """Rucio's database, with the nsync tables. Raises ConfigError."""
    from nsync.rucio_bridge.engine import get_engine
    from nsync.store import migrations

    with get_engine().connect() as connection:
        migrations.require_current(connection)
        yield connection
