"""Histories of several authors, as Hypothesis draws them: few names, so that they collide.

`HISTORIES` are about everything in several scopes, half of them with something there from the beginning. `TANGLES` are about the content
of a few collections of one shared scope, all of them there: closes, marks, mixed containers, cycles and names meet in them often.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from nsync.namespace import fields, keys
from nsync.namespace.keys import Attachment, Attribute, Constituent, Did, Identity, Replica, Rse, Scope
from nsync.namespace.ops import Assert, Retract, encode_op
from tests.support.federation import NAMES

SHARED = "atlas.shared"
SCOPES = st.sampled_from(["atlas", SHARED, SHARED, SHARED, SHARED, "cms", "belle2"])
FILE_NAMES, DATASET_NAMES, CONTAINER_NAMES = ["f1", "f2"], ["d1", "d2"], ["c1", "c2", "c3"]
TYPES = {
    **dict.fromkeys(FILE_NAMES, keys.FILE),
    **dict.fromkeys(DATASET_NAMES, keys.DATASET),
    **dict.fromkeys(CONTAINER_NAMES, keys.CONTAINER),
}

CONTENT = st.integers(1, 2).map(lambda n: Identity(keys.FILE, n, bytes([n] * 4), None))
RSES = st.builds(Rse, st.sampled_from(NAMES), st.just("DISK"))
DOIS = st.sampled_from(["10.5072/ATLAS.1", "10.5072/atlas.1", "10.5072/CMS.1", "10.9999/NOBODY"])
STATES = st.sampled_from([keys.PUBLIC, keys.SUSPENDED])

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    fields.MONOTONIC: st.booleans(),
    fields.HIDDEN: st.booleans(),
    fields.OBSOLETE: st.booleans(),
    fields.OPENDATA_META: st.sampled_from(['{"title":"a"}', "{}"]),
    fields.RECORD: st.integers(1, 2),
    "events": st.integers(1, 2),
    "project": st.sampled_from(["mc", "data"]),
    f"{fields.JSON_PREFIX}energy": st.sampled_from(["1", '"high"']),
    "a later version's": st.sampled_from([1, 2, (None,)]),
}
"""What else is said about DIDs."""

DID_KINDS = ["did", "did", "edge", "edge", "close", "opendata", "doi", "record", "field"]
OTHER_KINDS = ["rse", "replica", "replica", "state", "constituent", "scope", "attachable"]
TANGLE_KINDS = ["did", "edge", "edge", "edge", "edge", "nest", "nest", "nest", "close", "close", "opendata", "doi", "record", "attachable"]


@st.composite
def identity_of(draw: st.DrawFn, did: Did) -> Identity:
    """Mostly what the name says, sometimes another type: a clash."""
    kind = TYPES[did.name] if draw(st.integers(0, 9)) else draw(st.sampled_from("FDC"))
    return draw(CONTENT) if kind == keys.FILE else Identity(kind)


@st.composite
def said(draw: st.DrawFn, kind: str, scopes: st.SearchStrategy[str]) -> tuple[keys.Key, object]:
    """A key of one of few, and a value."""

    def did(*names: str) -> Did:
        return Did(draw(scopes), draw(st.sampled_from(names)))

    collections = (*DATASET_NAMES, *CONTAINER_NAMES)
    if kind == "did":
        key = did(*TYPES)
        return key, draw(identity_of(key))
    if kind == "edge":
        return Attachment(did(*collections), did(*TYPES)), True
    if kind == "nest":
        return Attachment(did(*CONTAINER_NAMES), did(*CONTAINER_NAMES)), True
    if kind == "constituent":
        return Constituent(did(*FILE_NAMES, "d1"), did(*FILE_NAMES)), True
    if kind == "close":
        return Attribute(did(*collections), keys.CLOSED), draw(st.sampled_from([True, True, False]))
    if kind == "opendata":
        return Attribute(did(*TYPES), keys.OPENDATA), draw(STATES)
    if kind == "doi":
        return Attribute(did(*TYPES), keys.DOI), draw(DOIS)
    if kind in ("record", "field"):
        field = fields.RECORD if kind == "record" else draw(st.sampled_from(sorted(FIELDS)))
        return Attribute(did(*TYPES), field), draw(FIELDS[field])
    if kind in ("replica", "state"):
        replica = Replica(did(*FILE_NAMES), draw(RSES))
        state = Attribute(replica, fields.STATE)
        return (
            (replica, draw(st.sampled_from(["p/1", "p/2"])))
            if kind == "replica"
            else (state, draw(st.sampled_from([fields.BAD, fields.AVAILABLE])))
        )
    if kind == "rse":
        return draw(RSES), True
    scope = Scope(draw(scopes))
    return (scope, True) if kind == "scope" else (Attribute(scope, fields.ATTACHABLE), draw(st.booleans()))


@st.composite
def ops(draw: st.DrawFn, kinds: list[str], scopes: st.SearchStrategy[str]) -> bytes:
    """An op of one to three statements about different keys."""
    found = dict(draw(said(kind, scopes)) for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3)))
    return encode_op(Retract(key) if draw(st.integers(0, 3)) == 0 else Assert(key, value) for key, value in found.items())


def _histories(kinds: list[str], scopes: st.SearchStrategy[str]) -> st.SearchStrategy[list[Any]]:
    publish = st.tuples(st.sampled_from(NAMES), st.lists(ops(kinds, scopes), min_size=1, max_size=4))
    fetch = st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES))
    return st.lists(st.one_of(publish, publish, fetch), min_size=1, max_size=24)


_GROUND = [Assert(Scope(SHARED), True), *(Assert(Did(SHARED, name), Identity(kind)) for name, kind in TYPES.items() if kind != keys.FILE)]
_FILES = [Assert(Did(SHARED, name), Identity(keys.FILE, 1, b"\1" * 4)) for name in FILE_NAMES]
_COLLECTIONS_AND_FILES = [encode_op([word]) for word in _GROUND + _FILES]
_BEGINNING: list[Any] = [
    ("atlas", _COLLECTIONS_AND_FILES),
    *((name, [encode_op([Assert(Rse(name, "DISK"), True)])]) for name in NAMES),
    *((name, "atlas") for name in NAMES[1:]),
]

_EVERYTHING = _histories(DID_KINDS + OTHER_KINDS, SCOPES)
HISTORIES = _EVERYTHING | _EVERYTHING.map(lambda steps: _BEGINNING + steps)
"""Steps: (who, ops) publishes a changeset; (who, from whom) fetches."""

TANGLES = _histories(TANGLE_KINDS, st.just(SHARED)).map(lambda steps: _BEGINNING + steps)
