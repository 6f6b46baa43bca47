"""Prometheus metrics of a node, served at an address of its own: peers see none of them. What the bridge does is counted with Rucio's
means, into the same registry (rucio_bridge.measures).

`[nsync] metrics = 127.0.0.1:9440` turns them on.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, start_http_server

from nsync.errors import ConfigError

REFUSED_SEGMENTS = Counter("nsync_refused_segments", "Segments that were not taken", ["sender"])
DIFFERS_BELOW_FLOOR = Gauge("nsync_differs_below_floor", "Whether what is live below the newest floor is not what its signers signed")
REPAIRED_OPS = Counter("nsync_repaired_ops", "Ops below a floor that were missing here and came from a peer")
LIMITS = (
    *("header_time", "source_rate", "source_connections", "connections", "member_connections", "requests_ahead", "write_time"),
    "malformed",
    *("requests", "signatures", "cpu_ms", "body_bytes", "places", "encoding", "body_size", "body_rate", "bytes", "segments"),
)
"""docs/OPERATIONS.md says what each means."""
LIMIT_HITS = Counter("nsync_limit_hits", "Connections and requests that were not served because of a limit", ["limit"])
for _limit in LIMITS:
    LIMIT_HITS.labels(_limit)
FLOOR = Gauge("nsync_floor", "The number of the newest floor that is decided")
FORKS_HALF_HERE = Counter("nsync_forks_half_here", "Proofs that an author signed two histories, of which not both are here", ["author"])
LEASE_OVERDUE_SECONDS = Gauge("nsync_lease_overdue_seconds", "Age of the last word of an author, if beyond the lease", ["author"])
WITHHELD = Gauge("nsync_withheld_ops", "Ops of an author to which a peer does not come", ["peer", "author"])
PEER_FAILURES = Gauge("nsync_peer_failures", "Failures in a row of the exchange with a peer; 0 when it is well", ["peer"])


_SERVED: set[tuple[str, int]] = set()


def serve(host: str, port: int) -> None:
    """Serve GET /metrics in a thread of its own, as long as the process lasts. Raises ConfigError when the address is taken."""
    if (host, port) in _SERVED:
        return
    try:
        start_http_server(port, addr=host)
        _SERVED.add((host, port))
    except OSError as error:
        raise ConfigError(f"[nsync] metrics = {host}:{port}: {error.strerror}; choose another address") from error
