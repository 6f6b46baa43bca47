"""`nsync testbed`: several real Rucio instances with nsync between them, on one machine."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Optional

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from nsync.cli.main import EXIT_FAILURE
from nsync.testbed import control, layout, preflight, status, supervisor
from nsync.testbed.instance import client_variables, server_variables
from nsync.testbed.process import last_lines

EXIT_CODES = "Exit codes: 0 done, 1 failed (the text says why and what to do), 2 wrong usage."

_COLOURS = {"up": "green", "stopped": "dim", "silent": "yellow", "died": "red"}

_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path, resolve_path=True),
    default="testbed",
    show_default=True,
    help="Where the testbed keeps everything.",
)


def say(line: str) -> None:
    """Print a line of progress at once, also into a file."""
    click.echo(line)
    sys.stdout.flush()


def program() -> str:
    """How this shell calls this very nsync: by its name where that leads here, else by its path."""
    here = Path(sys.executable).with_name("nsync")
    found = shutil.which("nsync")
    return "nsync" if found is not None and Path(found) == here else shlex.quote(str(here))


@click.group(epilog=EXIT_CODES)
def testbed() -> None:
    """Run several Rucio instances with nsync on this machine."""


def _shares(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """NAME=scope,scope as a table."""
    pairs = [value.partition("=") for value in values]
    for name, equals, scopes in pairs:
        if not (name and equals and scopes):
            raise click.BadParameter("write it as NAME=scope,scope")
    return {name: tuple(scopes.split(",")) for name, _, scopes in pairs}


@testbed.command(epilog=EXIT_CODES)
@click.option("--instances", "count", type=click.IntRange(1, len(layout.NAMES)), help="How many; a new testbed has 3.")
@_directory
@click.option("--detach", is_flag=True, help="Return when all runs, and leave it running.")
@click.option("--share", "shares", multiple=True, callback=_shares, metavar="NAME=SCOPE,SCOPE", help="Share these scopes of an instance.")
@click.option("--no-nodes", is_flag=True, hidden=True, help="Rucio servers only.")
def up(count: Optional[int], directory: Path, detach: bool, shares: dict[str, tuple[str, ...]], no_nodes: bool) -> None:
    """Start a testbed, made first if there is none; Ctrl-C stops it.

    A testbed that was stopped starts again with its data. Public open data is shared by itself; --share adds whole
    scopes, and holds for later starts too.
    """
    preflight.check()
    if not detach:
        supervisor.run(directory, count, shares, not no_nodes, say)
        return
    control.start_detached(directory, _arguments(count, shares, no_nodes), say)
    say(f'talk to one: eval "$({program()} testbed env --dir {shlex.quote(str(directory))} {layout.NAMES[0]})" && rucio whoami')


@testbed.command(epilog=EXIT_CODES)
@_directory
def down(directory: Path) -> None:
    """Stop a testbed; its data stay for the next start."""
    say("stopped" if control.down(layout.load(directory)) else "was not running")


@testbed.command("status", epilog=EXIT_CODES)
@_directory
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def show_status(directory: Path, as_json: bool) -> None:
    """Show what runs; exit code 1 unless every server and node that was started is up."""
    found = layout.load(directory)
    statuses = status.look(found)
    if as_json:
        document = {"directory": str(directory), "running": found.running, "instances": [asdict(s) for s in statuses]}
        click.echo(json.dumps(document, indent=2))
    else:
        Console().print(_status_table(statuses))
    if not (found.running and all(status.healthy(s) for s in statuses)):
        sys.exit(EXIT_FAILURE)


@testbed.command(epilog=EXIT_CODES)
@click.argument("name")
@click.option("--server", is_flag=True, help="For what reads the server's file: Rucio's daemons, 'nsync status', 'nsync conflict list'.")
@_directory
def env(name: str, server: bool, directory: Path) -> None:
    """Print what makes the stock `rucio` client of this shell speak to an instance.

    Use it as: eval "$(nsync testbed env atlas)". The commands of this installation, `rucio` and `nsync`, come first on the
    PATH then. With --server better in a shell of its own: ( eval "$(nsync testbed env --server atlas)"; nsync status )
    """
    instance = layout.load(directory).instance(name)
    for variable, value in (server_variables if server else client_variables)(instance).items():
        click.echo(f"export {variable}={shlex.quote(value)}")
    click.echo(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')


@testbed.command(epilog=EXIT_CODES)
@click.argument("name")
@click.option("--server", "role", flag_value="server", default=True, help="The Rucio server's (default).")
@click.option("--node", "role", flag_value="node", help="The nsync node's.")
@click.option("-n", "count", type=click.IntRange(1), default=50, show_default=True, help="How many lines.")
@_directory
def logs(name: str, role: str, count: int, directory: Path) -> None:
    """Print the last lines of an instance's log."""
    click.echo(last_lines(layout.load(directory).instance(name).log(role), count))


@testbed.command(epilog=EXIT_CODES)
@click.argument("names", nargs=-1, required=True)
@_directory
def partition(names: tuple[str, ...], directory: Path) -> None:
    """Cut instances off from all others, until 'heal'."""
    control.cut(layout.load(directory), names)
    say(f"cut off: {', '.join(names)}")


@testbed.command(epilog=EXIT_CODES)
@_directory
def heal(directory: Path) -> None:
    """Connect all instances again."""
    control.heal(layout.load(directory))
    say("all connected")


def _arguments(count: Optional[int], shares: dict[str, tuple[str, ...]], no_nodes: bool) -> list[str]:
    """The command line of the same 'up' in the background."""
    arguments = [f"--share={name}={','.join(scopes)}" for name, scopes in shares.items()]
    return arguments + ([f"--instances={count}"] if count else []) + (["--no-nodes"] if no_nodes else [])


def _status_table(statuses: list[status.InstanceStatus]) -> Table:
    table = Table("instance", "Rucio server", "nsync node", "network", box=SIMPLE)
    for each in statuses:
        table.add_row(each.name, _service(each.server), _service(each.node), "[red]cut off[/]" if each.cut else "connected")
    return table


def _service(service: status.Service) -> str:
    return f"{service.url.partition('://')[2]} [{_COLOURS[service.state]}]{service.state}[/]"
