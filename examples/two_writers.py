"""Two authors write about the same names without having seen each other; then each hears the other, and both show the same.

Only the pure core: no database, no network, no Rucio. The scope `atlas.shared` is atlas's, and cms is its guest there.
"""

import json
from functools import reduce

from nsync import Assert, Attachment, Did, Identity, Retract, Writer
from nsync.auth.keys import SigningKey, verify
from nsync.authority import documents

KEYS = {"atlas": SigningKey(b"a" * 32), "cms": SigningKey(b"c" * 32)}  # only an example has keys that everybody knows


def member(name):
    public, url, guests = KEYS[name].public.hex(), f"http://{name}.example.org", {"cms": ["atlas.shared"]} if name == "atlas" else {}
    instance = {"name": name, "key": public, "incarnation": "00" * 16, "url": url, "scopes": [name], "guests": guests}
    return {"name": name.upper(), "roots": [public], "threshold": 1, "instances": [instance]}


CHARTER = documents.load(json.dumps(reduce(documents.sign, KEYS.values(), documents.draft("example", map(member, KEYS)))), verify)
atlas, cms = (Writer(CHARTER, name, KEYS[name].sign, now_ms=1000) for name in KEYS)

dataset, file, clash = (Did("atlas.shared", name) for name in ("d1", "f1", "f2"))
atlas.say(Assert(dataset, Identity("D")), Assert(file, Identity("F", 10)), Assert(Attachment(dataset, file), True))
cms.hear(atlas.log)
atlas.say(Retract(Attachment(dataset, file)), Assert(clash, Identity("F", 1)))  # neither of these two
cms.say(Assert(Attachment(dataset, file), True), Assert(clash, Identity("F", 2)))  # has seen the other
atlas.hear(cms.log)
cms.hear(atlas.log)

assert atlas.state.catalogue == cms.state.catalogue and atlas.state.conflicts == cms.state.conflicts
print(*map(str, atlas.state.catalogue), *atlas.state.conflicts.values(), sep="\n")
