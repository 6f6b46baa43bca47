"""How a testbed does, seen from outside: asked of the processes and servers themselves, never of what was noted."""

from __future__ import annotations

import http.client
import ssl
from dataclasses import dataclass
from typing import Optional
from urllib.parse import urlsplit

from nsync.testbed.layout import Instance, Layout
from nsync.testbed.process import ProcessId
from nsync.testbed.proxy import read_cut

PING_TIMEOUT_S = 2


@dataclass(frozen=True)
class Service:
    """A server or node: `state` is up, silent (runs but does not answer), died, or stopped."""

    state: str
    url: str
    pid: Optional[int]


@dataclass(frozen=True)
class InstanceStatus:
    """One instance: its two services, and whether it is cut off from its peers."""

    name: str
    server: Service
    node: Service
    cut: bool
    client_config: str


def answers(url: str) -> bool:
    """Whether the service at `url` answers `GET /ping` with success; whoever it is, since nothing is told it."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.netloc, timeout=PING_TIMEOUT_S)
    if place.scheme == "https":
        anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(place.netloc, timeout=PING_TIMEOUT_S, context=anybody)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def look(layout: Layout) -> list[InstanceStatus]:
    """The status of every instance."""
    cut = read_cut(layout.partition)
    return [_look(layout, instance, instance.name in cut) for instance in layout.instances]


def _look(layout: Layout, instance: Instance, cut: bool) -> InstanceStatus:
    roles = layout.run.children[instance.name] if layout.run and layout.running else {}
    return InstanceStatus(
        name=instance.name,
        server=_service(roles.get("server"), instance.server_url),
        node=_service(roles.get("node"), instance.node_url),
        cut=cut,
        client_config=str(instance.client_config),
    )


def _service(process: Optional[ProcessId], url: str) -> Service:
    if process is None:
        return Service("stopped", url, None)
    if not process.alive():
        return Service("died", url, process.pid)
    return Service("up" if answers(url) else "silent", url, process.pid)


def healthy(status: InstanceStatus) -> bool:
    """Whether everything that was started for the instance is up (`up --no-nodes` starts no node)."""
    return status.server.state == "up" and status.node.state in ("up", "stopped")
