"""Keeps one PostgreSQL server for the process that holds the other end of standard input, and no longer.

Started by `tests.support.postgres` with one argument, the JSON of `postgres.Plan`. It makes the cluster, starts the server, says
`ready`, and obeys: the line `crash` ends the server as a power cut would and starts it again. When standard input ends, because
its parent closed it or was killed, the server goes and the directory with it. It is a process of its own because a killed
parent can clean up nothing, and it runs as its parent's user because the server's could not remove the directory.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START_S_MAX = 60.0
STOP_S_MAX = 20.0


def main() -> None:
    plan: dict[str, Any] = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        make_cluster(plan)
        keep(plan)
    except Exception as error:  # the parent reads standard output, and shows this to who runs the tests
        print(f"{error}\n{tail(plan)}", flush=True)
        sys.exit(1)
    finally:
        shutil.rmtree(plan["directory"], ignore_errors=True)


def keep(plan: dict[str, Any]) -> None:
    """Serve until standard input ends."""
    server = start(plan)
    try:
        print("ready", flush=True)
        for line in sys.stdin:
            if line.strip() == "crash":
                crash(server)
                server = start(plan)
                print("ready", flush=True)
    finally:
        crash(server)


def make_cluster(plan: dict[str, Any]) -> None:
    command = [f"{plan['binaries']}/initdb", "--pgdata", data(plan), "--username", "postgres", "--auth", "trust"]
    command += ["--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions", "--wal-segsize", "1"]  # see faults.disk_full
    subprocess.run(command, check=True, stdout=log(plan), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **as_user(plan))


def start(plan: dict[str, Any]) -> subprocess.Popen[bytes]:
    """The server, once it takes connections."""
    command = [f"{plan['binaries']}/postgres", "-D", data(plan)]
    command += [word for name, value in plan["settings"].items() for word in ("-c", f"{name}={value}")]
    server = subprocess.Popen(command, stdout=log(plan), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **as_user(plan))
    until = time.monotonic() + START_S_MAX
    while not takes_connections(plan, server.pid):
        if server.poll() is not None or time.monotonic() > until:
            crash(server)
            raise RuntimeError(f"the server did not start in {START_S_MAX:.0f} s; exit code {server.returncode}")
        time.sleep(0.02)
    return server


def takes_connections(plan: dict[str, Any], pid: int) -> bool:
    """As pg_ctl finds out: the first line of the server's lock file is its id, and the eighth its state."""
    try:
        lines = Path(data(plan), "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return False
    return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"


def crash(server: subprocess.Popen[bytes]) -> None:
    """End the server and its children at once: nothing is written that a commit had not written before."""
    if server.poll() is None:
        server.send_signal(signal.SIGQUIT)
        try:
            server.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def data(plan: dict[str, Any]) -> str:
    return f"{plan['directory']}/data"


def log(plan: dict[str, Any]) -> Any:
    return open(f"{plan['directory']}/log", "ab")


def tail(plan: dict[str, Any]) -> str:
    path = Path(plan["directory"], "log")
    return path.read_text(errors="replace")[-3000:] if path.exists() else ""


def as_user(plan: dict[str, Any]) -> dict[str, Any]:
    """How to start a process as the server's user: in its directory, with nothing of this environment but the path."""
    started: dict[str, Any] = {"cwd": plan["directory"], "env": {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}}
    if plan["uid"] is not None:
        started.update(user=plan["uid"], group=plan["gid"], extra_groups=[])
    return started


if __name__ == "__main__":
    main()
