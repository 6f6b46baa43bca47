"""How each peer fares, kept in `nsync_peer`: the node puts it down now and then, the commands read it (log.stored.PeerRecord).

Heads are kept as the peer told them. They are believed by nobody: what follows from them is a question, or a line for an operator.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Optional

from sqlalchemy import Connection, Engine, delete, insert, select, update

from nsync.log.stored import Head, PeerRecord
from nsync.namespace import codec
from nsync.store import schema
from nsync.store.database import writing

_PEER = schema.peer.c


class PeerTable:
    """The table of one database; every call is a transaction (transport.keeper.PeerTable)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def load(self) -> list[PeerRecord]:
        """What was put down last."""
        with self._engine.connect() as connection:
            return load(connection)

    def save(self, records: Iterable[PeerRecord]) -> None:
        """Put `records` down in the place of all that was there."""
        with writing(self._engine) as connection:
            save(connection, records)

    def resets(self) -> list[str]:
        """The peers that are to be tried now."""
        with self._engine.connect() as connection:
            return resets(connection)

    def done(self, names: Collection[str]) -> None:
        """These are tried."""
        with writing(self._engine) as connection:
            done(connection, names)


def load(connection: Connection) -> list[PeerRecord]:
    """What was put down last of each peer, by name."""
    query = select(*(_PEER[field] for field in PeerRecord._fields)).order_by(_PEER.name)
    return [PeerRecord(*row)._replace(heads=_heads(row.heads)) for row in connection.execute(query)]


def save(connection: Connection, records: Iterable[PeerRecord]) -> None:
    """Put `records` down in the place of all that was there; what an operator asked for stays asked."""
    asked = {row.name: row.reset_ms for row in connection.execute(select(_PEER.name, _PEER.reset_ms))}
    connection.execute(delete(schema.peer))
    rows = [{**record._asdict(), "heads": _packed(record), "reset_ms": asked.get(record.name)} for record in records]
    if rows:
        connection.execute(insert(schema.peer), rows)


def ask_reset(connection: Connection, name: str, now_ms: int) -> None:
    """Ask the node to try `name` now, whatever its back-off."""
    known = connection.execute(update(schema.peer).where(_PEER.name == name).values(reset_ms=now_ms)).rowcount
    if not known:
        empty = {**PeerRecord(name)._asdict(), "reset_ms": now_ms}
        connection.execute(insert(schema.peer).values(empty))


def resets(connection: Connection) -> list[str]:
    """The peers that are to be tried now."""
    return list(connection.execute(select(_PEER.name).where(_PEER.reset_ms.is_not(None)).order_by(_PEER.name)).scalars())


def done(connection: Connection, names: Collection[str]) -> None:
    """These are tried."""
    connection.execute(update(schema.peer).where(_PEER.name.in_(names)).values(reset_ms=None))


def _packed(record: PeerRecord) -> Optional[bytes]:
    return codec.pack(tuple(tuple(head) for head in record.heads)) if record.heads is not None else None


def _heads(raw: object) -> Optional[tuple[Head, ...]]:
    return None if raw is None else tuple(Head(*head) for head in codec.load(raw))  # type: ignore[arg-type]
