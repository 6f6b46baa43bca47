"""`nsync serve`: the node of one Rucio instance, until it is told to stop.

What needs Rucio is imported when the command runs: Rucio reads its configuration at import, and `--help` needs none.
"""

from __future__ import annotations

import asyncio
import gc
import signal
from typing import TYPE_CHECKING

import click

from nsync.cli.output import as_json, fail, setup_logging

if TYPE_CHECKING:
    from nsync.config import Settings
    from nsync.node import Node
    from nsync.transport.gossip import SyncReport

EXIT_UNREACHABLE = 5


@click.command(
    epilog="Exit codes: 0 stopped in an orderly way, 1 failed, 2 wrong usage, 5 (with --run-once) an exchange with a peer failed."
)
@click.option("--run-once", is_flag=True, help="Publish, exchange with every peer once, apply what came, and end.")
@click.option("--json", "json_", is_flag=True, help="With --run-once: print the exchanges as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def serve(run_once: bool, json_: bool, verbose: bool) -> None:
    """Run the node of this Rucio instance: peers' API, gossip and bridge.

    Configured in the [nsync] section of rucio.cfg. SIGTERM and Ctrl-C stop it: the transaction at hand ends first.
    """
    if json_ and not run_once:
        raise click.UsageError("--json goes with --run-once")
    from nsync import config

    setup_logging(verbose)
    settings = config.read()
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
    asyncio.run(_serve(settings))


async def _once(settings: Settings) -> list[SyncReport]:
    return await _node(settings).run_once()


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await _node(settings).run(stop)


def _node(settings: Settings) -> Node:
    """The node, in a process that has imported all it needs.

    Python's collector need not look through those 200 000 objects of Rucio again: it takes a quarter of the time of each transaction,
    and most of a second when the process ends.
    """
    from nsync.node import Node

    node = Node(settings)
    gc.freeze()
    return node
