"""Real nodes: `nsync serve` processes on copies of a Rucio database, each with a Rucio home, key and configuration of its own.

No Rucio server is needed: users' data are put in through Rucio's core (`Instance`). Every wait is bounded. What a process said is
kept in its home, stands in the text of a failed wait, and is printed when a test ends, where pytest shows it on failure.
"""

from __future__ import annotations

import asyncio
import configparser
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Callable, ClassVar, Optional
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from nsync.auth.keys import verify
from nsync.authority.documents import load
from nsync.authority.effective import Authority
from nsync.log.segment import decode_frame
from nsync.log.stored import Receipt
from nsync.rucio_bridge.bridge import Bridge
from nsync.store import kept
from nsync.testbed.layout import free_ports
from nsync.transport.client import PeerClient, open_session
from tests.support.federation import KEYS, NAMES, charter_document
from tests.support.instances import Instance

LOOPBACK = "127.0.0.1"
START_S_MAX = 60.0
"""Importing Rucio takes a second, and many on a machine that is busy."""
STOP_S_MAX = 10.0
SETTLE_S_MAX = 60.0
POLL_S = 0.02

_URLS = build_opener(ProxyHandler({}))


def wait_until(holds: Callable[[], Any], what: Callable[[], str], seconds_max: float = SETTLE_S_MAX) -> None:
    """Return when `holds()`, or fail with the text of `what()`."""
    end = time.monotonic() + seconds_max
    while not holds():
        assert time.monotonic() < end, f"not within {seconds_max:g} s: {what()}"
        time.sleep(POLL_S)


class Federation:
    """The instances of one charter, in one directory. Their URLs are part of what is signed, so it is a federation of its own."""

    def __init__(self, template: Path, directory: Path) -> None:
        self.template = template
        self.directory = directory
        self.ports = dict(zip(NAMES, free_ports(len(NAMES))))
        self.charter_file = directory / "charter.json"
        document = charter_document({name: f"http://{LOOPBACK}:{port}" for name, port in self.ports.items()})
        self.charter_file.write_text(document, encoding="utf-8")
        self.charter = load(document, verify)
        self.authority = Authority(self.charter)
        self.processes: list[Process] = []
        self._sites: list[Site] = []
        self.started = 0

    def site(self, name: str, shared: Sequence[str] = (), directory: str = ".") -> Site:
        """A new instance; a `directory` of its own lets several play the same member, one after the other."""
        home = self.directory / directory
        home.mkdir(exist_ok=True)
        self._sites.append(Site(self, home, name, shared))
        return self._sites[-1]

    def end_processes(self) -> None:
        """Kill what still runs, and print what all processes said: after each test."""
        for process in self.processes:
            process.kill()
            print(f"---- {process.log}\n{process.said()}{process.printed()}")
        self.processes = []

    def close(self) -> None:
        """End everything."""
        self.end_processes()
        for site in self._sites:
            site.close()


class Site(Instance):
    """One instance with a Rucio home: its database, its configuration, and the processes that run on it."""

    common: ClassVar[dict[str, str]] = {}
    """More of [common]."""
    monitor: ClassVar[dict[str, str]] = {}

    def __init__(self, federation: Federation, directory: Path, name: str, shared: Sequence[str]) -> None:
        super().__init__(federation.template, directory, name, shared)
        me = federation.charter.by_name(name)
        assert me is not None
        self.federation = federation
        self.author = me.author
        with self.engine.begin() as connection:
            kept.write(connection, "index", bytes(16))  # else it is drawn, and no two databases are equal
        self.bridge = Bridge(self.engine, federation.authority, me, KEYS[name].sign, verify, "OpenData=True")
        self.bridge.adopt(federation.charter_file.read_text(encoding="utf-8"), self.now_ms)
        self.home = directory / f"{name}-home"
        self.home.mkdir()
        self.url = f"http://{LOOPBACK}:{federation.ports[name]}"
        KEYS[name].save(self.home / "nsync.key")
        self.options = {
            "instance": name,
            "charter": str(federation.charter_file),
            "key": str(self.home / "nsync.key"),
            "listen": f"{LOOPBACK}:{federation.ports[name]}",
            "shared_scopes": ", ".join(shared),
            "rse_expression": "OpenData=True",
            "allow_plain_http": "true",
        }

    @property
    def database_url(self) -> str:
        return f"sqlite+nsync:///{self.path}"

    def environment(self, failpoint: str = "") -> dict[str, str]:
        """The environment of a process of this instance, its configuration written anew."""
        config = configparser.ConfigParser(interpolation=None)
        config["common"] = {"logdir": str(self.home), **self.common}
        if self.monitor:
            config["monitor"] = self.monitor
        config["database"] = {"default": self.database_url}
        config["policy"] = {
            "permission": "generic",
            "schema": "generic",
            "support": "nobody@example.org",
            "support_rucio": "nobody@example.org",
        }
        config["nsync"] = self.options
        path = self.home / "rucio.cfg"
        with path.open("w", encoding="utf-8") as file:
            config.write(file)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RUCIO_")}
        return {**kept, "RUCIO_HOME": str(self.home), "RUCIO_CONFIG": str(path), "PYTHONUNBUFFERED": "1", "NSYNC_FAILPOINT": failpoint}

    def start(self, *arguments: str, failpoint: str = "", program: Sequence[str] = (sys.executable, "-m", "nsync", "serve")) -> Process:
        """Start a node on this database, which nobody in this process holds open any more: a killed node leaves it as a power cut would."""
        self.close()
        self.federation.started += 1
        log = self.home / f"{self.federation.started:02}{failpoint and '-' + failpoint.replace(':', '-')}.log"
        process = Process([*program, *arguments], log, self.environment(failpoint), self.url)
        self.federation.processes.append(process)
        return process

    def serve(self, failpoint: str = "") -> Process:
        """A node that answers its peers already."""
        process = self.start(failpoint=failpoint)
        process.wait_for_ping()
        return process


def nsync(site: Site, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command beside the node of `site`; its tables are not folded."""
    command = [sys.executable, "-m", "nsync", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**site.environment(), "COLUMNS": "200"})


class Process:
    """A node that runs, or ran. Its log holds stderr; stdout is kept apart."""

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str], url: str) -> None:
        self.log = log
        self.url = url
        self._out = log.with_suffix(".out")
        with self.log.open("wb") as err, self._out.open("wb") as out:
            self._child = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=environment)

    @property
    def pid(self) -> int:
        return self._child.pid

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def printed(self) -> str:
        return self._out.read_text(encoding="utf-8", errors="replace")

    def running(self) -> bool:
        return self._child.poll() is None

    def ended(self, seconds_max: float = START_S_MAX) -> int:
        """Wait for the end; the exit code, negative for a signal."""
        wait_until(lambda: not self.running(), lambda: f"the end of process {self.pid}, which said:\n{self.said()}", seconds_max)
        return int(self._child.returncode)

    def wait_for_ping(self, or_end: bool = False) -> None:
        """Wait until it answers its peers; `or_end`: or it ends, which is a failure otherwise."""

        def answers() -> bool:
            if not self.running():
                assert or_end, f"the node ended with {self._child.returncode}, and said:\n{self.said()}"
                return True
            return self._answers()

        wait_until(answers, lambda: f"an answer of {self.url}, which said:\n{self.said()}", START_S_MAX)

    def _answers(self) -> bool:
        try:
            with _URLS.open(self.url + "/ping", timeout=5) as response:
                return "version" in json.load(response)
        except (URLError, ConnectionError, TimeoutError):
            return False

    def send(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end, and see that it does so in order."""
        self.send(number)
        code = self.ended(STOP_S_MAX)
        assert code == 0, f"exit code {code} after {number.name}; it said:\n{self.said()}"

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.running():
            self._child.kill()
        self._child.wait()


class Peer:
    """The test in the role of a member that pushes segments to a node, and keeps what the node acknowledged."""

    def __init__(self, federation: Federation, name: str, to: str) -> None:
        me, peer = federation.charter.by_name(name), federation.charter.by_name(to)
        assert me is not None and peer is not None
        self._federation, self._me, self._peer, self._key = federation, me, peer, KEYS[name]
        self.acknowledged: set[tuple[bytes, int, bytes]] = set()
        """(author, first, hash) of the segments that the node said it has."""

    def push(self, frames: Sequence[bytes]) -> Receipt:
        """Push `frames` in one request. Raises TransportError when the node dies over it."""
        receipt = asyncio.run(self._push(frames))
        if not receipt.rejected:
            segments = [decode_frame(frame) for frame in frames]
            self.acknowledged |= {(s.header.author, s.header.first, s.hash) for s in segments}
        return receipt

    async def _push(self, frames: Sequence[bytes]) -> Receipt:
        async with open_session() as http:
            return await PeerClient(http, self._federation.charter, self._me, self._peer, self._key).push(frames)


# ---- what a database holds, read from outside

_SURROGATES = {"id", "arrival"}
"""Keys that differ between two runs of the same story, as its times do; RSEs, which others refer to, are put in by name."""


def ask(path: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """The rows of one query; the connection, and with it the recovery of a killed process's WAL, lasts no longer than that."""
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        return list(connection.execute(sql, values))


_WORDS = ("nsync_signed_head", "nsync_peer", "heartbeats")
"""What a node says of itself, or measures, at its own time."""


def everything(path: Path, without: Sequence[str] = ()) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables but `without` and `_WORDS`, without times and `_SURROGATES`: two runs of one story can be compared."""
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        connection.execute("BEGIN")
        rses = {row[0]: f"RSE {row[1]}" for row in connection.execute("SELECT id, rse FROM rses")}
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")]
        found = {}
        for table in sorted(set(tables) - set(without) - set(_WORDS)):
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            columns = [name for name in names if name not in _SURROGATES and not name.endswith("_at")]
            rows = connection.execute(f"SELECT {', '.join(columns)} FROM {table}") if columns else []
            found[table] = sorted((tuple(rses.get(value, value) for value in row) for row in rows), key=repr)
        return found


def damage(path: Path) -> list[tuple[Any, ...]]:
    """What SQLite itself finds wrong; nothing, in a database that was only killed."""
    return [row for row in ask(path, "PRAGMA integrity_check") if row != ("ok",)] + ask(path, "PRAGMA foreign_key_check")


def stored(path: Path) -> set[tuple[bytes, int, bytes]]:
    """(author, first, hash) of each stored segment."""
    return set(ask(path, "SELECT b.author, s.first, s.hash FROM nsync_segment s JOIN nsync_branch b ON b.id = s.branch"))


def applied(path: Path, author: bytes) -> int:
    """How far the log of `author` is applied."""
    return int(ask(path, "SELECT coalesce(max(applied), 0) FROM nsync_branch WHERE author = ?", author)[0][0])


def reports(process: Process) -> Optional[list[dict[str, Any]]]:
    """What `--run-once --json` printed."""
    text = process.printed()
    return json.loads(text) if text else None
