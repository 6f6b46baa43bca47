"""The [nsync] section: every mistake is one text that names the option, its value and what it should be."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest

pytest.importorskip("rucio")  # whose functions read the file

from nsync import config
from nsync.errors import ConfigError
from nsync.rucio_bridge.poll import Polling
from nsync.transport import tls
from tests.support.federation import KEYS, URLS, charter_document

Options = dict[str, str]


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """The least that works; what a test puts in is what nsync then finds in the file."""
    (tmp_path / "charter.json").write_text(charter_document(URLS))
    KEYS["cms"].save(tmp_path / "nsync.key")
    found = {"instance": "cms", "charter": f"{tmp_path}/charter.json", "key": f"{tmp_path}/nsync.key", "listen": "127.0.0.1:8440"}

    def config_get(section: str, option: str, default: object = None, **_: object) -> object:
        return found.get(option, default) if section == "nsync" else default

    def config_get_list(section: str, option: str, default: object = None, **_: object) -> object:
        return found[option].split(",") if option in found else default

    monkeypatch.setattr(config, "config_get", config_get)
    monkeypatch.setattr(config, "config_get_list", config_get_list)
    return found


def test_the_least_that_works(options: Options) -> None:
    settings = config.read()
    assert (settings.host, settings.port, settings.source_address, settings.metrics) == ("127.0.0.1", 8440, None, None)
    assert (settings.sleep_time_s, settings.gossip_interval_s) == (0.5, 5.0)
    assert (settings.polling, settings.audit_interval_s) == (None, 0)


def test_who_polls_audits_by_itself(options: Options) -> None:
    options["capture"] = "poll"
    settings = config.read()
    assert (settings.polling, settings.audit_interval_s) == (Polling(10, 120), 3600)
    options.update(poll_interval="5", poll_overlap="600", audit_interval="0")
    settings = config.read()
    assert (settings.polling, settings.audit_interval_s) == (Polling(5, 600), 0)


@pytest.mark.parametrize("option", ["instance", "charter", "key", "listen"])
def test_what_is_required(options: Options, option: str) -> None:
    del options[option]
    with pytest.raises(ConfigError, match=rf"\[nsync\] {option} is not set in rucio.cfg \(RUCIO_CONFIG"):
        config.read()


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("sleep_time", ("soon", "", "0", "-1", "nan", "inf", "1e9")),
        ("capture", ("Poll", "trigger", "")),
        ("poll_interval", ("0", "-1")),
        ("poll_overlap", ("0", "a minute")),
        ("audit_interval", ("-1", "daily")),
        ("gossip_interval", ("5 s", "0", "-0.1", "nan")),
        (
            "listen",
            (
                "8440",
                ":8440",
                "127.0.0.1",
                "127.0.0.1:",
                "127.0.0.1:0",
                "127.0.0.1:65536",
                "127.0.0.1:-1",
                "127.0.0.1:²",
                "h:" + "9" * 5000,
            ),
        ),
        ("metrics", ("9440", "127.0.0.1:99999")),
        ("source_address", ("atlas.example.org", "127.0.0.1:80", "127.0.0.256", "x")),
        ("shared_scopes", ("belle2.x",)),
        (
            "scope_map",
            (
                "atlas",
                "atlas:",
                ":far",
                "atlas:a:b",
                "nobody:far",
                "cms:far",
                "atlas:belle2.x",
                "atlas:far,atlas:b",
                "atlas:far,belle2:far",
            ),
        ),
        ("scope_map", ("atlas:far away", "atlas:" + "f" * 300, "atlas:..")),
        ("instance", ("dune",)),
        ("charter", ("/nowhere/charter.json",)),
    ],
)
def test_what_cannot_be_is_named(options: Options, option: str, values: tuple[str, ...]) -> None:
    for value in values:
        options[option] = value
        with pytest.raises(ConfigError, match=rf"\[nsync\] {option}"):
            config.read()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("sleep_time", "0.01"),
        ("gossip_interval", "86400"),
        ("listen", "0.0.0.0:65535"),
        ("source_address", "::1"),
        ("metrics", "127.0.0.1:1"),
    ],
)
def test_what_is_at_the_edge_is_taken(options: Options, option: str, value: str) -> None:
    options[option] = value
    config.read()


def test_scopes_are_mapped_and_none_that_is_shared(options: Options) -> None:
    assert config.read().scope_map == {}
    options["scope_map"] = "atlas.shared:far.atlas, belle2:far.belle2"
    assert config.read().scope_map == {"atlas.shared": "far.atlas", "belle2": "far.belle2"}
    options["shared_scopes"] = "cms,atlas.shared"
    with pytest.raises(ConfigError, match=r"scope_map: nothing is shared .* take atlas.shared from shared_scopes"):
        config.read()


def test_without_tls_only_this_host_is_called_and_only_when_configured(options: Options, tmp_path: Path) -> None:
    (tmp_path / "charter.json").write_text(charter_document({**URLS, "atlas": "http://127.0.0.1:8440", "cms": "http://[::1]:8441"}))
    with pytest.raises(ConfigError, match=r"http://127.0.0.1:8440 for atlas, without TLS; .* allow_plain_http = true"):
        config.read()
    options["allow_plain_http"] = "True"
    assert config.read().tls is None
    (tmp_path / "charter.json").write_text(charter_document({**URLS, "belle2": "http://127.0.0.1.example.org"}))
    with pytest.raises(ConfigError, match=r"example.org for belle2: without TLS anybody on the way can read along"):
        config.read()
    options["allow_plain_http"] = "yes"
    with pytest.raises(ConfigError, match=r"allow_plain_http = yes: it should be true or false"):
        config.read()


def test_a_certificate_has_its_key_and_the_pin_of_the_charter(options: Options, tmp_path: Path) -> None:
    certificate = tls.make_certificate(tmp_path, datetime.now(timezone.utc))
    options["tls_cert"] = f"{tmp_path}/tls.pem"
    with pytest.raises(ConfigError, match="tls_cert and tls_key: set both"):
        config.read()
    options["tls_key"] = f"{tmp_path}/tls.key"
    assert config.read().tls is not None
    pinned = charter_document(URLS, pins={"cms": [certificate.hex()]})
    (tmp_path / "charter.json").write_text(pinned)
    assert config.read().tls is not None
    (tmp_path / "tls.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"can be read by other users \(mode 640\); run 'chmod 600"):
        config.read()
    (tmp_path / "charter.json").write_text(charter_document(URLS, pins={"cms": ["00" * 32]}))
    with pytest.raises(ConfigError, match=f"has the pin {certificate.hex()}, which the charter does not have for cms"):
        config.read()
    (tmp_path / "charter.json").write_text(charter_document({**URLS, "cms": "http://127.0.0.1:1"}))
    options["allow_plain_http"] = "true"
    with pytest.raises(ConfigError, match=r"tls_cert is set, but the charter has http://127.0.0.1:1 for cms"):
        config.read()


def test_what_is_no_certificate_is_named(options: Options, tmp_path: Path) -> None:
    options["tls_cert"], options["tls_key"] = f"{tmp_path}/tls.pem", f"{tmp_path}/tls.key"
    with pytest.raises(ConfigError, match=r"tls_key = .*: No such file"):
        config.read()
    for name in ("tls.pem", "tls.key"):
        (tmp_path / name).write_text("nonsense")
    with pytest.raises(ConfigError, match="not a certificate and its key"):
        config.read()
