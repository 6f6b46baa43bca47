"""DIDs: identity, state, names and metadata of each, in one entry (R3.5, R3.6, DESIGN 6.5, 6.6)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Optional

from nsync.catalogue import identity, opendata
from nsync.catalogue.entries import Conflict, DidEntry
from nsync.catalogue.opendata import NAMES, Asking, Name
from nsync.catalogue.rules import Reader
from nsync.catalogue.state import About, Draft
from nsync.crdt import Slot
from nsync.namespace import codec, fields
from nsync.namespace.keys import Attribute, Did, Key

META_FIELDS_MAX = 1000
"""Metadata that an entry shows: an entry is read and written whole."""
META_BYTES_MAX = 1 << 20
"""Of these, encoded: a value alone can have 64 KiB."""
META_RULE = f"a DID shows at most {META_FIELDS_MAX} metadata fields, of {META_BYTES_MAX} bytes in all"

_PLAIN = (fields.OPENDATA_META, fields.MONOTONIC, fields.HIDDEN, fields.OBSOLETE)
_OF_CONTENT = ("events",)
"""Metadata columns that in a collection follow from its content, and are never taken from a statement (DESIGN 6.7)."""


class _Found(NamedTuple):
    """The entry but for names and content, its conflicts, and the statements by which the DID asks for names, by field."""

    entry: Optional[DidEntry]
    conflicts: list[Conflict]
    asks: Mapping[str, Slot]


_NOTHING = _Found(None, [], {})


def derive_dids(draft: Draft, dids: set[Did]) -> None:
    """The entries of `dids`, and of those whose names these give up or take."""
    draft.load(dids)
    names = {name for did in dids for name in _shown_names(draft.was(did))} | _read(draft, dids)
    rivals = _asking(draft, names, dids)
    draft.load(rivals)
    others = _asking(draft, _read(draft, rivals) - names, dids | rivals)  # they decide with the rivals about other names
    _read(draft, others)
    asking: dict[Name, list[Asking]] = {}
    found = {}
    for did in [*dids, *rivals, *others]:
        found[did] = _did(draft.reader, did, draft.about[did])
        for field, slot in found[did].asks.items():
            asking.setdefault(opendata.name(field, slot.value), []).append(Asking(did, slot))
    bearers = {name: opendata.bearer(draft.reader, name[0], all_of_it) for name, all_of_it in asking.items()}
    for did in [*dids, *rivals]:
        _put(draft, did, found[did], bearers)


def _asking(draft: Draft, names: Collection[Name], known: Collection[Did]) -> set[Did]:
    return set(draft.state.asking(names)).difference(known) if names else set()


def _read(draft: Draft, dids: Collection[Did]) -> set[Name]:
    """Read all statements about `dids`; the names that they ask for."""
    draft.read(dids)
    said = ((key, slots) for did in dids for key, slots in draft.about[did].slots.items() if key[0] == fields.ATTRIBUTE)
    names = (opendata.name_of(key, slot.value) for key, slots in said for slot in slots if not slot.retract)
    return {name for name in names if name is not None}


def _shown_names(entry: Optional[DidEntry]) -> list[Name]:
    shown = ((fields.DOI, entry.doi), (fields.RECORD, entry.record)) if entry is not None else ()
    return [opendata.name(field, value) for field, value in shown if value is not None]


def _put(draft: Draft, did: Did, found: _Found, bearers: Mapping[Name, Asking]) -> None:
    entry, conflicts = found.entry, found.conflicts
    if entry is not None:
        for field, slot in found.asks.items():
            winner = bearers[opendata.name(field, slot.value)]
            if winner.did == did:
                entry = entry._replace(**{field: slot.value})
            else:
                conflicts = sorted([*conflicts, opendata.name_conflict(draft.reader, field, winner, Asking(did, slot))])
        was = draft.was(did)
        if was is not None and was.content and was.identity == entry.identity:
            entry = entry._replace(content=was.content)
    draft.put(did, entry, conflicts)


def _did(reader: Reader, did: Did, about: About) -> _Found:
    stands = reader.standing(did, about.slots.get(did, ()))
    if not stands:
        return _NOTHING
    first = identity.first_claim(reader, did, about.claims)
    conflicts = identity.conflicts(reader, did, first, stands) if len(stands) > 1 or stands[0] != first else []
    closed = None if first.value.type == fields.FILE else False
    entry = DidEntry(first.value, reader.name(first.dot.author), closed, None, None)
    attributes = {key: slots for key, slots in about.slots.items() if key[0] == fields.ATTRIBUTE and key[2] == fields.DID}
    return _with_attributes(reader, did, entry, attributes, conflicts) if attributes else _Found(entry, conflicts, {})


def _with_attributes(reader: Reader, did: Did, entry: DidEntry, about: Mapping[Key, Sequence[Slot]], conflicts: list[Conflict]) -> _Found:
    state, found = opendata.state(reader, did, about.get(Attribute(did, fields.OPENDATA), ()))
    if entry.closed is not None:
        closed, taken = opendata.closed(reader, did, about.get(Attribute(did, fields.CLOSED), ()), state)
        entry, found = entry._replace(closed=closed), found + taken
    values: dict[str, Any] = {}
    meta: dict[str, Any] = {}
    asks: dict[str, Slot] = {}
    for key, slots in about.items():
        if not isinstance(key, Attribute) or not _is_read(key.field, entry):
            continue
        chosen, taken = reader.attribute(key, slots)
        found += taken
        if chosen is not None and key.field in NAMES:
            asks[key.field] = chosen
        elif chosen is not None:
            (values if key.field in _PLAIN else meta)[key.field] = chosen.value
    shown, cut = _within_limit(did, meta)
    return _Found(entry._replace(opendata=state, meta=shown, **values), sorted([*conflicts, *found, *cut]), asks)


def _within_limit(did: Did, meta: Mapping[str, Any]) -> tuple[tuple[tuple[str, Any], ...], list[Conflict]]:
    pairs = sorted(meta.items())
    sizes = accumulate(len(codec.pack(pair)) for pair in pairs[:META_FIELDS_MAX])
    count = sum(size <= META_BYTES_MAX for size in sizes)
    if len(pairs) == count:
        return tuple(pairs), []
    winner, loser = f"the first {count} by name", f"{len(pairs) - count} more, from {pairs[count][0]} on"
    return tuple(pairs[:count]), [Conflict(META_RULE, winner, loser, f"retract some of the metadata of {did}")]


def _is_read(field: str, entry: DidEntry) -> bool:
    """Whether this version makes a reading of `field`, by the rule that the newest value shows."""
    if field in _OF_CONTENT and entry.closed is not None:
        return False
    return field in NAMES or field in _PLAIN or field in fields.METADATA or field.startswith(fields.JSON_PREFIX)
