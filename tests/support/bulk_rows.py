"""Many rows of Rucio at once, by SQL: what its core takes a minute for."""

from __future__ import annotations

from sqlalchemy import text

from tests.support.instances import Instance

_NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < :count - 1)"
_NOW = {"sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now')", "postgresql": "timezone('utc', now())"}


def load_files(instance: Instance, scope: str, count: int) -> None:
    """`count` files with a replica each, as a bulk load makes them: all in one transaction, with one stamp."""
    name, now = "'bulk.' || CAST(n.i AS VARCHAR(10))", _NOW[instance.engine.dialect.name]
    values = {"count": count, "scope": scope}
    with instance.engine.begin() as connection:
        connection.execute(
            text(
                f"{_NUMBERS} INSERT INTO dids (scope, name, account, did_type, bytes, adler32, availability, created_at, updated_at) "
                f"SELECT :scope, {name}, 'root', 'F', 10, '00000001', 'A', {now}, {now} FROM n"
            ),
            values,
        )
        connection.execute(
            text(
                f"{_NUMBERS} INSERT INTO replicas (scope, name, rse_id, bytes, adler32, state, lock_cnt, created_at, updated_at) "
                f"SELECT :scope, {name}, (SELECT id FROM rses WHERE rse = 'DISK'), 10, '00000001', 'A', 0, {now}, {now} FROM n"
            ),
            values,
        )
