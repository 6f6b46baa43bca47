"""`nsync charter`: keys, and the signed file that makes a federation (docs/CHARTER.md)."""

from __future__ import annotations

import datetime
import json
import secrets
from pathlib import Path
from typing import Any

import click

from nsync.auth.keys import SigningKey, verify
from nsync.authority import documents
from nsync.authority.charter import ID_BYTES
from nsync.cli.output import as_json
from nsync.errors import ConfigError
from nsync.transport import tls

FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def charter() -> None:
    """Make keys, and show and sign the charter of a federation. Exit codes: 0 done, 1 failed, 2 wrong usage."""


@charter.command()
@click.argument("path", type=FILE)
def keygen(path: Path) -> None:
    """Make a new key in the file PATH (mode 600), and print its public half for the charter."""
    key = SigningKey.generate()
    key.save(path)
    click.echo(key.public.hex())


@charter.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
def certificate(directory: Path) -> None:
    """Make a TLS key and certificate in DIRECTORY, tls.key (mode 600) and tls.pem, and print the pin for the charter."""
    click.echo(tls.make_certificate(directory, datetime.datetime.now(datetime.timezone.utc)).hex())


@charter.command()
@click.argument("path", type=FILE)
def pin(path: Path) -> None:
    """Print the pin of the TLS certificate in the PEM file PATH, for the charter."""
    click.echo(tls.pin(path).hex())


@charter.command()
@click.argument("name")
@click.option("--instance", required=True, help="The name of its Rucio instance: a to z, 0 to 9 and -.")
@click.option("--root", "roots", required=True, multiple=True, help="The public half of a root key; may be repeated.")
@click.option("--threshold", default=1, show_default=True, help="How many root keys must sign.")
@click.option("--key", required=True, help="The public half of the instance's key.")
@click.option("--url", required=True, help="Where peers reach the instance's node.")
@click.option("--pin", "pins", multiple=True, help="Of its TLS key, as 'certificate' or 'pin' print it; may be repeated.")
@click.option("--scope", "scopes", required=True, multiple=True, help="A prefix of the scopes whose home it is; may be repeated.")
@click.option("--doi", "dois", multiple=True, help="A prefix of the DOIs that it decides about; may be repeated.")
def member(
    name: str,
    instance: str,
    roots: tuple[str, ...],
    threshold: int,
    key: str,
    url: str,
    pins: tuple[str, ...],
    scopes: tuple[str, ...],
    dois: tuple[str, ...],
) -> None:
    """Print the entry of the member NAME with one instance, for the charter's draft."""
    only = {"name": instance, "key": key, "incarnation": secrets.token_hex(ID_BYTES), "url": url, "scopes": scopes, "dois": dois}
    if pins:
        only["tls"] = pins
    as_json({"name": name, "roots": roots, "threshold": threshold, "instances": [only]})


@charter.command()
@click.argument("name")
@click.argument("member", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1, required=True)
def draft(name: str, member: tuple[Path, ...]) -> None:
    """Print the unsigned charter of the federation NAME, made of the MEMBER files that its members sent.

    'nsync charter member' makes such a file. Draft once, and sign that draft: everybody's signature covers all of it.
    """
    click.echo(json.dumps(documents.draft(name, [_read(path) for path in member]), indent=2))


@charter.command()
@click.argument("path", type=FILE)
@click.option("--key", "key_path", type=FILE, required=True, help="The file of a root key.")
def sign(path: Path, key_path: Path) -> None:
    """Check the charter in the file PATH, add the signature of a root key to it, and say whose are still missing."""
    signed = documents.sign(_read(path), SigningKey.load(key_path))
    missing = documents.missing_signatures(signed, verify)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(signed, indent=2) + "\n", encoding="utf-8")
    fresh.replace(path)
    click.echo(f"{path} is signed; still missing: {'; '.join(missing)}" if missing else f"{path} is signed, by every member")


@charter.command()
@click.argument("path", type=FILE)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def show(path: Path, json_: bool) -> None:
    """Check the signatures of the charter in the file PATH, and show what it says."""
    loaded = documents.load(json.dumps(_read(path)), verify)
    instances: list[dict[str, Any]] = [
        {
            "instance": i.name,
            "member": i.member,
            "author": i.author.hex(),
            "url": i.url,
            "tls": [pin.hex() for pin in i.tls],
            "scopes": list(i.scopes),
            "dois": list(i.dois),
            "guests": {guest: list(prefixes) for guest, prefixes in i.guests.items()},
        }
        for i in loaded.instances
    ]
    if json_:
        as_json({"name": loaded.name, "version": loaded.version, "federation": loaded.federation.hex(), "instances": instances})
        return
    click.echo(f"federation {loaded.name!r}, version {loaded.version}, id {loaded.federation.hex()}: every member has signed")
    for entry in instances:
        click.echo(f"  {entry['instance']} of {entry['member']} at {entry['url']}: scopes {entry['scopes']}, DOIs {entry['dois']}")
        for guest, prefixes in sorted(entry["guests"].items()):
            click.echo(f"    lets {guest} write below {prefixes}")


def _read(path: Path) -> dict:  # type: ignore[type-arg]
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no JSON object")
    return found
