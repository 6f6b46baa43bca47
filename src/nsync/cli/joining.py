"""`nsync charter join`: a new instance takes up the charter, learns who answers it, and fetches everything there is.

What needs Rucio is imported when a command runs.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NamedTuple, Optional

import aiohttp
import click

from nsync.auth.keys import SigningKey, verify
from nsync.authority import amendments, proposals
from nsync.authority.charter import Charter, Instance
from nsync.cli.output import FILE, as_json, fail, read_text, replace_text, setup_logging
from nsync.errors import ConfigError, NsyncError
from nsync.transport import session, tls
from nsync.transport.client import PeerClient, open_session

EXIT_UNREACHABLE = 5
OWN_URL_S_MAX = 10.0


class Found(NamedTuple):
    """What a newcomer meets."""

    peers: dict[str, str]
    """Peer → why it cannot be asked; empty where it answers, and accepts this instance."""
    own_url: str
    """Why nothing answers there; empty if something does."""


@click.command()
@click.argument("path", type=FILE)
@click.option("--instance", "name", required=True, help="The name of this instance.")
@click.option("--key", "key_path", type=FILE, required=True, help="The file of this instance's key.")
@click.option("--install", "target", type=FILE, help="Put the charter there: where [nsync] charter will point.")
@click.option("--listen", default="127.0.0.1:8440", show_default=True, help="For the printed configuration: where the node listens.")
@click.option("--bootstrap", is_flag=True, help="With nsync configured and installed here: fetch and apply all that peers have, and end.")
@click.option("--json", "json_", is_flag=True, help="Print JSON; progress goes to standard error.")
def join(path: Path, name: str, key_path: Path, target: Optional[Path], listen: str, bootstrap: bool, json_: bool) -> None:
    """Take up the charter in the file PATH at a new instance, and see whom it reaches.

    Checks that the charter is signed, lists the instance with this key, and that the peers answer and accept it; a peer that has
    not taken up the amendment yet does not. Prints the configuration. Exit codes: 0 all peers accept this instance, 1 failed,
    2 wrong usage, 5 some peer does not, or the bootstrap is not complete.
    """
    text = read_text(path)
    charter = _charter(text)
    me, key = _me(charter, name, key_path), SigningKey.load(key_path)
    if target is not None:
        _install(text, charter, target)
    found = asyncio.run(_ask(charter, me, key))
    place = (target or path).resolve()
    config = (
        f"[nsync]\ninstance = {name}\ncharter = {place}\nkey = {key_path.resolve()}\nlisten = {listen}\n"
        + ("tls_cert = …/tls.pem\ntls_key = …/tls.key\n" if me.tls else "")
        + ("allow_plain_http = true\n" if any(i.url.startswith("http:") for i in charter.instances) else "")
    )
    errors = _bootstrap(name) if bootstrap else {}
    if json_:
        as_json(
            {"instance": name, "version": charter.version, **found._asdict(), "config": config, "bootstrap": errors if bootstrap else None}
        )
    else:
        _tell(charter, found, config, bootstrap)
    bad = {peer: why for peer, why in (errors if bootstrap else found.peers).items() if why}
    if bad:
        fail("; ".join(bad.values()), EXIT_UNREACHABLE)


def _charter(text: str) -> Charter:
    """The charter in force in the file. Raises ConfigError, also for a first charter that not all have signed."""
    file = proposals.read(text, verify)
    if file.proposal is not None and file.proposal.version == 1:
        raise ConfigError(f"charter: {'; '.join(file.missing)}; ask the root key holders to run 'nsync charter sign'")
    return file.charter


def _me(charter: Charter, name: str, key_path: Path) -> Instance:
    me = charter.by_name(name)
    if me is None or me.retired is not None:
        why = "names no such instance" if me is None else "has it retired"
        raise ConfigError(
            f"version {charter.version} of the charter {why}: {name}; a member proposes you with 'nsync charter propose --admit', "
            "and enough members sign that"
        )
    if SigningKey.load(key_path).public != me.key:
        raise ConfigError(f"{key_path} is not the key that the charter has for {name}, {me.key.hex()[:12]}…")
    return me


def _install(text: str, charter: Charter, target: Path) -> None:
    """Put the charter in its place; over an older version of it, never over another."""
    if target.exists():
        held = amendments.read(read_text(target), verify).charter
        amendments.go_on(held, text, verify)
    replace_text(target, text)
    click.echo(f"version {charter.version} of the charter is in {target}", err=True)


async def _ask(charter: Charter, me: Instance, key: SigningKey) -> Found:
    others = [i for i in charter.instances if i.name != me.name and i.retired is None]
    async with open_session() as http:
        clients = [PeerClient(http, charter, me, peer, key) for peer in others]
        *reasons, own = await asyncio.gather(*(_hello(client) for client in clients), _own_url(http, me))
    return Found({client.name: why for client, why in zip(clients, reasons)}, own)


async def _hello(client: PeerClient) -> str:
    try:
        await client.hello(session.digest([]))
    except NsyncError as error:
        return str(error)
    return ""


async def _own_url(http: aiohttp.ClientSession, me: Instance) -> str:
    try:
        options = aiohttp.ClientTimeout(total=OWN_URL_S_MAX)
        async with http.get(me.url + "/ping", ssl=tls.client_context(me), allow_redirects=False, timeout=options) as answer:
            return "" if answer.status == 200 else f"{me.url}/ping answers {answer.status}"
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        return f"nothing answers at {me.url}/ping ({error or type(error).__name__}); it should, once the node runs"


def _bootstrap(name: str) -> dict[str, str]:
    """Fetch and apply all that peers have; of each peer why that failed, or nothing. What was fetched before is not fetched again."""
    from nsync import config
    from nsync.node import Node

    setup_logging(False)
    settings = config.read()
    if settings.me.name != name:
        raise ConfigError(f"[nsync] instance = {settings.me.name}, and {name} is to join; set it, and what else is printed, in rucio.cfg")

    async def run() -> dict[str, str]:
        return {report.peer: report.error for report in await Node(settings).run_once()}

    return asyncio.run(run())


def _tell(charter: Charter, found: Found, config: str, bootstrap: bool) -> None:
    click.echo(f"federation {charter.name!r}, version {charter.version}:")
    for peer, why in found.peers.items():
        click.echo(f"  {peer}: {why or 'answers, and accepts this instance'}")
    if found.own_url:
        click.echo(f"  this instance: {found.own_url}")
    click.echo(f"\n{config}")
    if not bootstrap:
        click.echo(
            "Put that into rucio.cfg, run 'nsync bridge install', then 'nsync serve': it fetches everything, from where it was if it"
        )
        click.echo("is ended in between; 'nsync status' shows how far it is")
