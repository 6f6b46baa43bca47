"""Whether this instance may sign: not once its own log exists elsewhere with more, or with something else (R4.6).

A restored backup or a cloned machine would sign other ops under numbers that were given away already. So the node compares its log
with what each peer has of it; where the peer has what is not here, it becomes read-only for good: it goes on fetching and applying,
its own log included, and its operator asks for the next incarnation, which is another author and is not touched by this.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Optional

from sqlalchemy import Connection

from nsync.log.stored import Head
from nsync.store import kept, serving
from nsync.store.lines import SqlLines


def read_only(connection: Connection, lines: SqlLines, author: bytes) -> Optional[str]:
    """Why `author` signs nothing more, or None."""
    found = kept.read(connection, _name(author))
    return found.decode() if found is not None else _not_now(lines, author)


def _not_now(lines: SqlLines, author: bytes) -> Optional[str]:
    life = lines.charter.life(author)
    if life is None or life.final is not None:
        return "the charter has ended this incarnation; put the present one's key into the configuration"
    if len(lines.of(author)) > 1:
        return "this log has two branches: another machine signs with the same key; ask for a new incarnation in the charter"
    instance = lines.charter.by_author(author)
    before = instance.past[-1] if instance is not None and instance.past else None
    if before is not None and before.final is not None and before.final.seq and lines.mark(before.author, before.final) is None:
        return f"this incarnation begins once the log of the one before it is applied here up to {before.final.seq}; peers have it"
    return None


def heard(connection: Connection, lines: SqlLines, author: bytes, theirs: Collection[Head]) -> Optional[str]:
    """Compare the own log with a peer's heads of it; what is not here makes `author` read-only. Returns why, or None."""
    strange = serving.unknown(connection, lines, [head for head in theirs if head.author == author])
    known = read_only(connection, lines, author)
    if not strange or kept.read(connection, _name(author)) is not None:
        return known
    here = max((branch.last for branch in lines.of(author)), default=0)
    place = f"{strange[0].seq} ({strange[0].hash.hex()})"
    reason = (
        f"a peer has this instance's own log up to {place}, and this database has it up to {here}, without that: a backup was restored, "
        "or a copy of this machine runs; nothing more is signed here. Ask for a new incarnation in the charter"
    )
    kept.write(connection, _name(author), reason.encode())
    return reason


def _name(author: bytes) -> str:
    return f"read-only {author.hex()[:22]}"
