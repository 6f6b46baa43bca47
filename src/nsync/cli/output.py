"""How commands speak: JSON on request, one line of error, logs on stderr."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, NoReturn

import click


def as_json(value: Any) -> None:
    """Print `value` as JSON on stdout."""
    click.echo(json.dumps(value, indent=2, default=str))


def fail(text: str, code: int = 1) -> NoReturn:
    """Print one line of error and end with `code`."""
    click.echo(f"Error: {text}", err=True)
    sys.exit(code)


def setup_logging(verbose: bool) -> None:
    """Log to stderr, as Rucio's daemons do."""
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s\t%(name)s\t%(levelname)s\t%(message)s")
    logging.getLogger("nsync").setLevel(level)
