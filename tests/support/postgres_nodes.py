"""Real nodes on PostgreSQL: several `nsync serve` processes of one instance, each with a Rucio home of its own, on one database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nsync.auth.keys import verify
from nsync.rucio_bridge.bridge import Bridge
from nsync.testbed.layout import free_ports
from tests.support.federation import KEYS
from tests.support.instances import EXPRESSION
from tests.support.nodes import LOOPBACK, Federation, Site
from tests.support.rucio_postgres import PostgresInstance


class PostgresSite(PostgresInstance, Site):
    """One node's place on the database at `url`, which `tests.support.rucio_postgres.build` made."""

    def __init__(self, federation: Federation, directory: Path, url: str, name: str, shared: Sequence[str], port: int) -> None:
        me = federation.charter.by_name(name)
        assert me is not None
        self.federation = federation
        self.author = me.author
        PostgresInstance.__init__(self, url, name, shared)
        self.database = url
        self.bridge = Bridge(self.engine, federation.authority, me, KEYS[name].sign, verify, EXPRESSION)
        self.bridge.adopt(federation.charter_file.read_text(encoding="utf-8"), self.now_ms)
        self.home = directory
        self.home.mkdir()
        self.url = f"http://{LOOPBACK}:{port}"
        KEYS[name].save(self.home / "nsync.key")
        self.options = {
            "instance": name,
            "charter": str(federation.charter_file),
            "key": str(self.home / "nsync.key"),
            "listen": f"{LOOPBACK}:{port}",
            "shared_scopes": ", ".join(shared),
            "rse_expression": EXPRESSION,
            "allow_plain_http": "true",
            "gossip_interval": "0.5",
        }

    @property
    def database_url(self) -> str:
        return self.database


def places(federation: Federation, url: str, name: str, shared: Sequence[str], count: int = 2) -> list[PostgresSite]:
    """Of `count` nodes of the instance `name` on one database; the charter's URL is that of the first."""
    ports = [federation.ports[name], *free_ports(count - 1)]
    return [PostgresSite(federation, federation.directory / f"{name}-{i}", url, name, shared, port) for i, port in enumerate(ports, 1)]
