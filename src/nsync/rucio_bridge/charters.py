"""The charter in force, kept in the database: an instance goes over to a newer one, never back or aside (R5.1).

What the database holds was read by the rules of the charter that it keeps. So a node that is started with another charter file
first compares the two, and what the new one changes is brought up to date in one transaction (`Bridge.adopt`). That writes rows, so it
waits beside a Rucio whose schema is not known (`put_off`): until then the charter in force stays so.
"""

from __future__ import annotations

from typing import Optional

from sqlalchemy import Connection

from nsync.authority import amendments
from nsync.authority.charter import Charter, Verify
from nsync.rucio_bridge.guard import unknown_schema
from nsync.store import kept

_NAME = "charter"


def in_force(connection: Connection, verify: Verify) -> Optional[Charter]:
    """The charter by which this database was read last; None before the first."""
    text = text_in_force(connection)
    return amendments.read(text, verify).charter if text is not None else None


def text_in_force(connection: Connection) -> Optional[str]:
    """The file of the charter in force."""
    text = kept.read(connection, _NAME)
    return text.decode() if text is not None else None


def following(connection: Connection, text: str, verify: Verify) -> Charter:
    """The charter of the file `text`. Raises ConfigError unless it is the one in force or goes on from it."""
    held = in_force(connection, verify)
    return amendments.read(text, verify).charter if held is None else amendments.go_on(held, text, verify)


def put_off(connection: Connection, text: str, verify: Verify) -> Optional[str]:
    """Why the charter of the file `text` cannot be adopted yet; None where it can. Raises ConfigError as `following`."""
    held, charter = in_force(connection, verify), following(connection, text, verify)
    if held is None or held.hash == charter.hash:
        return None
    reason = unknown_schema(connection)
    return None if reason is None else f"version {charter.version} of the charter cannot be adopted yet: {reason}"


def hash_in_force(connection: Connection, verify: Verify, known: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """The file of the charter in force and the charter's hash, as they are `known`, or found anew where the file is another."""
    text = kept.read(connection, _NAME)
    return known if text is None or text == known[0] else (text, amendments.read(text.decode(), verify).charter.hash)


def keep(connection: Connection, text: str) -> None:
    """The charter of the file `text` is in force from here on."""
    kept.write(connection, _NAME, text.encode())
