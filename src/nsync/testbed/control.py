"""Start a testbed in the background, stop it, cut and heal its network: from another process than the supervisor's."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import psutil

from nsync.errors import ConfigError, NsyncError
from nsync.testbed import layout as layouts
from nsync.testbed.layout import Layout
from nsync.testbed.process import STOP_GRACE_S
from nsync.testbed.proxy import POLL_S, read_cut, write_cut
from nsync.testbed.supervisor import AlreadyRunning, Say, StartFailed

STOP_TIMEOUT_S = 2 * STOP_GRACE_S + 10
"""The supervisor waits one grace for its children; the rest is for a machine under load."""


class StopFailed(NsyncError):
    """The testbed still runs."""


def start_detached(directory: Path, arguments: Sequence[str], say: Say) -> None:
    """Run `nsync testbed up` with `arguments` in the background; return when the testbed is ready. Raises StartFailed."""
    if layouts.exists(directory) and layouts.load(directory).running:
        raise AlreadyRunning(directory)  # before its log is overwritten
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "supervisor.log"
    command = [sys.executable, "-m", "nsync", "testbed", "up", "--dir", str(directory), *arguments]
    with log.open("wb") as output:
        supervisor = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    with log.open("rb") as progress:
        try:
            _follow(supervisor, directory, progress, say)
        except BaseException:
            supervisor.terminate()
            supervisor.wait()
            raise


def down(layout: Layout) -> bool:
    """Stop the testbed and wait until nothing of it runs. False when it was not running. Raises StopFailed."""
    if layout.run is None or not layout.running:
        return False
    pid = layout.run.supervisor.pid
    try:
        supervisor = psutil.Process(pid)
        supervisor.terminate()
        supervisor.wait(timeout=STOP_TIMEOUT_S)
    except psutil.NoSuchProcess:
        pass  # it ended meanwhile
    except psutil.TimeoutExpired as error:
        raise StopFailed(
            f"the supervisor (pid {pid}) still runs after {STOP_TIMEOUT_S} s; see {layout.directory}/supervisor.log"
        ) from error
    return True


def cut(layout: Layout, names: Sequence[str]) -> None:
    """Cut the instances `names` off from all others, until `heal`."""
    _check_running(layout)
    write_cut(layout.partition, read_cut(layout.partition) | {layout.instance(name).name for name in names})
    time.sleep(2 * POLL_S)  # after which the network has seen it


def heal(layout: Layout) -> None:
    """Connect all instances again."""
    _check_running(layout)
    write_cut(layout.partition, ())
    time.sleep(2 * POLL_S)


def _check_running(layout: Layout) -> None:
    if not layout.running:
        raise ConfigError(f"the testbed in {layout.directory} does not run; start it with 'nsync testbed up --dir {layout.directory}'")


def _follow(supervisor: subprocess.Popen[bytes], directory: Path, progress: BinaryIO, say: Say) -> None:
    """Pass on what the supervisor says until the testbed is ready."""
    ready, ended, failure = False, False, ""
    while not ready and not ended:
        time.sleep(POLL_S)
        ready, ended = _is_ready(supervisor.pid, directory), supervisor.poll() is not None
        told, _, error = progress.read().decode(errors="replace").partition("Error: ")
        for line in told.splitlines():
            say(line)
        failure += error
    if ended:
        raise StartFailed(failure or f"the supervisor ended with exit code {supervisor.returncode}")


def _is_ready(pid: int, directory: Path) -> bool:
    if not layouts.exists(directory):
        return False
    run = layouts.load(directory).run
    return run is not None and run.ready and run.supervisor.pid == pid
