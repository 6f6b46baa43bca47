"""A federation with fixed keys: atlas, cms and belle2, each the home of scopes below its name, guests in `atlas.shared`."""

from __future__ import annotations

import json
from typing import Optional

from nsync.auth.keys import SigningKey, verify
from nsync.authority.charter import Charter
from nsync.authority.documents import draft, load, sign
from nsync.authority.effective import Authority
from nsync.catalogue import writer

NAMES = ("atlas", "cms", "belle2")
KEYS = {name: SigningKey(bytes([index + 1]) * 32) for index, name in enumerate(NAMES)}
URLS = {name: f"https://{name}.example.org" for name in NAMES}
ROOTS = {name: SigningKey(bytes([index + 101]) * 32) for index, name in enumerate(NAMES)}


def charter_document(urls: Optional[dict[str, str]] = None, guests: bool = True, pins: Optional[dict[str, list[str]]] = None) -> str:
    """The signed charter, as it stands in its file."""
    members = [
        {
            "name": name.upper(),
            "roots": [ROOTS[name].public.hex()],
            "threshold": 1,
            "instances": [
                {
                    "name": name,
                    "key": KEYS[name].public.hex(),
                    "incarnation": bytes([index + 201] * 16).hex(),
                    "url": (urls or {}).get(name, f"http://{name}.example.org"),
                    "scopes": [name],
                    "dois": [f"10.5072/{name.upper()}."],
                    "guests": {other: ["atlas.shared"] for other in NAMES[1:]} if name == "atlas" and guests else {},
                    **({"tls": pins[name]} if pins and name in pins else {}),
                }
            ],
        }
        for index, name in enumerate(NAMES)
    ]
    document = draft("test", members)
    for name in NAMES:
        document = sign(document, ROOTS[name])
    return json.dumps(document)


CHARTER: Charter = load(charter_document(), verify)
AUTHORITY = Authority(CHARTER)
AUTHOR = {name: CHARTER.by_name(name).author for name in NAMES}


class Writer(writer.Writer):
    """An instance of this federation without a database."""

    def __init__(self, name: str, now_ms: int = 1_700_000_000_000) -> None:
        super().__init__(CHARTER, name, KEYS[name].sign, now_ms)

    def fetch(self, other: writer.Writer) -> None:
        """Take everything that `other` has, in the order in which it got it."""
        self.hear(other.log)
