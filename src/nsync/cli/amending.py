"""`nsync charter propose` and `retire`: the next version of a charter, for the root key holders to sign.

Where logs end is taken from this instance's database, unless it is given: an amendment that ends a log or moves a scope names it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

import click

from nsync.auth.keys import verify
from nsync.authority import proposals
from nsync.authority.charter import ID_BYTES, AuthorId, Charter, Instance, Place
from nsync.authority.proposals import CharterFile, Edit
from nsync.cli.output import FILE, as_json, read_object, read_text, replace_text
from nsync.errors import ConfigError
from nsync.log.stored import PeerRecord

FINAL = "Where the log of an instance ends, as SEQ and the hash of that segment's header; as this instance's database has it, unless given."
REVOTE = "Floors up to that number stay, all vote anew for those after it: for where the next one never comes."


@click.command()
@click.argument("path", type=FILE)
@click.option("--admit", "admitted", type=FILE, multiple=True, help="A member's entry, as 'init' and 'member' make it; may be repeated.")
@click.option("--retire", "retired", metavar="INSTANCE", multiple=True, help="An instance that leaves; its history stays.")
@click.option("--replace", "replaced", nargs=2, metavar="INSTANCE KEY", multiple=True, help="Its next incarnation, with this public key.")
@click.option("--move", "moved", nargs=2, metavar="PREFIX INSTANCE", multiple=True, help="The scopes with that prefix go to that instance.")
@click.option("--url", "urls", nargs=2, metavar="INSTANCE URL", multiple=True, help="Where peers reach it.")
@click.option("--pin", "pins", nargs=2, metavar="INSTANCE PIN", multiple=True, help="With --url: of its TLS key; may be repeated.")
@click.option("--threshold", type=click.IntRange(min=1), help="How many members must sign an amendment from then on.")
@click.option("--revote-after", type=click.IntRange(min=0), metavar="FLOOR", help=REVOTE)
@click.option("--final", "given", nargs=3, type=(str, click.IntRange(min=0), str), metavar="INSTANCE SEQ HASH", multiple=True, help=FINAL)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def propose(
    path: Path,
    admitted: tuple[Path, ...],
    retired: tuple[str, ...],
    replaced: tuple[tuple[str, str], ...],
    moved: tuple[tuple[str, str], ...],
    urls: tuple[tuple[str, str], ...],
    pins: tuple[tuple[str, str], ...],
    threshold: Optional[int],
    revote_after: Optional[int],
    given: tuple[tuple[str, int, str], ...],
    json_: bool,
) -> None:
    """Add the next version to the charter in the file PATH, for its root key holders to sign.

    Until enough have signed it counts for nothing. Exit codes: 0 proposed, 1 failed, 2 wrong usage.
    """
    file = proposals.read(read_text(path), verify)
    ends = _Ends(file.charter, {name: _place(seq, header) for name, seq, header in given})
    edits: list[Edit] = [proposals.admit(read_object(entry)) for entry in admitted]
    edits += [proposals.succeed(name, key, secrets.token_hex(ID_BYTES), ends.of(name)) for name, key in replaced]
    edits += [proposals.move(prefix, to, ends.all()) for prefix, to in moved]
    edits += [proposals.reach(name, url, [pin for of, pin in pins if of == name]) for name, url in urls]
    edits += [proposals.retire(name, ends.of(name)) for name in retired]
    edits += [proposals.need(threshold)] if threshold is not None else []
    edits += [proposals.revote(revote_after)] if revote_after is not None else []
    if not edits:
        raise click.UsageError("say what shall be different: --admit, --retire, --replace, --move, --url, --threshold or --revote-after")
    _write(path, proposals.propose(file, edits), json_)


@click.command()
@click.argument("instance")
@click.argument("path", type=FILE)
@click.option("--final", "given", nargs=2, type=(click.IntRange(min=0), str), metavar="SEQ HASH", help=FINAL)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def retire(instance: str, path: Path, given: Optional[tuple[int, str]], json_: bool) -> None:
    """Propose that INSTANCE leaves: 'propose --retire'. What it said up to now stays, and nobody talks to it any more."""
    file = proposals.read(read_text(path), verify)
    ends = _Ends(file.charter, {instance: _place(*given)} if given else {})
    _write(path, proposals.propose(file, [proposals.retire(instance, ends.of(instance))]), json_)


class _Ends:
    """Where logs end: as given, else as this instance's database has it, which is asked once, and only if need be."""

    def __init__(self, charter: Charter, given: Mapping[str, Place]) -> None:
        self._charter = charter
        self._given = given
        self._found: Optional[Mapping[AuthorId, Place]] = None

    def of(self, name: str) -> Place:
        """The end of the present log of the instance `name`."""
        instance = self._instance(name)
        return self._given[name] if name in self._given else self._in_database()[instance.author]

    def all(self) -> dict[AuthorId, Place]:
        """The ends of all logs that have begun."""
        given = {self._instance(name).author: place for name, place in self._given.items()}
        return {author: place for author, place in {**self._in_database(), **given}.items() if place.seq}

    def _instance(self, name: str) -> Instance:
        instance = self._charter.by_name(name)
        if instance is None:
            raise ConfigError(f"charter: it names no instance {name!r}; it names {', '.join(i.name for i in self._charter.instances)}")
        return instance

    def _in_database(self) -> Mapping[AuthorId, Place]:
        if self._found is None:
            from nsync.rucio_bridge import charters
            from nsync.rucio_bridge.engine import get_engine
            from nsync.store import migrations, peers
            from nsync.store.finals import finals

            with get_engine().connect() as connection:
                migrations.require_current(connection)
                held = charters.in_force(connection, verify)
                if held is None or held.hash != self._charter.hash:
                    version = "no charter" if held is None else f"version {held.version} ({held.hash.hex()[:12]}…)"
                    raise ConfigError(
                        f"the file has version {self._charter.version} ({self._charter.hash.hex()[:12]}…) in force, and this database "
                        f"{version}: where logs end cannot be told; start the node with this file first, or give --final"
                    )
                self._found = finals(connection, self._charter)
                self._warn(peers.load(connection))
        return self._found

    def _warn(self, records: list[PeerRecord]) -> None:
        """Peers that have more than this instance: what is beyond the end that is named will be void."""
        assert self._found is not None
        for record in records:
            for head in record.heads or ():
                end = self._found.get(AuthorId(head.author))
                if end is not None and head.seq > end.seq:
                    name = getattr(self._charter.by_author(head.author), "name", "")
                    text = f"{record.name} has the log of {name} up to {head.seq}, and here it is applied up to {end.seq}"
                    click.echo(f"Warning: {text}: should it end here, the rest will be void; wait until it is applied", err=True)


def _place(seq: int, header: str) -> Place:
    try:
        found = bytes.fromhex(header)
    except ValueError:
        found = b""
    if len(found) != ID_BYTES:
        raise click.UsageError(f"--final: {header!r} is not the hash of a segment's header, {2 * ID_BYTES} hexadecimal digits")
    return Place(seq, found)


def _write(path: Path, file: CharterFile, json_: bool) -> None:
    assert file.proposal is not None
    replace_text(path, file.text())
    if json_:
        as_json({"path": str(path), "version": file.proposal.version, "proposal": file.documents[-1]["charter"]})
        return
    version, needed, members = file.proposal.version, file.charter.threshold, len(file.charter.members)
    click.echo(f"{path} proposes version {version}, and {needed} of {members} members must sign it: 'nsync charter show {path}' says what")
    click.echo(f"is different, 'nsync charter sign {path} --key ROOT.key' signs it")
