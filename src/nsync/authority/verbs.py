"""What a statement does, in the words of a grant (R5.2): any one of its verbs lets a guest make it.

To retract takes the verb of the Assert, or `remove`. What only a home may say has no verb.
"""

from __future__ import annotations

from typing import Any, Optional

from nsync.namespace import fields
from nsync.namespace.keys import Attachment, Attribute, Constituent, Did, Key, Replica, fact_of

REMOVE = "remove"

_OF_FACT: dict[type, str] = {Did: "create", Attachment: "attach", Constituent: "attach", Replica: "replica"}

_OF_FIELD = {
    fields.CLOSED: "close",
    fields.MONOTONIC: "close",
    fields.DOI: "publish",
    fields.RECORD: "publish",
    fields.OPENDATA_META: "publish",
    fields.STATE: "replica",
}


def verbs_for(key: Key, retract: bool, value: Any = None) -> tuple[str, ...]:
    """The verbs any of which allows the statement; empty for what only the home says."""
    verb = _verb(key, value)
    if verb is None:
        return ()
    return (verb, REMOVE) if retract else (verb,)


def _verb(key: Key, value: Any) -> Optional[str]:
    if not isinstance(key, Attribute):
        return _OF_FACT.get(type(key))
    if not isinstance(key.fact, (Did, Replica)):
        return None
    if key.field == fields.OPENDATA:
        return "suspend" if value == fields.SUSPENDED else "publish"
    return _OF_FIELD.get(key.field, "meta")


def destroys_or_publishes(key: Key, retract: bool, value: Any) -> bool:
    """Whether a guest's statement waits until the home acknowledges it (R5.6): retract, close, publication."""
    if retract:
        return True
    field = key.field if isinstance(key, Attribute) else None
    return (field, value) in ((fields.CLOSED, True), (fields.OPENDATA, fields.PUBLIC))


def place_of(key: Key) -> Optional[str]:
    """The name that a grant's prefix is held against; None for a scope itself."""
    fact = fact_of(key)
    if isinstance(fact, Attachment):
        return fact.parent.name
    if isinstance(fact, Constituent):
        return fact.archive.name
    if isinstance(fact, Replica):
        return fact.did.name
    return fact.name if isinstance(fact, Did) else None
