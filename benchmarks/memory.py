"""Memory, measured in a process of its own, so that nothing else has been in it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

ROOT = Path(__file__).resolve().parent.parent


def in_own_process(module: str, *arguments: object, environment: Optional[Mapping[str, str]] = None) -> Any:
    """What `python -m module arguments` prints, as JSON; `environment` in place of this process's."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment).stdout)


def resident_bytes() -> int:
    """Of this process, now."""
    return _status("VmRSS")


def resident_bytes_max() -> int:
    """Of this process, ever."""
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/self/status has no {field}")
