"""A federation with fixed keys: the charter of any number of simulated instances.

Each is a member of its own and the home of the scopes below its name; in `<name>.shared` everybody is its guest.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import NamedTuple

from nsync.auth.keys import SigningKey, verify
from nsync.authority.charter import Charter, Instance, draft, load, sign
from nsync.authority.effective import Authority
from nsync.errors import ConfigError

NAMES = ("atlas", "cms", "belle2", "dune", "ska", "ligo", "icecube")
SHARED = ".shared"
"""What the scopes end with in which guests write."""


class Federation(NamedTuple):
    """A charter, what it lets whom do, and the keys that speak for its instances."""

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
    names = NAMES[:peers]
    keys = {name: SigningKey(bytes([index + 1]) * 32) for index, name in enumerate(names)}
    roots = {name: SigningKey(bytes([index + 101]) * 32) for index, name in enumerate(names)}
    members = [
        {
            "name": name.upper(),
            "roots": [roots[name].public.hex()],
            "threshold": 1,
            "instances": [
                {
                    "name": name,
                    "key": keys[name].public.hex(),
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
    document = draft("simulated", members)
    for root in roots.values():
        document = sign(document, root)
    return Federation(Authority(load(json.dumps(document), verify)), keys)
