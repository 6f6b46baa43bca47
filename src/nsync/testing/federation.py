"""A federation with fixed keys: the charter of any number of simulated instances.

Each is a member of its own and the home of the scopes below its name; in `<name>.shared` everybody is its guest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from nsync.auth.keys import SigningKey, verify
from nsync.authority.amendments import succeed
from nsync.authority.charter import Charter, Instance, Place
from nsync.authority.documents import draft, load, sign
from nsync.authority.effective import Authority
from nsync.errors import ConfigError

NAMES = ("atlas", "cms", "belle2", "dune", "ska", "ligo", "icecube")
SHARED = ".shared"
"""What the scopes end with in which guests write."""


class Federation(NamedTuple):
    """A version of the charter, what it lets whom do, and the keys that speak for its instances."""

    authority: Authority
    keys: dict[str, SigningKey]

    @property
    def charter(self) -> Charter:
        return self.authority.charter

    def instance(self, name: str) -> Instance:
        """The instance called `name`, which is there."""
        found = self.charter.by_name(name)
        assert found is not None, name
        return found


@lru_cache
def federation(peers: int) -> Federation:
    """The first `peers` of NAMES. Raises ConfigError when there are not so many."""
    if not 2 <= peers <= len(NAMES):
        raise ConfigError(f"a simulation has 2 to {len(NAMES)} peers, not {peers}")
    charter = load(_signed(draft("simulated", _members(NAMES[:peers])), peers), verify)
    return Federation(Authority(charter), {name: _key(index) for index, name in enumerate(NAMES[:peers])})


def amended(members: Federation, name: str, final: Place) -> Federation:
    """The next version of the charter, by which `name` goes on as another author: the present one's log has ended at `final` (R4.6)."""
    charter, names = members.charter, tuple(members.keys)
    listed = _members(names)
    entry = listed[names.index(name)]["instances"][0]
    past = {"key": entry["key"], "incarnation": entry["incarnation"], "final": [final.seq, final.hash.hex()]}
    entry.update(incarnation=bytes([names.index(name) + 151] * 16).hex(), past=[past])
    body = draft("simulated", listed)["charter"]
    body.update(version=charter.version + 1, federation=charter.federation.hex(), previous=charter.hash.hex())
    return members._replace(authority=Authority(succeed(charter, _signed({"charter": body, "signatures": {}}, len(names)), verify)))


def _members(names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": name.upper(),
            "roots": [_root(index).public.hex()],
            "threshold": 1,
            "instances": [
                {
                    "name": name,
                    "key": _key(index).public.hex(),
                    "incarnation": bytes([index + 201] * 16).hex(),
                    "url": f"http://{name}.example.org",
                    "scopes": [name],
                    "dois": [f"10.5072/{name.upper()}."],
                    "guests": {other: [name + SHARED] for other in names if other != name},
                }
            ],
        }
        for index, name in enumerate(names)
    ]


def _key(index: int) -> SigningKey:
    return SigningKey(bytes([index + 1]) * 32)


def _root(index: int) -> SigningKey:
    return SigningKey(bytes([index + 101]) * 32)


def _signed(document: dict[str, Any], peers: int) -> str:
    for index in range(peers):
        document = sign(document, _root(index))
    return json.dumps(document)
