"""Rucio's metadata plugin NSYNC: where a shared DID comes from, for stock clients (`rucio did metadata list --plugin NSYNC`).

    [metadata]
    plugins = rucio.core.did_meta_plugins.json_meta.JSONDidMeta,nsync.rucio_bridge.plugin.NsyncDidMeta

It runs in Rucio's server, with nothing but Rucio's session: the charter by which the database is read is kept there. It reads only. What
it tells is derived, so nothing can be set, deleted or searched by it; of a DID that is not shared it tells nothing. Rucio imports it
while it imports itself, so nothing of Rucio's core may be imported here but the plugins' interface.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn, Optional

from rucio.common.exception import InvalidMetadata
from rucio.core.did_meta_plugins.did_meta_plugin_interface import DidMetaPlugin
from sqlalchemy import Connection

from nsync.auth.keys import verify
from nsync.authority import amendments
from nsync.authority.effective import Authority
from nsync.catalogue.entries import DidEntry
from nsync.namespace.keys import Did, fact_of
from nsync.rucio_bridge import parked, scopes
from nsync.store import kept, migrations
from nsync.store.log import SqlLog

if TYPE_CHECKING:
    from rucio.common.types import InternalScope
    from sqlalchemy.orm import Session

NAME = "NSYNC"


class NsyncDidMeta(DidMetaPlugin):  # type: ignore[misc]  # Rucio's classes are untyped
    """What nsync knows of a DID. Its keys begin with `nsync_`, so that they hide none of another plugin's where all are asked."""

    def __init__(self) -> None:
        super().__init__()
        self._plugin_name = NAME

    def get_metadata(self, scope: InternalScope, name: str, *, session: Optional[Session] = None) -> dict[str, Any]:
        """Origin, home, version, conflicts, and why it is parked, of a DID that is shared; else nothing."""
        assert session is not None, "Rucio's core passes its session"
        return provenance(session.connection(), Did(str(scope.external), name))

    def set_metadata(
        self, scope: InternalScope, name: str, key: str, value: str, recursive: bool = False, *, session: Optional[Session] = None
    ) -> None:
        _refuse(f"{key} of {scope}:{name} cannot be set")

    def set_metadata_bulk(
        self, scope: InternalScope, name: str, metadata: dict[str, Any], recursive: bool = False, *, session: Optional[Session] = None
    ) -> None:
        _refuse(f"{', '.join(sorted(metadata))} of {scope}:{name} cannot be set")

    def delete_metadata(self, scope: InternalScope, name: str, key: str, *, session: Optional[Session] = None) -> None:
        _refuse(f"{key} of {scope}:{name} cannot be deleted")

    def list_dids(self, scope: InternalScope, filters: dict[str, Any], *_: Any, **__: Any) -> Iterator[Any]:
        _refuse(f"DIDs of {scope} cannot be searched by it")

    def manages_key(self, key: str, *, session: Optional[Session] = None) -> bool:
        """Of no key: it is asked by its name."""
        return False


def _refuse(what: str) -> NoReturn:
    raise InvalidMetadata(f"plugin {NAME} only tells what the shared namespace says: {what}. Metadata are set with Rucio's other plugins")


def provenance(connection: Connection, did: Did) -> dict[str, Any]:
    """What the plugin tells of `did`, whose scope has the name that it has in this Rucio."""
    if migrations.current(connection) != _revision():
        return {}
    text = kept.read(connection, "charter")
    if text is None:
        return {}
    with scopes.in_force(connection):
        did = Did(scopes.swapped(did.scope), did.name)
    state = SqlLog(connection, _authority(text)).state
    entry = state.shown.entries([did]).get(did)
    reason = parked.reasons(connection, [did]).get(did)
    if not isinstance(entry, DidEntry) and reason is None:
        return {}
    home = state.authority.charter.home(did.scope)
    conflicts = state.conflicts([did]).get(did, [])
    about = state.about([did])[did].slots
    newest = max((slot for key, slots in about.items() if fact_of(key) == did for slot in slots), key=lambda slot: slot.order, default=None)
    return {
        "nsync_origin": entry.origin if isinstance(entry, DidEntry) else None,
        "nsync_home": home.name if home is not None else None,
        "nsync_version": f"{state.authority.name(newest.dot.author)} {newest.dot.seq}" if newest is not None else None,
        "nsync_conflicts": len(conflicts),
        "nsync_conflict_rules": sorted({conflict.rule for conflict in conflicts}),
        "nsync_parked": reason,
    }


@lru_cache
def _revision() -> Optional[str]:
    return migrations.newest()


@lru_cache(maxsize=2)
def _authority(text: bytes) -> Authority:
    """Of the charter in force, whose signatures are checked once in a process."""
    return Authority(amendments.read(text.decode(), verify).charter)
