"""How commands speak: JSON on request, one line of error, logs on stderr; and how they read and write their files."""

from __future__ import annotations

import configparser
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
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


def stream_json(value: Mapping[str, Any], name: str, rows: Iterable[Any]) -> None:
    """The same, and under `name` as many `rows` as there are, each on a line."""
    click.echo(f"{json.dumps(value, default=str)[:-1]}, {json.dumps(name)}: [", nl=False)
    for count, row in enumerate(rows):
        click.echo(f"{',' if count else ''}\n{json.dumps(row, default=str)}", nl=False)
    click.echo("\n]}")


def add_row(table: Table, *cells: str, style: Optional[str] = None) -> None:
    """Add a row to `table` that shows texts as they are: what peers wrote is no markup."""
    table.add_row(*map(Text, cells), style=style)


def fail(text: str, code: int = 1) -> NoReturn:
    """Print one line of error and end with `code`."""
    click.echo(f"Error: {text}", err=True)
    sys.exit(code)


def setup_logging(verbose: bool) -> None:
    """Log as Rucio's daemons do, in the format and at the level of [common] in rucio.cfg; but to stderr, since stdout is for answers.

    Unless [common] loglevel says more, libraries are heard from WARNING on: Rucio's own default is DEBUG for all of them.
    """
    from rucio.common.config import config_get
    from rucio.common.logging import rucio_log_formatter

    name = str(config_get("common", "loglevel", raise_exception=False, default="INFO")).upper()
    if not isinstance(level := getattr(logging, name, None), int):
        raise ConfigError(f"[common] loglevel = {name}: it should be DEBUG, INFO, WARNING, ERROR or CRITICAL")
    handler = logging.StreamHandler(sys.stderr)
    try:
        handler.setFormatter(rucio_log_formatter(process_name="rucio-nsync"))
    except (configparser.Error, ValueError) as error:
        raise ConfigError(f"[common] logformat or logjson: {error}") from error
    logging.basicConfig(level=level if level <= logging.DEBUG else max(level, logging.WARNING), handlers=[handler])
    for ours in ("nsync", "rucio-nsync"):
        logging.getLogger(ours).setLevel(logging.DEBUG if verbose else level)


def serve_no_metrics() -> None:
    """For a command that ends: Rucio serves metrics from its first import on, at the port that the node has."""
    from rucio.common.config import get_config

    if get_config().has_section("monitor"):
        get_config().set("monitor", "enable_metrics", "false")


@contextmanager
def metrics_served() -> Iterator[None]:
    """Within, what imports Rucio's core. Raises ConfigError where its port is taken."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"[monitor] metrics_port: {error.strerror}; it is taken, perhaps by another daemon of Rucio on this host: choose another, or "
            "set enable_metrics to false"
        ) from error


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
