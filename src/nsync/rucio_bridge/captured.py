"""What is captured of Rucio's tables, by triggers (triggers.py), by audits (audit.py) and by polls (poll.py): one list for all.

Names only: the drain reads the rows again, so the order of changes does not matter, and a change that is undone before the drain is none.
Filtered by what is shared: scopes marked so, and DIDs that the catalogue shows already. Open-data entries are all
captured, since PUBLIC shares what was private; the drain decides. Updates count only where a shared column differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Optional

from sqlalchemy import Connection, text

from nsync.namespace import fields
from nsync.namespace.keys import Attachment, Constituent, Did, Fact, Replica, Scope

DID, ATTACHMENT, REPLICA, RSE, SCOPE, CONSTITUENT = "did", "attachment", "replica", "rse", "scope", "constituent"
CLOSURE = "closure"
"""Kinds of outbox rows: (scope, name) · (scope, name, child scope, child name) · (scope, name, RSE id) · (RSE id) · (scope) ·
(archive's scope, name, child scope, child name) · (scope, name) of a DID with all that is in it. What hangs on a DID alone (its
metadata, its open data) is told as the DID."""


class Captured(NamedTuple):
    """What is captured of one of Rucio's tables."""

    table: str
    kind: str
    names: Sequence[str]
    """The columns that name the row."""
    columns: Sequence[str]
    """Those whose update counts."""
    shared: str
    """Which rows, of `{row}`; nsync's tables are in `{schema}`, which is empty or ends with a dot."""

    @property
    def events(self) -> tuple[str, ...]:
        return ("INSERT", "DELETE", "UPDATE") if self.columns else ("INSERT", "DELETE")

    def named(self, where: str) -> str:
        """The INSERT of the names of those rows `r` for which `where` holds, for the bridge to run itself."""
        names = ", ".join(f"replace(CAST(r.{n} AS VARCHAR(36)), '-', '')" if n in _UUIDS else f"r.{n}" for n in self.names)
        into = f"INSERT INTO nsync_outbox (kind, {', '.join('abcd'[: len(self.names)])})"
        return f"{into} SELECT '{self.kind}', {names} FROM {self.table} r WHERE {where}"


OutboxRow = tuple[Optional[str], ...]
"""kind, a, b, c, d."""


def outbox_row(fact: Fact, instance: str, rses: Mapping[str, str]) -> Optional[OutboxRow]:
    """How the outbox names `fact`; None where it is no row of this instance's own. `rses`: ids by names, without dashes."""
    if isinstance(fact, Scope):
        return (SCOPE, fact.scope, None, None, None)
    if isinstance(fact, Did):
        return (DID, *fact[1:], None, None)
    if isinstance(fact, (Attachment, Constituent)):
        return (ATTACHMENT if isinstance(fact, Attachment) else CONSTITUENT, *fact[1:])
    place = fact.rse if isinstance(fact, Replica) else fact
    if place.instance != instance or place.rse not in rses:
        return None
    if isinstance(fact, Replica):
        return (REPLICA, *fact.did[1:], rses[place.rse], None)
    return (RSE, rses[place.rse], None, None, None)


def rse_ids(connection: Connection) -> Mapping[str, str]:
    """The ids of all RSEs by name, as the outbox has them."""
    return {name: str(rse_id).replace("-", "") for name, rse_id in connection.execute(text("SELECT rse, id FROM rses"))}


_UUIDS = ("id", "rse_id")
_DID = ("scope", "name")
_EDGE = ("scope", "name", "child_scope", "child_name")
_IDENTITY = ("did_type", "is_open", "bytes", "adler32", "md5")
_FLAGS = (fields.MONOTONIC, fields.HIDDEN, fields.OBSOLETE)
_PROTOCOL = ("scheme", "hostname", "port", "prefix", "impl", "read_lan", "read_wan", "third_party_copy_read")

_IN_SHARED_SCOPE = "EXISTS (SELECT 1 FROM {schema}nsync_shared_scope s WHERE s.scope = {row}.scope)"
_SHOWN = "EXISTS (SELECT 1 FROM {schema}nsync_entry e WHERE e.kind = 2 AND e.scope = {row}.scope AND e.name = {row}.name)"
_SHARED = f"({_IN_SHARED_SCOPE} OR {_SHOWN})"
_ALL = "1 = 1"

CAPTURED = (
    Captured("scopes", SCOPE, ("scope",), (), _IN_SHARED_SCOPE),
    Captured("dids", DID, _DID, (*_IDENTITY, *_FLAGS, *fields.METADATA), _SHARED),
    Captured("did_meta", DID, _DID, ("meta",), _SHARED),
    Captured("contents", ATTACHMENT, _EDGE, (), _SHARED),
    Captured("archive_contents", CONSTITUENT, _EDGE, (), _SHARED),
    Captured("replicas", REPLICA, (*_DID, "rse_id"), ("state", "path", "bytes"), _SHARED),
    Captured("dids_opendata", DID, _DID, ("state",), _ALL),
    Captured("dids_opendata_doi", DID, _DID, ("doi",), _ALL),
    Captured("dids_opendata_record", DID, _DID, ("record_id",), _ALL),
    Captured("dids_opendata_meta", DID, _DID, ("meta",), _ALL),
    Captured("rses", RSE, ("id",), ("rse", "deterministic", "deleted"), _ALL),
    Captured("rse_protocols", RSE, ("rse_id",), _PROTOCOL, _ALL),
    Captured("rse_attr_map", RSE, ("rse_id",), ("value",), _ALL),
)
