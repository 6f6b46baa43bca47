"""What a testbed consists of: its directory, its instances, their ports, and which processes run now.

All of it stands in one file, `testbed.json`, which only the supervisor writes. Ports are chosen once, when the testbed
is made: the signed charter holds the URLs, so they stay the same over restarts.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Optional

from nsync.errors import ConfigError
from nsync.testbed.process import ProcessId

NAMES = ("atlas", "cms", "belle2", "lab4", "lab5", "lab6", "lab7", "lab8", "lab9")
"""The instances in order; more than nine Rucio servers are too many for one machine."""

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Instance:
    """One Rucio server with its database, storage and node, all below `home`."""

    name: str
    home: Path
    server_port: int
    node_port: int
    proxy_port: int
    """Where the peers reach the node: the port in the charter, behind which the network can be cut."""
    source_address: str
    """The loopback address that the node dials out from, so that the network knows who calls."""
    shared_scopes: tuple[str, ...] = ()
    initialised: bool = False
    """Whether the database was made completely."""
    database: Optional[str] = None
    """The URL of an empty database that stands elsewhere, as on PostgreSQL; None for a file of SQLite below `home`."""

    @property
    def server_url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}"

    @property
    def node_url(self) -> str:
        return f"https://{LOOPBACK}:{self.node_port}"

    @property
    def charter_url(self) -> str:
        return f"https://{LOOPBACK}:{self.proxy_port}"

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite+nsync:///{self.home / 'rucio.db'}"

    @property
    def server_config(self) -> Path:
        """What the server, the daemons and the node read as RUCIO_CONFIG."""
        return self.home / "etc" / "rucio.cfg"

    @property
    def client_config(self) -> Path:
        """What the stock client reads as RUCIO_CONFIG; it must not name a database."""
        return self.home / "etc" / "client.cfg"

    @property
    def storage(self) -> Path:
        """The directory of the RSE."""
        return self.home / "rse"

    def log(self, role: str) -> Path:
        return self.home / "log" / f"{role}.log"


@dataclass(frozen=True)
class Run:
    """What runs now: the supervisor, and its children as instance → role → process."""

    supervisor: ProcessId
    ready: bool
    children: Mapping[str, Mapping[str, ProcessId]]


@dataclass(frozen=True)
class Layout:
    """A testbed. `run` is None when it was stopped in an orderly way."""

    directory: Path
    instances: tuple[Instance, ...]
    run: Optional[Run] = None

    @property
    def charter(self) -> Path:
        return self.directory / "charter.json"

    @property
    def partition(self) -> Path:
        return self.directory / "partition.json"

    @property
    def running(self) -> bool:
        return self.run is not None and self.run.supervisor.alive()

    def instance(self, name: str) -> Instance:
        """The instance called `name`. Raises ConfigError."""
        for instance in self.instances:
            if instance.name == name:
                return instance
        names = ", ".join(i.name for i in self.instances)
        raise ConfigError(f"the testbed in {self.directory} has no instance {name!r}; it has {names}")

    def sharing(self, shares: Mapping[str, tuple[str, ...]]) -> Layout:
        """The same testbed with the shared scopes of the instances in `shares` replaced."""
        for name in shares:
            self.instance(name)
        return replace(self, instances=tuple(replace(i, shared_scopes=shares.get(i.name, i.shared_scopes)) for i in self.instances))


def plan(directory: Path, count: int) -> Layout:
    """A new testbed of the first `count` instances with free ports. Nothing is written."""
    ports = iter(free_ports(3 * count))
    instances = (
        Instance(name, directory / name, next(ports), next(ports), next(ports), source_address=f"127.0.0.{number}")
        for number, name in enumerate(NAMES[:count], start=2)
    )
    return Layout(directory, tuple(instances))


def load(directory: Path) -> Layout:
    """The testbed in `directory`. Raises ConfigError when there is none."""
    path = _file(directory)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return Layout(directory, tuple(_instance(directory, entry) for entry in document["instances"]), _run(document["run"]))
    except FileNotFoundError as error:
        raise ConfigError(f"no testbed in {directory}; start one with 'nsync testbed up --dir {directory}'") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is malformed ({error}); remove {directory} and start anew") from error


def exists(directory: Path) -> bool:
    return _file(directory).exists()


def save(layout: Layout) -> None:
    """Write `testbed.json` in one step, so that a reader sees the old state or the new one."""
    document = {"instances": [_entry(i) for i in layout.instances], "run": asdict(layout.run) if layout.run else None}
    replace_text(_file(layout.directory), json.dumps(document, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Put `text` in place of the file at `path`, in one step."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def _file(directory: Path) -> Path:
    return directory / "testbed.json"


def _entry(instance: Instance) -> dict[str, Any]:
    entry = asdict(instance)
    del entry["home"]  # it follows from the directory
    return entry


def _instance(directory: Path, entry: Mapping[str, Any]) -> Instance:
    return Instance(**{**entry, "home": directory / entry["name"], "shared_scopes": tuple(entry["shared_scopes"])})


def _run(entry: Optional[Mapping[str, Any]]) -> Optional[Run]:
    if entry is None:
        return None
    children = {name: {role: ProcessId(**ids) for role, ids in roles.items()} for name, roles in entry["children"].items()}
    return Run(ProcessId(**entry["supervisor"]), entry["ready"], children)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all are held until the last is found, so that they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
