"""`nsync charter`: keys, the signed file that makes a federation, and its amendments (docs/CHARTER.md).

What needs Rucio is imported when a command runs: only `propose` and `retire` ask a database, and only for where logs end.
"""

from __future__ import annotations

import datetime
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import click

from nsync.auth.keys import SigningKey, verify
from nsync.authority import documents, proposals
from nsync.authority.charter import ID_BYTES, Charter, Instance, Place
from nsync.authority.proposals import CharterFile
from nsync.cli.amending import propose, retire
from nsync.cli.joining import join
from nsync.cli.output import FILE, as_json, read_object, read_text, replace_text
from nsync.errors import ConfigError
from nsync.transport import tls


@click.group()
def charter() -> None:
    """Make a federation, show and sign its charter, amend it, join. Exit codes: 0 done, 1 failed, 2 wrong usage."""


charter.add_command(propose)
charter.add_command(retire)
charter.add_command(join)


@charter.command()
@click.argument("federation")
@click.option("--member", "name", required=True, help="The name of your organisation.")
@click.option("--instance", required=True, help="The name of its Rucio instance: a to z, 0 to 9 and -.")
@click.option("--url", required=True, help="Where peers reach the instance's node.")
@click.option("--scope", "scopes", required=True, multiple=True, help="A prefix of the scopes whose home it is; may be repeated.")
@click.option("--doi", "dois", multiple=True, help="A prefix of the DOIs that it decides about; may be repeated.")
@click.option("--certificate", "with_tls", is_flag=True, help="Make a TLS key too, and pin it: the node ends TLS itself.")
@click.option(
    "--with", "others", type=click.Path(exists=True, dir_okay=False, path_type=Path), multiple=True, help="Another member's entry."
)
@click.option(
    "--dir", "directory", type=click.Path(file_okay=False, path_type=Path), default=".", help="Where to write; here, unless given."
)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def init(
    federation: str,
    name: str,
    instance: str,
    url: str,
    scopes: tuple[str, ...],
    dois: tuple[str, ...],
    with_tls: bool,
    others: tuple[Path, ...],
    directory: Path,
    json_: bool,
) -> None:
    """Make all that your organisation needs to found FEDERATION, or to join it: keys, its entry, and a draft of the charter.

    Writes root.key (keep it offline), nsync.key, INSTANCE.member.json for the others, and charter.json with that entry and those
    of --with. Nothing is overwritten.
    """
    files = {what: directory / file for what, file in (("root_key", "root.key"), ("key", "nsync.key"), ("charter", "charter.json"))}
    files["member"] = directory / f"{instance}.member.json"
    for path in (*files.values(), *([directory / "tls.key", directory / "tls.pem"] if with_tls else [])):
        if path.exists():
            raise ConfigError(f"{path} exists, and is never overwritten; give another --dir, or use the verbs 'member' and 'draft'")
    root, key = SigningKey.generate(), SigningKey.generate()
    certificate = tls.new_certificate(datetime.datetime.now(datetime.timezone.utc)) if with_tls else None
    pins = (certificate.pin.hex(),) if certificate is not None else ()
    entry = _entry(name, instance, (root.public.hex(),), 1, key.public.hex(), url, pins, scopes, dois)
    document = documents.draft(federation, [entry, *(read_object(path) for path in others)])
    directory.mkdir(parents=True, exist_ok=True)
    if certificate is not None:
        certificate.save(directory)
    root.save(files["root_key"])
    key.save(files["key"])
    replace_text(files["member"], json.dumps(entry, indent=2) + "\n")
    replace_text(files["charter"], json.dumps(document, indent=2) + "\n")
    if json_:
        as_json({what: str(path) for what, path in files.items()})
        return
    click.echo(f"{files['root_key']}  the root key: keep it offline\n{files['key']}  the key of the node")
    click.echo(f"{files['member']}  your entry: the others take it up with 'draft', --with, or 'propose --admit'")
    click.echo(f"{files['charter']}  a draft; once all entries are in it, every member runs 'nsync charter sign'")


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
    as_json(_entry(name, instance, roots, threshold, key, url, pins, scopes, dois))


def _entry(
    name: str,
    instance: str,
    roots: Sequence[str],
    threshold: int,
    key: str,
    url: str,
    pins: Sequence[str],
    scopes: Sequence[str],
    dois: Sequence[str],
) -> dict[str, Any]:
    only = {"name": instance, "key": key, "incarnation": secrets.token_hex(ID_BYTES), "url": url, "scopes": [*scopes], "dois": [*dois]}
    if pins:
        only["tls"] = [*pins]
    return {"name": name, "roots": [*roots], "threshold": threshold, "instances": [only]}


@charter.command()
@click.argument("name")
@click.argument("member", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1, required=True)
def draft(name: str, member: tuple[Path, ...]) -> None:
    """Print the unsigned charter of the federation NAME, made of the MEMBER files that its members sent.

    'nsync charter member' makes such a file. Draft once, and sign that draft: everybody's signature covers all of it.
    """
    click.echo(json.dumps(documents.draft(name, [read_object(path) for path in member]), indent=2))


@charter.command()
@click.argument("path", type=FILE)
@click.option("--key", "key_path", type=FILE, required=True, help="The file of a root key.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def sign(path: Path, key_path: Path, json_: bool) -> None:
    """Check the charter in the file PATH, add the signature of a root key to what it proposes, and say whose are still missing.

    A first charter needs every member; an amendment as many as the charter before it says, by the root keys of that one.
    """
    signed = proposals.sign(proposals.read(read_text(path), verify), SigningKey.load(key_path))
    replace_text(path, signed.text())
    now = proposals.read(signed.text(), verify)
    version = (now.proposal or now.charter).version
    if json_:
        as_json({"path": str(path), "version": version, "complete": not now.missing, "missing": list(now.missing)})
    elif now.missing:
        click.echo(f"{path} is signed; still missing: {'; '.join(now.missing)}")
    elif version == 1:
        click.echo(f"{path} is signed, by every member")
    else:
        click.echo(f"{path} is signed, by enough members: version {version} counts; put the file where each node's [nsync] charter points")


@charter.command()
@click.argument("path", type=FILE)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def show(path: Path, json_: bool) -> None:
    """Check the signatures of the charter in the file PATH, and show what it says, and what it proposes."""
    file = proposals.read(read_text(path), verify)
    if file.proposal is not None and file.proposal.version == 1:
        raise ConfigError(f"charter: {'; '.join(file.missing)}; ask the root key holders to run 'nsync charter sign'")
    if json_:
        as_json({**_content(file.charter), "proposal": _proposal(file)})
        return
    loaded = file.charter
    signed = "every member has signed" if loaded.version == 1 else "enough members have signed"
    click.echo(f"federation {loaded.name!r}, version {loaded.version}, id {loaded.federation.hex()}: {signed}")
    click.echo("\n".join(_lines(loaded)))
    if file.proposal is not None:
        click.echo(f"\nproposed: version {file.proposal.version}, which does not count yet: {'; '.join(file.missing)}")
        before = set(_lines(loaded))
        for line in _lines(file.proposal):
            click.echo(f"{'  ' if line in before else '+ '}{line}")
        for line in sorted(before - set(_lines(file.proposal))):
            click.echo(f"- {line}")


def _content(loaded: Charter) -> dict[str, Any]:
    instances = [
        {
            "instance": i.name,
            "member": i.member,
            "author": i.author.hex(),
            "url": i.url,
            "tls": [pin.hex() for pin in i.tls],
            "scopes": list(i.scopes),
            "dois": list(i.dois),
            "guests": {guest: list(prefixes) for guest, prefixes in i.guests.items()},
            "past": [{"author": life.author.hex(), "final": _place(life.final)} for life in i.past],
            "retired": _place(i.retired),
        }
        for i in loaded.instances
    ]
    return {
        "name": loaded.name,
        "version": loaded.version,
        "federation": loaded.federation.hex(),
        "hash": loaded.hash.hex(),
        "threshold": loaded.threshold,
        "members": [{"name": m.name, "roots": sorted(root.hex() for root in m.roots), "threshold": m.threshold} for m in loaded.members],
        "instances": instances,
        "moves": [{"scopes": move.prefix, "from": move.home} for move in loaded.moves],
        "revote_after": loaded.revote_after,
    }


def _proposal(file: CharterFile) -> Optional[dict[str, Any]]:
    return None if file.proposal is None else {**_content(file.proposal), "missing": list(file.missing)}


def _place(place: Optional[Place]) -> Optional[list[Any]]:
    return None if place is None else [place.seq, place.hash.hex()]


def _lines(loaded: Charter) -> list[str]:
    """What a charter says, a line for each thing."""
    lines = [f"  amendments need {loaded.threshold} of {len(loaded.members)} members"] if loaded.members else []
    lines += [f"  floors after {loaded.revote_after} are voted for anew"] if loaded.revote_after is not None else []
    for instance in loaded.instances:
        lines.append(_line(instance))
        lines += [f"    lets {guest} write below {list(prefixes)}" for guest, prefixes in sorted(instance.guests.items())]
        lines += [f"    before, as {life.author.hex()}, up to {life.final.seq}" for life in instance.past if life.final is not None]
    return lines + [f"  scopes {move.prefix!r} were at home at {move.home} before" for move in loaded.moves]


def _line(instance: Instance) -> str:
    left = f", retired at {instance.retired.seq}" if instance.retired is not None else ""
    return f"  {instance.name} of {instance.member} at {instance.url}: scopes {list(instance.scopes)}, DOIs {list(instance.dois)}{left}"
