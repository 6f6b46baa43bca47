"""The files of one instance: directories, Rucio's configuration for server and client, gunicorn's, alembic's.

Written anew at every start from the layout, so that they always fit this release of nsync; data and keys are never
touched. Server and client need files of their own: Rucio takes whatever reads a `[database]` section for a server.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from nsync.testbed.charter import key_file, tls_directory
from nsync.testbed.layout import LOOPBACK, Instance, replace_text

ACCOUNT = "root"
RSE = "DISK"
"""The name of each instance's only RSE, the same everywhere: nothing keeps real instances from choosing alike."""

NSYNC_PLUGIN = "nsync.rucio_bridge.plugin.NsyncDidMeta"
JSON_PLUGIN = "rucio.core.did_meta_plugins.json_meta.JSONDidMeta"
"""Rucio's own, which it has without configuration, and which fails on SQLite."""

Sections = Mapping[str, Mapping[str, str]]

_ALEMBIC_LOGGING: Sections = {
    # Rucio's alembic environment calls logging.fileConfig, which demands all of these.
    "loggers": {"keys": "root"},
    "handlers": {"keys": "console"},
    "formatters": {"keys": "generic"},
    "logger_root": {"level": "WARN", "handlers": "console"},
    "handler_console": {"class": "StreamHandler", "args": "(sys.stderr,)", "level": "NOTSET", "formatter": "generic"},
    "formatter_generic": {"format": "%(levelname)-5.5s [%(name)s] %(message)s"},
}

_GUNICORN = """\
bind = {bind!r}
workers = 1  # Rucio's tests on SQLite fail now and then with more
threads = 4
graceful_timeout = 5
worker_tmp_dir = {tmp!r}
control_socket_disable = True  # gunicorn 25 and later put one into the home directory; earlier ones ignore this
"""


def write_files(instance: Instance, charter: Path) -> None:
    """Make the directories of `instance` and write its configuration."""
    for name in ("etc", "log", "mail", "rse", "tok", "tmp"):
        (instance.home / name).mkdir(parents=True, exist_ok=True)
    server = _server_sections(instance, charter)
    _write(instance.server_config, server)
    _write(instance.client_config, {name: server[name] for name in ("client", "policy")})
    _write(_alembic_config(instance), _alembic_sections(instance))
    replace_text(gunicorn_config(instance), _GUNICORN.format(bind=f"{LOOPBACK}:{instance.server_port}", tmp=str(instance.home / "tmp")))


def gunicorn_config(instance: Instance) -> Path:
    return instance.home / "etc" / "gunicorn.conf.py"


def server_environment(instance: Instance) -> dict[str, str]:
    """The environment of the server, the daemons and the node."""
    unbuffered = {"PYTHONUNBUFFERED": "1"}  # so that logs hold the last words of who is killed
    return {**_clean_environment(), **server_variables(instance), **unbuffered}


def server_variables(instance: Instance) -> dict[str, str]:
    """What makes a daemon or `nsync` work on the database of `instance`."""
    return _variables(instance, instance.server_config)


def client_environment(instance: Instance) -> dict[str, str]:
    """The environment in which the stock client speaks to `instance`."""
    return {**_clean_environment(), **client_variables(instance)}


def client_variables(instance: Instance) -> dict[str, str]:
    """What differs in `client_environment` from the user's own environment."""
    return {**_variables(instance, instance.client_config), "RUCIO_ACCOUNT": ACCOUNT}


def _variables(instance: Instance, config: Path) -> dict[str, str]:
    return {"RUCIO_HOME": str(instance.home), "RUCIO_CONFIG": str(config), "NO_PROXY": LOOPBACK, "no_proxy": LOOPBACK}


def _clean_environment() -> dict[str, str]:
    """The user's environment without what would send Rucio elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RUCIO_")}


def _server_sections(instance: Instance, charter: Path) -> Sections:
    return {
        "common": {"logdir": str(instance.home / "log"), "loglevel": "INFO", "mailtemplatedir": str(instance.home / "mail")},
        "database": {"default": instance.database_url, "echo": "0"},
        "bootstrap": {"userpass_identity": "ddmlab", "userpass_pwd": "secret", "userpass_email": "root@example.org"},
        "policy": {
            "permission": "generic",
            "schema": "generic",
            "lfn2pfn_algorithm_default": "hash",
            "support": "nobody@example.org",
            "support_rucio": "nobody@example.org",
        },
        "alembic": {"cfg": str(_alembic_config(instance))},
        "metadata": {"plugins": NSYNC_PLUGIN if instance.database_url.startswith("sqlite") else f"{JSON_PLUGIN},{NSYNC_PLUGIN}"},
        "opendata": {"rse_expression": "OpenData=True"},
        "client": {
            "rucio_host": instance.server_url,
            "auth_host": instance.server_url,
            "auth_type": "userpass",
            "username": "ddmlab",
            "password": "secret",
            "account": ACCOUNT,
            "request_retries": "3",
            # The default place is the same for all hosts: instances would overwrite each other's token.
            "auth_token_file_path": str(instance.home / "tok" / "token"),
        },
        "nsync": {
            "instance": instance.name,
            "charter": str(charter),
            "key": str(key_file(instance)),
            "listen": f"{LOOPBACK}:{instance.node_port}",
            "source_address": instance.source_address,
            "shared_scopes": ", ".join(instance.shared_scopes),
            "tls_cert": str(tls_directory(instance) / "tls.pem"),
            "tls_key": str(tls_directory(instance) / "tls.key"),
        },
    }


def _alembic_config(instance: Instance) -> Path:
    return instance.home / "etc" / "alembic.ini"


def _alembic_sections(instance: Instance) -> Sections:
    rucio = find_spec("rucio")
    assert rucio is not None and rucio.origin is not None, "the preflight found it"
    migrations = Path(rucio.origin).parent / "db" / "sqla" / "migrate_repo"
    return {"alembic": {"script_location": str(migrations), "sqlalchemy.url": instance.database_url}, **_ALEMBIC_LOGGING}


def _write(path: Path, sections: Sections) -> None:
    """Write an ini file; its first line says that edits are lost."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_dict(sections)
    with path.open("w", encoding="utf-8") as file:
        file.write("# Written by 'nsync testbed up' at every start.\n")
        parser.write(file)
