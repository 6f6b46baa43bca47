"""The `[nsync]` section of rucio.cfg, read with Rucio's own config_get once and checked (docs/CONFIGURATION.md).

Every mistake is a ConfigError that names the option, the value and what it should be.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Optional

from rucio.common.config import config_get, config_get_list

from nsync.auth.keys import SigningKey, verify
from nsync.authority import amendments
from nsync.authority.charter import Charter, Instance
from nsync.errors import ConfigError
from nsync.rucio_bridge.poll import Polling
from nsync.transport import tls

SECTION = "nsync"
PORT_MAX = 65535
BULK, BULK_MAX = 5000, 100_000
"""More rows at once make no audit faster, and keep Rucio's writers waiting."""
SECONDS_MAX = 86_400
"""A day: who waits longer between two looks has switched nsync off."""


@dataclass(frozen=True)
class Settings:
    """What a node needs to know."""

    me: Instance
    charter: Charter
    charter_text: str
    """The file, for the database to keep."""
    key: SigningKey
    host: str
    port: int
    source_address: Optional[str]
    shared_scopes: tuple[str, ...]
    scope_map: Mapping[str, str]
    """Foreign scopes, and under which other names they stand here."""
    rse_expression: str
    polling: Optional[Polling]
    """None: triggers capture."""
    audit_interval_s: float
    """0: nothing is audited that nobody asks for."""
    sleep_time_s: float
    gossip_interval_s: float
    lease_s: float
    floor_interval_s: float
    """0: this instance proposes no floors."""
    metrics: Optional[tuple[str, int]]
    """Where to serve Prometheus metrics, if at all."""
    tls: Optional[ssl.SSLContext]
    """What peers are answered with; None where a proxy ends TLS, or all are on this host."""
    is_new: bool = False
    """Whether foreign collections are new to Rucio's transmogrifier, so that local subscriptions match them."""
    bulk: int = BULK
    """How many rows a full audit looks at in one transaction."""


def read() -> Settings:
    """The settings of this instance. Raises ConfigError."""
    name, text = _option("instance"), _charter_text()
    charter = amendments.read(text, verify).charter
    me = charter.by_name(name)
    if me is None:
        names = ", ".join(i.name for i in charter.instances)
        raise ConfigError(f"[nsync] instance = {name}: the charter names no such instance; it names {names}")
    key = SigningKey.load(Path(_option("key")))
    if key.public != me.key:
        raise ConfigError(
            f"[nsync] key: the key in {_option('key')} is {key.public.hex()[:12]}…, the charter expects {me.key.hex()[:12]}… for {name}"
        )
    shared = _list("shared_scopes")
    for scope in shared:
        if not charter.may_write(me, scope):
            raise ConfigError(
                f"[nsync] shared_scopes: the charter does not let {name} write in scope {scope!r}; drop it, or agree on a new charter"
            )
    tls.check_urls(charter, _flag("allow_plain_http"))
    host, port = _address("listen", _option("listen"))
    polling = Polling(_seconds("poll_interval", "10"), _seconds("poll_overlap", "120"))
    metrics = _option("metrics", "")
    return Settings(
        me=me,
        charter=charter,
        charter_text=text,
        key=key,
        host=host,
        port=port,
        source_address=_source_address(_option("source_address", "")),
        shared_scopes=shared,
        scope_map=_scope_map(charter, me),
        rse_expression=_option(
            "rse_expression",
            str(config_get("opendata", "rse_expression", raise_exception=False, default="OpenData=True", check_config_table=False)),
        ),
        polling=polling if is_polled() else None,
        audit_interval_s=_seconds("audit_interval", "3600" if is_polled() else "0", zero=True),
        sleep_time_s=_seconds("sleep_time", "0.5"),
        gossip_interval_s=_seconds("gossip_interval", "5.0"),
        lease_s=_seconds("lease", "900"),
        floor_interval_s=_seconds("floor_interval", "86400", zero=True),
        metrics=_address("metrics", metrics) if metrics else None,
        tls=tls.own_context(me, _path("tls_cert"), _path("tls_key")),
        is_new=_flag("is_new"),
        bulk=_rows("bulk", str(BULK)),
    )


def _scope_map(charter: Charter, me: Instance) -> Mapping[str, str]:
    from nsync.rucio_bridge.schemas import misfit

    found: dict[str, str] = {}
    for part in _list("scope_map"):
        foreign, colon, local = part.partition(":")
        home = charter.home(foreign)
        wrong = None
        if not colon or not local or ":" in local:
            wrong = "it should be FOREIGN_SCOPE:LOCAL_SCOPE"
        elif home is None or home.name == me.name:
            wrong = f"by the charter scope {foreign!r} is " + ("delegated to nobody" if home is None else f"{me.name}'s own")
        elif (other := charter.home(local)) is not None:
            wrong = f"by the charter the local name {local!r} is {other.name}'s; choose one that is nobody's"
        elif foreign in found or local in found.values():
            wrong = "each scope and each name should stand there once"
        else:
            wrong = misfit("scope", local)
        if wrong is not None:
            raise ConfigError(f"[nsync] scope_map, {part!r}: {wrong}")
        found[foreign] = local
    shared = sorted(found.keys() & set(_list("shared_scopes")))
    if shared:
        raise ConfigError(
            f"[nsync] scope_map: nothing is shared in a scope that has another name here; take {shared[0]} from shared_scopes"
        )
    return found


def _list(name: str) -> tuple[str, ...]:
    parts = config_get_list(SECTION, name, raise_exception=False, default=[], check_config_table=False)
    return tuple(part for part in (str(part).strip() for part in parts) if part)


def is_polled() -> bool:
    """Whether changes of Rucio are captured without triggers: all that 'nsync bridge check' needs to know. Raises ConfigError."""
    value = _option("capture", "triggers")
    if value not in ("triggers", "poll"):
        raise ConfigError(f"[nsync] capture = {value}: it should be triggers or poll")
    return value == "poll"


def _charter_text() -> str:
    path = Path(_option("charter"))
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # not there, or not UTF-8
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"[nsync] charter = {path}: {why}; put the federation's signed charter there") from error


def _address(name: str, value: str) -> tuple[str, int]:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not (port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= PORT_MAX):
        raise ConfigError(f"[nsync] {name} = {value}: it should be ADDRESS:PORT with a port from 1 to {PORT_MAX}, as 127.0.0.1:8440")
    return host, int(port)


def _source_address(value: str) -> Optional[str]:
    try:
        return str(ip_address(value)) if value else None
    except ValueError as error:
        raise ConfigError(f"[nsync] source_address = {value}: it should be an IP address of this host, without a port") from error


def _seconds(name: str, default: str, zero: bool = False) -> float:
    value = _option(name, default)
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= SECONDS_MAX and not (zero and seconds == 0):  # not a number is neither
        least = "0" if zero else "more than 0"
        raise ConfigError(f"[nsync] {name} = {value}: it should be a number of seconds, {least} and at most {SECONDS_MAX}")
    return seconds


def _rows(name: str, default: str) -> int:
    value = _option(name, default)
    if not (value.isdecimal() and len(value) <= len(str(BULK_MAX)) and 1 <= int(value) <= BULK_MAX):
        raise ConfigError(f"[nsync] {name} = {value}: it should be a number of rows, from 1 to {BULK_MAX}")
    return int(value)


def _flag(name: str) -> bool:
    value = _option(name, "false")
    if value.lower() not in ("true", "false"):
        raise ConfigError(f"[nsync] {name} = {value}: it should be true or false")
    return value.lower() == "true"


def _path(name: str) -> Optional[Path]:
    value = _option(name, "")
    return Path(value) if value else None


def _option(name: str, default: Optional[str] = None) -> str:
    value = config_get(SECTION, name, raise_exception=False, default=default, check_config_table=False)
    if value is None:
        raise ConfigError(f"[nsync] {name} is not set in rucio.cfg (RUCIO_CONFIG, or $RUCIO_HOME/etc/rucio.cfg)")
    return str(value)
