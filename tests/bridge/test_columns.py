"""Every metadata column of the installed Rucio is shared, or is left out for a stated reason."""

from __future__ import annotations

from rucio.db.sqla import models

from nsync.namespace import fields

IDENTITY = {"scope", "name", "did_type", "bytes", "adler32", "md5"}
FIELDS = {"is_open", fields.MONOTONIC, fields.HIDDEN, fields.OBSOLETE}
DERIVED = {"length", "is_archive", "constituent", "availability", "complete"}
LOCAL = {
    "account",
    "suppressed",
    "is_new",
    "purge_replicas",
    "expired_at",
    "eol_at",
    "accessed_at",
    "access_cnt",
    "closed_at",
    "deleted_at",
}
BOOKKEEPING = {"created_at", "updated_at"}


def test_every_column_of_dids_has_its_place() -> None:
    places = [IDENTITY, FIELDS, DERIVED, LOCAL, BOOKKEEPING, set(fields.METADATA)]
    assert set(models.DataIdentifier.__table__.columns.keys()) == set().union(*places)
    assert sum(map(len, places)) == len(set().union(*places))
