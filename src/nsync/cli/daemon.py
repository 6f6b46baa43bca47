"""`rucio-nsync`: the node under the name by which Rucio's daemon images start it. The same as `nsync serve`."""

from __future__ import annotations

from nsync.cli.main import call
from nsync.cli.node import serve


def main() -> None:
    """The `rucio-nsync` program."""
    call(serve, "rucio-nsync")
