"""How commands speak: JSON on request, one line of error, logs on stderr; and how they read and write their files."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any, NoReturn, Optional

import click
from rich.table import Table
from rich.text import Text

from nsync.errors import ConfigError

FILE = click.Path(dir_okay=False, path_type=Path)


def as_json(value: Any) -> None:
    """Print `value` as JSON on stdout."""
    click.echo(json.dumps(value, indent=2, default=str))


def add_row(table: Table, *cells: str, style: Optional[str] = None) -> None:
    """Add a row to `table` that shows texts as they are: what peers wrote is no markup."""
    table.add_row(*map(Text, cells), style=style)


def fail(text: str, code: int = 1) -> NoReturn:
    """Print one line of error and end with `code`."""
    click.echo(f"Error: {text}", err=True)
    sys.exit(code)


def setup_logging(verbose: bool) -> None:
    """Log to stderr, as Rucio's daemons do."""
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s\t%(name)s\t%(levelname)s\t%(message)s")
    logging.getLogger("nsync").setLevel(level)


def read_text(path: Path) -> str:
    """The text of a file. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ConfigError."""
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no JSON object")
    return found


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises ConfigError."""
    fresh = path.with_name(path.name + ".new")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
