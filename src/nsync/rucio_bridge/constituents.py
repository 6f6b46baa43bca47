"""Constituents: files that lie in an archive, as Rucio's `archive_contents` has them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rucio.db.sqla import models
from sqlalchemy import DateTime, bindparam, text
from sqlalchemy.orm import Session

from nsync.namespace.keys import Constituent
from nsync.rucio_bridge.lookup import internal, utc_now
from nsync.rucio_bridge.metadata import CONTENTS, DIDS

ARCHIVES = models.ConstituentAssociation.__table__
HISTORY = models.ConstituentAssociationHistory.__table__


def add(session: Session, constituents: Collection[Constituent]) -> None:
    """As Rucio does: with the child's size, checksums, GUID and events; it, the archive, and the archive's datasets are marked so."""
    rows = [_row(one) for one in constituents]
    if rows:
        session.execute(_ADD, rows)
        session.execute(_MARK_CHILD, rows)
        archives = list({(row["scope"], row["name"]): row for row in rows}.values())
        session.execute(_MARK_ARCHIVE, archives)
        session.execute(_MARK_DATASETS, archives)


def remove(session: Session, constituents: Collection[Constituent]) -> None:
    """They go to Rucio's history. The marks stay, as Rucio leaves them."""
    rows = [_row(one) for one in constituents]
    if rows:
        session.execute(_REMEMBER, rows)
        session.execute(_REMOVE, rows)


def _row(one: Constituent) -> dict[str, Any]:
    scope, name, child_scope, child_name = one[1:]
    return {"scope": internal(scope), "name": name, "child_scope": internal(child_scope), "child_name": child_name, "now": utc_now()}


_NOW = bindparam("now", type_=DateTime)
_COLUMNS = "child_scope, child_name, scope, name, bytes, adler32, md5, guid, length, created_at, updated_at"
_ONE = "scope = :scope AND name = :name AND child_scope = :child_scope AND child_name = :child_name"
_ADD = text(
    f"INSERT INTO {ARCHIVES.fullname} ({_COLUMNS}) SELECT scope, name, :scope, :name, bytes, adler32, md5, guid, events, "
    f":now, :now FROM {DIDS.fullname} WHERE scope = :child_scope AND name = :child_name"
).bindparams(_NOW)
_MARK_CHILD = text(
    f"UPDATE {DIDS.fullname} SET constituent = TRUE WHERE scope = :child_scope AND name = :child_name AND constituent IS NOT TRUE"
)
_MARK_ARCHIVE = text(f"UPDATE {DIDS.fullname} SET is_archive = TRUE WHERE scope = :scope AND name = :name AND is_archive IS NOT TRUE")
_MARK_DATASETS = text(
    f"UPDATE {DIDS.fullname} SET is_archive = TRUE WHERE is_archive IS NOT TRUE AND (scope, name) IN "
    f"(SELECT c.scope, c.name FROM {CONTENTS.fullname} c WHERE c.child_scope = :scope AND c.child_name = :name)"
)
_REMEMBER = text(
    f"INSERT INTO {HISTORY.fullname} ({_COLUMNS}) SELECT child_scope, child_name, scope, name, bytes, adler32, md5, guid, length, "
    f"created_at, :now FROM {ARCHIVES.fullname} WHERE {_ONE}"
).bindparams(_NOW)
_REMOVE = text(f"DELETE FROM {ARCHIVES.fullname} WHERE {_ONE}")
