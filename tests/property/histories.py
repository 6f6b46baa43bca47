"""Histories of several authors, as Hypothesis draws them: few names, so that they collide."""

from __future__ import annotations

from hypothesis import strategies as st

from nsync.namespace import keys
from nsync.namespace.keys import Attachment, Attribute, Did, Identity, Replica, Rse, Scope
from nsync.namespace.ops import Assert, Retract, encode_op
from tests.support.federation import NAMES

SCOPES = st.sampled_from(["atlas", "atlas.shared", "atlas.shared", "cms", "belle2"])
FILE_NAMES, DATASET_NAMES, CONTAINER_NAMES = ["f1", "f2"], ["d1", "d2"], ["c1", "c2", "c3"]
TYPES = {
    **dict.fromkeys(FILE_NAMES, keys.FILE),
    **dict.fromkeys(DATASET_NAMES, keys.DATASET),
    **dict.fromkeys(CONTAINER_NAMES, keys.CONTAINER),
}

DIDS = st.builds(Did, SCOPES, st.sampled_from(FILE_NAMES + DATASET_NAMES + CONTAINER_NAMES))
COLLECTIONS = st.builds(Did, SCOPES, st.sampled_from(DATASET_NAMES + CONTAINER_NAMES))
CONTENT = st.integers(1, 2).map(lambda n: Identity(keys.FILE, n, bytes([n] * 4), None))
RSES = st.builds(Rse, st.sampled_from(NAMES), st.just("DISK"))
DOIS = st.sampled_from(["10.5072/ATLAS.1", "10.5072/CMS.1", "10.9999/NOBODY"])


@st.composite
def identity_of(draw: st.DrawFn, did: Did) -> Identity:
    """Mostly what the name says, sometimes another type: a clash."""
    kind = TYPES[did.name] if draw(st.integers(0, 9)) else draw(st.sampled_from("FDC"))
    return draw(CONTENT) if kind == keys.FILE else Identity(kind)


@st.composite
def statements(draw: st.DrawFn) -> object:
    """One statement about one of few keys."""
    kind = draw(st.sampled_from(["did", "did", "edge", "edge", "close", "opendata", "doi", "rse", "replica", "scope"]))
    if kind == "did":
        key: object = draw(DIDS)
        value: object = draw(identity_of(key))  # type: ignore[arg-type]
    elif kind == "edge":
        key, value = Attachment(draw(COLLECTIONS), draw(DIDS)), True
    elif kind == "close":
        key, value = Attribute(draw(COLLECTIONS), keys.CLOSED), draw(st.sampled_from([True, True, False]))
    elif kind == "opendata":
        key, value = Attribute(draw(DIDS), keys.OPENDATA), draw(st.sampled_from([keys.PUBLIC, keys.SUSPENDED]))
    elif kind == "doi":
        key, value = Attribute(draw(DIDS), keys.DOI), draw(DOIS)
    elif kind == "rse":
        key, value = draw(RSES), True
    elif kind == "replica":
        key, value = Replica(Did(draw(SCOPES), draw(st.sampled_from(FILE_NAMES))), draw(RSES)), draw(st.sampled_from(["p/1", "p/2"]))
    else:
        key, value = Scope(draw(SCOPES)), True
    return Retract(key) if draw(st.integers(0, 3)) == 0 else Assert(key, value)  # type: ignore[arg-type]


@st.composite
def ops(draw: st.DrawFn) -> bytes:
    """An op of one to three statements about different keys."""
    found = {s.key: s for s in draw(st.lists(statements(), min_size=1, max_size=3))}  # type: ignore[attr-defined]
    return encode_op(found.values())


PUBLISH = st.tuples(st.sampled_from(NAMES), st.lists(ops(), min_size=1, max_size=4))
FETCH = st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES))
HISTORIES = st.lists(st.one_of(PUBLISH, PUBLISH, FETCH), min_size=1, max_size=24)
"""Steps: (who, ops) publishes a changeset; (who, from whom) fetches."""
