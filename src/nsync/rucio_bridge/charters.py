"""The charter in force, kept in the database: an instance goes over to a newer one, never back or aside (R5.1).

What the database holds was read by the rules of the charter that it keeps. So a node that is started with another charter file
first compares the two, and what the new one changes is brought up to date in one transaction (`Bridge.adopt`).
"""

from __future__ import annotations

from typing import Optional

from sqlalchemy import Connection

from nsync.authority import amendments
from nsync.authority.charter import Charter, Verify
from nsync.store import kept

_NAME = "charter"


def in_force(connection: Connection, verify: Verify) -> Optional[Charter]:
    """The charter by which this database was read last; None before the first."""
    text = kept.read(connection, _NAME)
    return amendments.read(text.decode(), verify).charter if text is not None else None


def following(connection: Connection, text: str, verify: Verify) -> Charter:
    """The charter of the file `text`. Raises ConfigError unless it is the one in force or goes on from it."""
    held = in_force(connection, verify)
    return amendments.read(text, verify).charter if held is None else amendments.go_on(held, text, verify)


def keep(connection: Connection, text: str) -> None:
    """The charter of the file `text` is in force from here on."""
    kept.write(connection, _NAME, text.encode())
