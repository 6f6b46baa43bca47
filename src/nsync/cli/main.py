"""The `nsync` command: a table of subcommands, each loaded when it is called.

So `nsync --help` imports no Rucio, SQLAlchemy or aiohttp, and a subcommand works without the packages of the others.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import NamedTuple, Optional

import click

import nsync
from nsync.errors import NsyncError

EXIT_FAILURE = 1


class Lazy(NamedTuple):
    """Where a subcommand is, what it does in a few words, and the extra of the package that it needs."""

    target: str
    help: str
    extra: str


COMMANDS = {
    "serve": Lazy("nsync.cli.node:serve", "Run the node of one Rucio instance.", "rucio"),
    "bridge": Lazy("nsync.cli.bridge:bridge", "Install and check nsync's part of a Rucio database.", "rucio"),
    "status": Lazy("nsync.cli.status:status", "Show what this instance has, lacks, and what needs attention.", "rucio"),
    "peer": Lazy("nsync.cli.peer:peer", "Show how the peers fare; try one, or end its back-off.", "rucio"),
    "conflict": Lazy("nsync.cli.conflict:conflict", "List conflicts and what does not fit here; accept a part.", "rucio"),
    "log": Lazy("nsync.cli.provenance:log", "List what was said about a DID, by whom, and what became of it.", "rucio"),
    "explain": Lazy("nsync.cli.provenance:explain", "Say why the catalogue shows what it shows of a DID.", "rucio"),
    "did": Lazy("nsync.cli.provenance:did", "Show how far the instances are with one DID.", "rucio"),
    "diff": Lazy("nsync.cli.diff:diff", "Compare the catalogue with Rucio's rows; repair on request.", "rucio"),
    "charter": Lazy("nsync.cli.charter:charter", "Make keys; show and sign the charter of a federation.", "rucio"),
    "testbed": Lazy("nsync.cli.testbed:testbed", "Run several Rucio instances with nsync on this machine.", "testbed"),
    "demo": Lazy("nsync.cli.demo:demo", "Show on a testbed how instances share open data.", "testbed"),
}


class LazyGroup(click.Group):
    """A group over a table of lazy commands."""

    def __init__(self, *, commands_table: dict[str, Lazy], **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self._table = commands_table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:
        row = self._table.get(cmd_name)
        return None if row is None else _load(cmd_name, row)

    def invoke(self, ctx: click.Context) -> object:
        """As click; a command may import what it needs as late as it runs."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            name = str(ctx.invoked_subcommand)
            raise _lacks(name, self._table[name], error) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click, but from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, row.help) for name, row in self._table.items()])


def _load(name: str, row: Lazy) -> click.Command:
    module, attribute = row.target.split(":")
    try:
        command: click.Command = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise _lacks(name, row, error) from error
    return command


def _lacks(name: str, row: Lazy, error: ModuleNotFoundError) -> Exception:
    """What to do about a missing package; one of nsync's own is a bug, and stays what it is."""
    if error.name is None or error.name.split(".")[0] == "nsync":
        return error
    text = f"'nsync {name}' needs the package {error.name}; run: {sys.executable} -m pip install 'nsync[{row.extra}]'"
    return click.ClickException(text)


@click.group(
    cls=LazyGroup,
    commands_table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed (the text says why and what to do), 2 wrong usage.",
)
@click.version_option(nsync.__version__, prog_name="nsync")
def cli() -> None:
    """One shared OpenData namespace over independent Rucio instances."""


def call(command: click.Command, name: str) -> None:
    """Run `command` as the program `name`; what nsync raises on purpose becomes one text and exit code 1."""
    try:
        command(prog_name=name)
    except Exception as error:
        if not isinstance(error, NsyncError) and type(error).__name__ != "ConfigNotFound":  # Rucio's, which is not imported here
            raise
        click.echo(f"Error: {error}", err=True)
        sys.exit(EXIT_FAILURE)


def main() -> None:
    """The `nsync` program."""
    call(cli, "nsync")
