"""The `[nsync]` section of rucio.cfg, read with Rucio's own config_get once and checked (docs/CONFIGURATION.md).

Every mistake is a ConfigError that names the option, the value and what it should be.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from rucio.common.config import config_get, config_get_float, config_get_list

from nsync.auth.keys import SigningKey, verify
from nsync.authority.charter import Charter, Instance, load
from nsync.errors import ConfigError

SECTION = "nsync"


@dataclass(frozen=True)
class Settings:
    """What a node needs to know."""

    me: Instance
    charter: Charter
    key: SigningKey
    host: str
    port: int
    source_address: Optional[str]
    shared_scopes: tuple[str, ...]
    rse_expression: str
    sleep_time_s: float
    gossip_interval_s: float
    metrics: Optional[tuple[str, int]]
    """Where to serve Prometheus metrics, if at all."""


def read() -> Settings:
    """The settings of this instance. Raises ConfigError."""
    name, charter = _option("instance"), _charter()
    me = charter.by_name(name)
    if me is None:
        names = ", ".join(i.name for i in charter.instances)
        raise ConfigError(f"[nsync] instance = {name}: the charter names no such instance; it names {names}")
    key = SigningKey.load(Path(_option("key")))
    if key.public != me.key:
        raise ConfigError(
            f"[nsync] key: the key in {_option('key')} is {key.public.hex()[:12]}…, the charter expects {me.key.hex()[:12]}… for {name}"
        )
    shared = tuple(s for s in config_get_list(SECTION, "shared_scopes", raise_exception=False, default=[], check_config_table=False) if s)
    for scope in shared:
        if not charter.may_write(me, scope):
            raise ConfigError(
                f"[nsync] shared_scopes: the charter does not let {name} write in scope {scope!r}; amend the charter or drop it"
            )
    host, port = _address("listen", _option("listen"))
    metrics = _option("metrics", "")
    return Settings(
        me=me,
        charter=charter,
        key=key,
        host=host,
        port=port,
        source_address=_option("source_address", "") or None,
        shared_scopes=shared,
        rse_expression=_option(
            "rse_expression", str(config_get("opendata", "rse_expression", raise_exception=False, default="OpenData=True"))
        ),
        sleep_time_s=config_get_float(SECTION, "sleep_time", raise_exception=False, default=0.5, check_config_table=False),
        gossip_interval_s=config_get_float(SECTION, "gossip_interval", raise_exception=False, default=5.0, check_config_table=False),
        metrics=_address("metrics", metrics) if metrics else None,
    )


def _charter() -> Charter:
    path = Path(_option("charter"))
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"[nsync] charter = {path}: {error.strerror}; put the federation's signed charter there") from error
    return load(text, verify)


def _address(name: str, value: str) -> tuple[str, int]:
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdigit() or not host:
        raise ConfigError(f"[nsync] {name} = {value}: it should be ADDRESS:PORT, as 127.0.0.1:8440")
    return host, int(port)


def _option(name: str, default: Optional[str] = None) -> str:
    value = config_get(SECTION, name, raise_exception=False, default=default, check_config_table=False)
    if value is None:
        raise ConfigError(f"[nsync] {name} is not set in rucio.cfg (RUCIO_CONFIG, or $RUCIO_HOME/etc/rucio.cfg)")
    return str(value)
