"""Two authors write about the same names without having seen each other; then each hears the other, and both show the same.

Only the pure core: no database, no network, no Rucio. The scope `atlas.shared` is atlas's, and cms is its guest there.
"""

import json
from functools import reduce

from nsync.auth.keys import SigningKey, verify
from nsync.authority import charter
from nsync.authority.effective import Authority
from nsync.catalogue.reference import Reference
from nsync.clock import Stamp
from nsync.log.admission import choose_deps
from nsync.log.segment import EMPTY, Dep, Tip, build_changeset
from nsync.namespace.keys import DATASET, FILE, Attachment, Did, Identity
from nsync.namespace.ops import Assert, Retract, encode_op

KEYS = {"atlas": SigningKey(b"a" * 32), "cms": SigningKey(b"c" * 32)}  # only an example has keys that everybody knows


def member(name):
    public, url, guests = KEYS[name].public.hex(), f"http://{name}.example.org", {"cms": ["atlas.shared"]} if name == "atlas" else {}
    instance = {"name": name, "key": public, "incarnation": "00" * 16, "url": url, "scopes": [name], "guests": guests}
    return {"name": name.upper(), "roots": [public], "threshold": 1, "instances": [instance]}


CHARTER = charter.load(json.dumps(reduce(charter.sign, KEYS.values(), charter.draft("example", map(member, KEYS)))), verify)


class Writer:  # one author, and the state of all that it has heard
    def __init__(self, name):
        self.author, self.sign = CHARTER.by_name(name).author, KEYS[name].sign
        self.state, self.heard, self.tip = Reference(Authority(CHARTER)), [], EMPTY

    def say(self, ms, *statements):
        heads = {s.header.author: Dep(s.header.author, s.header.last, s.hash) for s in self.heard}
        log = {"federation": CHARTER.federation, "charter_version": 1, "author": self.author, "tip": self.tip, "sign": self.sign}
        deps = choose_deps(self.author, heads, self.state.pasts.at, self.tip.seq)
        (segment,) = build_changeset([encode_op([s]) for s in statements], stamp=Stamp(ms, 0), deps=deps, **log)
        self.tip = Tip(segment.header.last, segment.hash, segment.header.stamp, 0)
        self.hear(segment)

    def hear(self, *segments):
        for segment in [s for s in segments if s not in self.heard]:
            self.state.apply(segment)
            self.heard.append(segment)


atlas, cms, scope = Writer("atlas"), Writer("cms"), "atlas.shared"
dataset, file, clash = Did(scope, "d1"), Did(scope, "f1"), Did(scope, "f2")
atlas.say(1000, Assert(dataset, Identity(DATASET)), Assert(file, Identity(FILE, 10)), Assert(Attachment(dataset, file), True))
cms.hear(*atlas.heard)
atlas.say(2000, Retract(Attachment(dataset, file)), Assert(clash, Identity(FILE, 1)))  # neither of these two
cms.say(3000, Assert(Attachment(dataset, file), True), Assert(clash, Identity(FILE, 2)))  # has seen the other
atlas.hear(*cms.heard)
cms.hear(*atlas.heard)
assert atlas.state.catalogue == cms.state.catalogue and atlas.state.conflicts == cms.state.conflicts
print(*map(str, atlas.state.catalogue), *atlas.state.conflicts.values(), sep="\n")
