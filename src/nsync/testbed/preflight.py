"""What this machine lacks for a testbed, each with the command that mends it."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from nsync.errors import ConfigError

_PACKAGES = ("rucio", "gunicorn", "psutil")


def check() -> None:
    """Raise ConfigError when something is missing."""
    if sys.platform != "linux":
        raise ConfigError("the testbed needs Linux: nodes dial from loopback addresses of their own; run it in a container or a VM")
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(f"the testbed needs {', '.join(missing)}; run: {sys.executable} -m pip install 'nsync[testbed]'")
