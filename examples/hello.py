"""One instance publishes a dataset, a second database shows it: SQLite in memory, no Rucio and no network."""

import json
import time

from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from nsync.auth.keys import SigningKey, verify
from nsync.authority import documents
from nsync.authority.effective import Authority
from nsync.namespace.keys import DATASET, Did, Identity
from nsync.namespace.ops import Assert, encode_op
from nsync.store.database import create_tables, writing
from nsync.store.log import SqlLog, decode_batch

key = SigningKey.generate()  # here it is the key of the instance, and its member's root key too
public, url = key.public.hex(), "http://atlas.example.org"
instance = {"name": "atlas", "key": public, "incarnation": "00" * 16, "url": url, "scopes": ["atlas"]}
members = [{"name": "ATLAS", "roots": [public], "threshold": 1, "instances": [instance]}]
document = documents.sign(documents.draft("example", members), key)
authority = Authority(documents.load(json.dumps(document), verify))
atlas, dataset = authority.charter.by_name("atlas"), Did("atlas.open", "d1")
here, there = (create_engine("sqlite://", poolclass=StaticPool) for _ in range(2))
now_ms = time.time_ns() // 1_000_000

create_tables(here)
with writing(here) as connection:
    op = encode_op([Assert(dataset, Identity(DATASET))])
    SqlLog(connection, authority).publish([op], atlas.author, key.sign, now_ms)
    frames = [segment.frame for segment in SqlLog(connection, authority).segments_after({atlas.author: []}, bytes_max=1 << 20)]

create_tables(there)
segments, refused = decode_batch(frames, authority, verify)  # signatures and structure, before the transaction
with writing(there) as connection:
    log = SqlLog(connection, authority)
    log.store(segments)
    log.apply_next(now_ms)
    print(log.state.entries([dataset]))
