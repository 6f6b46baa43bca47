"""The trace of a story: what happened, line by line, and one hash of it all.

Two runs of one seed have told the same story iff their hashes are equal, whatever machine they ran on.
"""

from __future__ import annotations

import hashlib
from typing import Callable


class Trace:
    """Grows as the story goes on."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.lines: list[str] = []
        self._now_s = now_s
        self._hash = hashlib.blake2b(digest_size=16)

    def say(self, text: str) -> None:
        """Add a line, under the virtual time."""
        line = f"{self._now_s():9.3f}  {text}"
        self.lines.append(line)
        self._hash.update(line.encode() + b"\n")

    @property
    def hash(self) -> str:
        return self._hash.hexdigest()
