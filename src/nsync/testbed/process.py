"""Child processes that never outlive their supervisor, and are recognised by more than their number.

Linux only: the kernel tells a child when its parent died (`PR_SET_PDEATHSIG`), so that even a killed supervisor leaves
nothing behind. Children get a session of their own: Ctrl-C reaches the supervisor alone, which stops them in order.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import psutil

STOP_GRACE_S = 10
"""Between TERM and KILL: longer than gunicorn and the node take to finish a request."""

CREATION_TOLERANCE_S = 1.0
"""A process is the same one when its creation time agrees so far; a number is not used again within a second."""

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class ProcessId:
    """A process for ever: its number, and when it was created."""

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        return cls(pid, psutil.Process(pid).create_time())

    def alive(self) -> bool:
        """Whether this very process still runs."""
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return bool(abs(process.create_time() - self.created) < CREATION_TOLERANCE_S)
        except psutil.NoSuchProcess:
            return False


@dataclass(frozen=True)
class Child:
    """A process that was started for `instance` in a `role` (server, node, or a step of the start), and its log."""

    instance: str
    role: str
    log: Path
    popen: subprocess.Popen[bytes]
    id: ProcessId

    @property
    def exit_code(self) -> Optional[int]:
        """None while it runs."""
        return self.popen.poll()

    def last_lines(self, count: int = 15) -> str:
        return last_lines(self.log, count)


def spawn(instance: str, role: str, log: Path, command: Sequence[str], environment: Mapping[str, str]) -> Child:
    """Start `command` with its output appended to `log`."""
    parent = os.getpid()

    def die_with_parent() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    with log.open("ab") as output:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=log.parent,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    return Child(instance, role, log, popen, ProcessId.of(popen.pid))


def stop(children: Iterable[Child]) -> None:
    """End `children`: TERM to all, and KILL with all their descendants for those that still run after the grace."""
    running = [child.popen for child in children if child.exit_code is None]
    for popen in running:
        popen.terminate()
    _, stubborn = psutil.wait_procs([psutil.Process(popen.pid) for popen in running], timeout=STOP_GRACE_S)
    for process in stubborn:
        os.killpg(process.pid, signal.SIGKILL)
    for popen in running:
        popen.wait()


def last_lines(path: Path, count: int) -> str:
    """The last `count` lines of the log at `path`; empty when there is none yet."""
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])
    except FileNotFoundError:
        return ""
