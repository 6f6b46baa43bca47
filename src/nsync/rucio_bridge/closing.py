"""Collections are closed and reopened, and sizes of closed ones are those of their content (catalogue rule 7), set by set.

Rucio's own `set_status` computes and tells one collection at a time; and it leaves length, bytes and events behind when a file goes
with its last replica, or when a dataset below a container changes. Here, after the rows of a changeset are written, the closed
collections among those that changed and above them are counted anew in one statement. Rules' owners are notified of a close as by Rucio.
"""

from __future__ import annotations

from collections.abc import Collection

from rucio.core.rule import generate_rule_notifications
from rucio.db.sqla import models
from sqlalchemy import DateTime, bindparam, func, insert, literal, select, text
from sqlalchemy.orm import Session

from nsync.namespace.keys import Did
from nsync.rucio_bridge.lookup import names_of, utc_now
from nsync.rucio_bridge.rows import CONTENTS, DIDS
from nsync.rucio_bridge.stage import NAMES, REEVALUATED, RESIZED, SIZES, Stage, as_in, probing

LOCKS = models.DatasetLock.__table__
UPDATED = models.UpdatedDID.__table__


class Closing:
    """The writer of one transaction."""

    def __init__(self, session: Session, stage: Stage) -> None:
        self.session = session
        self.stage = stage

    def changed(self, collections: Collection[Did]) -> None:
        """The content of `collections` may have changed."""
        if collections:
            self.stage.put(NAMES, list(map(names_of, collections)))
            self.stage.gather(RESIZED, select(*NAMES.columns))

    def set_open(self, collections: Collection[Did], is_open: bool) -> None:
        """Close `collections`, or reopen them."""
        if not collections:
            return
        self.changed(collections)
        with probing(self.session.connection()):
            self.session.execute(_OPEN if is_open else _CLOSE, {"now": utc_now()})
            ruled = [] if is_open else self.session.execute(_RULED).scalars().all()
        if ruled:
            self.session.expire_all()  # core reads through the identity map
            rules = select(models.ReplicationRule).where(models.ReplicationRule.id.in_(ruled))
            for rule in self.session.execute(rules).scalars():
                generate_rule_notifications(rule=rule, session=self.session)

    def recount(self) -> None:
        """Count anew, and have rules evaluated, where content changed."""
        for table in (RESIZED, REEVALUATED, SIZES):
            self.stage.gathered(table)
        now = {"now": utc_now()}
        with probing(self.session.connection()):
            self.session.execute(_COUNT)
            self.session.execute(_RESIZE, now)
            self.session.execute(_RESIZE_LOCKS, now)
        self._have_evaluated()

    def _have_evaluated(self) -> None:
        is_postgresql = self.session.connection().dialect.name == "postgresql"
        now = literal(utc_now(), DateTime())
        values = {
            "id": func.gen_random_uuid() if is_postgresql else func.lower(func.hex(func.randomblob(16))),
            "scope": REEVALUATED.c.scope,
            "name": REEVALUATED.c.name,
            "rule_evaluation_action": as_in(UPDATED.c.rule_evaluation_action, REEVALUATED.c.action),
            "created_at": now,
            "updated_at": now,
        }
        self.session.execute(insert(UPDATED).from_select(list(values), select(*values.values())))


_NOW = bindparam("now", type_=DateTime)
_IN_STAGE = f"(scope, name) IN (SELECT scope, name FROM {NAMES.name})"

_CLOSE = text(
    f"UPDATE {DIDS.fullname} SET is_open = FALSE, closed_at = :now, updated_at = :now WHERE {_IN_STAGE} AND is_open = TRUE"
).bindparams(_NOW)
_OPEN = text(f"UPDATE {DIDS.fullname} SET is_open = TRUE, updated_at = :now WHERE {_IN_STAGE} AND is_open = FALSE").bindparams(_NOW)
_RULED = text(
    f"SELECT r.id FROM {NAMES.name} s JOIN {models.ReplicationRule.__table__.fullname} r ON r.scope = s.scope AND r.name = s.name"
)

_COUNT = text(
    "WITH RECURSIVE up (scope, name) AS ("
    f"SELECT scope, name FROM {RESIZED.name} UNION "
    f"SELECT c.scope, c.name FROM up JOIN {CONTENTS.fullname} c ON c.child_scope = up.scope AND c.child_name = up.name), "
    "closed AS (SELECT up.scope, up.name, d.did_type FROM up "
    f"JOIN {DIDS.fullname} d ON d.scope = up.scope AND d.name = up.name WHERE d.is_open = FALSE AND d.did_type <> 'F'), "
    "below (at_scope, at_name, scope, name, is_dataset) AS ("
    "SELECT scope, name, scope, name, did_type = 'D' FROM closed UNION "
    f"SELECT b.at_scope, b.at_name, c.child_scope, c.child_name, c.child_type = 'D' FROM below b "
    f"JOIN {CONTENTS.fullname} c ON c.scope = b.scope AND c.name = b.name WHERE NOT b.is_dataset) "
    f"INSERT INTO {SIZES.name} (scope, name, length, bytes, events) "
    "SELECT b.at_scope, b.at_name, count(c.child_name), coalesce(sum(c.bytes), 0), coalesce(sum(c.events), 0) FROM below b "
    f"LEFT JOIN {CONTENTS.fullname} c ON b.is_dataset AND c.scope = b.scope AND c.name = b.name GROUP BY b.at_scope, b.at_name"
)
_DIFFERENT = "(coalesce(t.length, -1) <> z.length OR coalesce(t.bytes, -1) <> z.bytes{events})"
_RESIZE = text(
    f"UPDATE {DIDS.fullname} AS t SET length = z.length, bytes = z.bytes, events = z.events, updated_at = :now FROM {SIZES.name} z "
    f"WHERE t.scope = z.scope AND t.name = z.name AND {_DIFFERENT.format(events=' OR coalesce(t.events, -1) <> z.events')}"
).bindparams(_NOW)
_RESIZE_LOCKS = text(
    f"UPDATE {LOCKS.fullname} AS t SET length = z.length, bytes = z.bytes, updated_at = :now FROM {SIZES.name} z "
    f"WHERE t.scope = z.scope AND t.name = z.name AND {_DIFFERENT.format(events='')}"
).bindparams(_NOW)
