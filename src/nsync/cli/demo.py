"""`nsync demo`: a testbed that is started, used and judged by itself."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Optional

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from nsync.cli.testbed import EXIT_CODES, program
from nsync.errors import NsyncError
from nsync.testbed import control, layout, preflight
from nsync.testbed import demo as story
from nsync.testbed.supervisor import Say


@click.command(epilog=EXIT_CODES)
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path, resolve_path=True),
    help="Where the testbed keeps everything; a new temporary directory unless given.",
)
@click.option(
    "--instances", "count", type=click.IntRange(2, len(layout.NAMES)), default=3, show_default=True, help="How many Rucio instances."
)
@click.option("--files", "file_count", type=click.IntRange(1, 1000), default=10, show_default=True, help="Files in each dataset.")
@click.option("--keep", is_flag=True, help="Leave the testbed running.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; progress goes to standard error.")
def demo(directory: Optional[Path], count: int, file_count: int, keep: bool, as_json: bool) -> None:
    """Show on a new testbed how instances share open data.

    Each instance publishes a dataset with the stock client. All must come to show the same rows, and serve each other's
    files. Then one instance is cut off while both sides change, and all must agree again.
    """
    preflight.check()
    place = directory or Path(tempfile.mkdtemp(prefix="nsync-demo-"))
    if layout.exists(place):
        raise NsyncError(f"there is a testbed in {place} already, and the demonstration makes a new one; remove it, or give another --dir")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that whatever ends it, the testbed is stopped

    def say(line: str) -> None:
        click.echo(line, err=as_json)

    report = _play(place, count, file_count, keep, say)
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
    else:
        Console().print(_table(report))
    if keep:
        nsync, where = program(), shlex.quote(str(place))
        say(f'left running; talk to it: eval "$({nsync} testbed env --dir {where} atlas)" && rucio opendata did list')
        say(f"stop it: {nsync} testbed down --dir {where}")
    elif directory is None:
        shutil.rmtree(place)


def _play(place: Path, count: int, file_count: int, keep: bool, say: Say) -> story.Report:
    """Start the testbed, tell the story; stop the testbed, unless the story ended well and is to be kept."""
    control.start_detached(place, [f"--instances={count}"], say)
    try:
        report = story.run(layout.load(place), file_count, say)
    except BaseException:
        control.down(layout.load(place))
        say(f"data and logs are in {place}")
        raise
    if not keep:
        control.down(layout.load(place))
    return report


def _table(report: story.Report) -> Table:
    table = Table("instance", box=SIMPLE)
    for heading in ("datasets", "files", "replicas", "conflicts", "visible after"):
        table.add_column(heading, justify="right")
    for row in report.rows:
        table.add_row(
            row.instance, str(row.datasets), str(row.files), str(row.replicas), str(row.conflicts), f"{row.visible_s:.1f} s", style="green"
        )
    return table
