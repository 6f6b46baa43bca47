"""One shared OpenData namespace over independent Rucio instances.

The front door of the pure core: names only, and importing it loads nothing but msgpack. The other doors:
`nsync.auth` (keys), `nsync.store` (SQL), `nsync.rucio_bridge` (a Rucio database), `nsync.node` (a running instance).
"""

from nsync.authority.charter import Charter, Instance
from nsync.catalogue.entries import Conflict
from nsync.catalogue.reference import Reference
from nsync.catalogue.writer import Writer
from nsync.errors import NsyncError
from nsync.log.segment import Segment
from nsync.namespace.keys import Attachment, Attribute, Did, Identity, Protocol, Replica, Rse, Scope
from nsync.namespace.ops import Assert, Retract

__all__ = [
    "Assert",
    "Attachment",
    "Attribute",
    "Charter",
    "Conflict",
    "Did",
    "Identity",
    "Instance",
    "NsyncError",
    "Protocol",
    "Reference",
    "Replica",
    "Retract",
    "Rse",
    "Scope",
    "Segment",
    "Writer",
    "__version__",
]

__version__ = "0.1.0"
