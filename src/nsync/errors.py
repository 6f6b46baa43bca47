"""The errors of nsync, split by what the caller does next (DESIGN 13).

NsyncError
 ├─ RejectedSegment   refuse the segment and what follows it, keep the peer
 ├─ ProtocolError     drop the connection to the peer
 ├─ TransportError    try again later
 ├─ NotAuthorised     the caller may not; nothing else is said to them
 ├─ CharterMoved      begin anew with the charter in force
 └─ ConfigError       the operator mends the configuration or the charter

Every text says what happened, to which object, and what to do.
"""


class NsyncError(Exception):
    """The root: everything that nsync raises on purpose."""


class RejectedSegment(NsyncError):
    """A segment that no honest author could have sent here."""


class ProtocolError(NsyncError):
    """Bytes that do not follow the protocol."""


class TransportError(NsyncError):
    """A peer that could not be reached, or did not answer in time."""


class NotAuthorised(NsyncError):
    """A request or statement without the right to be made."""


class CharterMoved(NsyncError):
    """Another node on this database went over to another charter than the one that this one reads it by."""


class ConfigError(NsyncError):
    """The configuration, the key file or the charter is not usable."""
