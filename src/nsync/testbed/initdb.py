"""Make the database of one Rucio instance: `python -m nsync.testbed.initdb RSE PREFIX`.

A program of its own, because Rucio keeps configuration and engine in module globals: one process, one instance. It
reads RUCIO_CONFIG and does what an operator does first: schema, base VO, root account, and one RSE whose files lie
below the directory PREFIX.
"""

from __future__ import annotations

import sys

from rucio.common.types import InternalAccount
from rucio.core.account import add_account_attribute
from rucio.core.account_limit import set_local_account_limit
from rucio.core.rse import add_protocol, add_rse, add_rse_attribute
from rucio.db.sqla.constants import DatabaseOperationType
from rucio.db.sqla.session import db_session
from rucio.db.sqla.util import build_database, create_base_vo, create_root_account

QUOTA_BYTES = 10**12

_READ_WRITE_DELETE = {"read": 1, "write": 1, "delete": 1}


def main(rse: str, prefix: str) -> None:
    """Build the database, then everything else in one transaction."""
    build_database()
    create_base_vo()
    create_root_account()
    root = InternalAccount("root")
    with db_session(DatabaseOperationType.WRITE) as session:
        add_account_attribute(account=root, key="admin", value=True, session=session)
        rse_id = add_rse(rse, session=session)
        add_protocol(rse_id, _protocol(prefix), session=session)
        add_rse_attribute(rse_id, "OpenData", True, session=session)
        set_local_account_limit(root, rse_id, QUOTA_BYTES, session=session)


def _protocol(prefix: str) -> dict[str, object]:
    return {
        "impl": "rucio.rse.protocols.posix.Default",
        "scheme": "file",
        "hostname": "localhost",
        "port": 0,
        "prefix": prefix,
        "domains": {
            "lan": _READ_WRITE_DELETE,
            "wan": {**_READ_WRITE_DELETE, "third_party_copy_read": 0, "third_party_copy_write": 0},
        },
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
