"""`rucio-nsync`: the node under the name by which Rucio's daemon images start it. The same as `nsync serve`."""

from __future__ import annotations

import sys

import click

from nsync.cli.node import serve
from nsync.errors import NsyncError


def main() -> None:
    """Run the node; what nsync raises on purpose becomes one text and exit code 1."""
    try:
        serve(prog_name="rucio-nsync")
    except NsyncError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
