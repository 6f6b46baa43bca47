"""Sizes of closed collections are those of their content (catalogue rule 7), also where Rucio leaves them behind.

Rucio computes length and bytes when a collection is closed, and keeps them when a file goes with its last replica or when a
dataset below a container changes. So after a change the closed collections above it are looked at, and named if they are off.
"""

from __future__ import annotations

from rucio.core.did import list_one_did_childs_stmt
from rucio.db.sqla.constants import DIDType
from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from nsync.namespace.keys import Did
from nsync.rucio_bridge.rows import CONTENTS, DIDS, Rows, did_key
from nsync.store.database import chunks


def stale(rows: Rows, changed: set[Did]) -> list[Did]:
    """The closed collections among `changed` and above whose sizes are not those of their content; datasets first."""
    found = []
    for chunk in chunks([did_key(did) for did in changed | rows.above(changed)]):
        query = select(DIDS.c.scope, DIDS.c.name, DIDS.c.did_type, DIDS.c.length, DIDS.c.bytes)
        for row in rows.session.execute(query.where(tuple_(DIDS.c.scope, DIDS.c.name).in_(chunk), DIDS.c.is_open.is_(False))).all():
            did = Did(row.scope.external, row.name)
            if (row.length or 0, row.bytes or 0) != _content(rows.session, did, row.did_type):
                found.append((row.did_type == DIDType.CONTAINER, did))
    return [did for _, did in sorted(found)]


def _content(session: Session, did: Did, did_type: DIDType) -> tuple[int, int]:
    """(length, bytes) of what is in a collection now, as Rucio counts them."""
    scope, name = did_key(did)
    counted = select(func.count(), func.coalesce(func.sum(CONTENTS.c.bytes), 0))
    if did_type == DIDType.DATASET:
        counted = counted.where(CONTENTS.c.scope == scope, CONTENTS.c.name == name)
    else:
        below = list_one_did_childs_stmt(scope, name, did_type=DIDType.DATASET).subquery()
        counted = counted.select_from(CONTENTS).join(below, (CONTENTS.c.scope == below.c.scope) & (CONTENTS.c.name == below.c.name))
    length, size = session.execute(counted).one()
    return length, int(size)
