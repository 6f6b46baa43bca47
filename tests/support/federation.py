"""A federation with fixed keys: atlas, cms and belle2, each the home of scopes below its name, guests in `atlas.shared`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Optional

from nsync.auth.keys import SigningKey, verify
from nsync.authority.charter import Charter, draft, load, sign
from nsync.authority.effective import Authority
from nsync.catalogue.reference import Reference
from nsync.clock import next_stamp
from nsync.log.admission import choose_deps
from nsync.log.segment import EMPTY, Dep, Segment, Tip, build_changeset

NAMES = ("atlas", "cms", "belle2")
KEYS = {name: SigningKey(bytes([index + 1]) * 32) for index, name in enumerate(NAMES)}
ROOTS = {name: SigningKey(bytes([index + 101]) * 32) for index, name in enumerate(NAMES)}


def charter_document(urls: Optional[dict[str, str]] = None, guests: bool = True) -> str:
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


class Writer:
    """An instance without a database: it applies segments to a Reference and signs changesets of its own."""

    def __init__(self, name: str, now_ms: int = 1_700_000_000_000) -> None:
        self.name = name
        self.author = AUTHOR[name]
        self.now_ms = now_ms
        self.state = Reference(AUTHORITY)
        self.tip: Tip = EMPTY
        self.log: list[Segment] = []
        self.applied: dict[bytes, Segment] = {}

    def publish(self, ops: Sequence[bytes]) -> list[Segment]:
        """Sign `ops` as one changeset that has seen everything applied here, and apply it."""
        heads = {author: Dep(s.header.author, s.header.last, s.hash) for author, s in self.applied.items()}
        deps = choose_deps(self.author, heads, self.state.pasts.at, self.tip.seq)
        stamp = next_stamp(self.now_ms, [self.tip.stamp, *(s.header.stamp for s in self.applied.values())])
        segments = list(
            build_changeset(
                ops,
                federation=CHARTER.federation,
                charter_version=1,
                author=self.author,
                tip=self.tip,
                stamp=stamp,
                deps=deps,
                sign=KEYS[self.name].sign,
            )
        )
        last = segments[-1]
        self.tip = Tip(last.header.last, last.hash, last.header.stamp, 0)
        for segment in segments:
            self.apply(segment)
        return segments

    def apply(self, segment: Segment) -> bool:
        """Take in a segment if it comes next and its deps are here; tells whether it did."""
        header = segment.header
        if header.first != self.state.heads.get(header.author, 0) + 1:
            return False
        if any(self.state.heads.get(dep.author, 0) < dep.seq for dep in header.deps):
            return False
        self.state.apply(segment)
        self.log.append(segment)
        if header.commit:
            self.applied[header.author] = segment
        return True

    def fetch(self, other: Writer) -> None:
        """Take everything that `other` has, in the order in which it got it."""
        for segment in list(other.log):
            self.apply(segment)
