"""nsync's store without Rucio: publish in one SQLite file, receive and apply in another, whatever happens on the way.

The segments are given twice and in the wrong order, and one is altered; the reader ends with what the author signed.
"""

import json
import tempfile
import time
from pathlib import Path

from sqlalchemy import create_engine

from nsync.auth.keys import SigningKey, verify
from nsync.authority import documents
from nsync.authority.effective import Authority
from nsync.namespace.keys import DATASET, FILE, Attachment, Did, Identity
from nsync.namespace.ops import Assert, encode_op
from nsync.store.database import create_tables, writing
from nsync.store.log import SqlLog, decode_batch

key = SigningKey.generate()
entry = {"name": "ska", "key": key.public.hex(), "incarnation": "00" * 16, "url": "http://ska.example.org", "scopes": ["ska"]}
members = [{"name": "SKA", "roots": [key.public.hex()], "threshold": 1, "instances": [entry]}]
authority = Authority(documents.load(json.dumps(documents.sign(documents.draft("example", members), key)), verify))
author = authority.charter.by_name("ska").author


def publish(engine, statements):
    with writing(engine) as connection:
        ops = [encode_op([statement]) for statement in statements]
        return SqlLog(connection, authority).publish(ops, author, key.sign, time.time_ns() // 1_000_000)


def receive(engine, frames):
    segments, refused = decode_batch(frames, authority, verify)
    with writing(engine) as connection:
        receipt = SqlLog(connection, authority).store(segments)
    print(f"stored {receipt.stored}, refused {[*refused, *receipt.rejected]}")


with tempfile.TemporaryDirectory() as directory:
    here, there = (create_engine(f"sqlite+nsync:///{Path(directory, name)}") for name in ("here.db", "there.db"))
    create_tables(here)
    create_tables(there)
    dataset, files = Did("ska", "d1"), [Did("ska", f"f{n}") for n in range(3)]
    publish(here, [Assert(dataset, Identity(DATASET))])
    for file in files:
        publish(here, [Assert(file, Identity(FILE, 1000)), Assert(Attachment(dataset, file), True)])
    with here.connect() as connection:
        first, *rest = [segment.frame for segment in SqlLog(connection, authority).segments_after({author: []}, 1 << 20)]
    receive(there, rest)  # a gap
    receive(there, [first[:-1] + bytes([first[-1] ^ 1])])  # altered
    receive(there, [first, *rest, *rest])
    with writing(there) as connection:
        while applied := SqlLog(connection, authority).apply_next(time.time_ns() // 1_000_000):
            print(f"applied {applied.first}-{applied.last}: {applied.changed} entries changed")
        print(*SqlLog(connection, authority).state.entries([dataset, *files]).items(), sep="\n")
