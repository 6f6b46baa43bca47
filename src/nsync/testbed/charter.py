"""Keys and charter of a testbed: one member organisation per instance, all of whose root keys are at hand.

In a real federation nobody holds two of these keys; here one process makes and signs everything (R5.1).
"""

from __future__ import annotations

import datetime
import json
import secrets
from pathlib import Path
from typing import Any

from nsync.auth.keys import SigningKey
from nsync.authority import documents
from nsync.authority.charter import ID_BYTES
from nsync.testbed.layout import Instance, Layout, replace_text
from nsync.transport import tls


def key_file(instance: Instance) -> Path:
    """The key that the node signs with."""
    return instance.home / "etc" / "nsync.key"


def tls_directory(instance: Instance) -> Path:
    """Where `tls.key` and `tls.pem` are."""
    return instance.home / "etc"


def make_charter(layout: Layout) -> None:
    """Write the charter and the keys of `layout`, unless they are there: a second charter would be another federation."""
    if layout.charter.exists():
        return
    roots = [_key(instance.home / "etc" / "root.key") for instance in layout.instances]
    members = [_member(instance, root) for instance, root in zip(layout.instances, roots)]
    document = documents.draft("testbed", members)
    for root in roots:
        document = documents.sign(document, root)
    replace_text(layout.charter, json.dumps(document, indent=2) + "\n")


def doi_prefix(instance: str) -> str:
    """The prefix of the DOIs that `instance` decides about; 10.5072 is DataCite's prefix for tests."""
    return f"10.5072/{instance.upper()}."


def _key(path: Path) -> SigningKey:
    """The key at `path`; a start that was interrupted may have left it there."""
    if not path.exists():
        SigningKey.generate().save(path)
    return SigningKey.load(path)


def _pin(instance: Instance) -> bytes:
    """Of the certificate that a start which was interrupted has left, or of a new one."""
    directory = tls_directory(instance)
    if (directory / "tls.pem").exists():
        return tls.pin(directory / "tls.pem")
    (directory / "tls.key").unlink(missing_ok=True)
    return tls.make_certificate(directory, datetime.datetime.now(datetime.timezone.utc))


def _member(instance: Instance, root: SigningKey) -> dict[str, Any]:
    entry = {
        "name": instance.name,
        "key": _key(key_file(instance)).public.hex(),
        "incarnation": secrets.token_hex(ID_BYTES),
        "url": instance.charter_url,
        "tls": [_pin(instance).hex()],
        "scopes": [instance.name],
        "dois": [doi_prefix(instance.name)],
        "guests": {},
    }
    return {"name": instance.name.upper(), "roots": [root.public.hex()], "threshold": 1, "instances": [entry]}
