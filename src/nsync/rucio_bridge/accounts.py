"""The accounts that own here what other instances share: `nsync-<instance>`, made when they are needed first.

What an operator made of one is respected where it harms nothing: one that is suspended can own, and nobody acts as it. One that is
deleted, or belongs to a person, is in the way until the operator says otherwise.
"""

from __future__ import annotations

from typing import Optional

from rucio.common.types import InternalAccount
from rucio.db.sqla import models
from rucio.db.sqla.constants import AccountStatus, AccountType
from sqlalchemy import select
from sqlalchemy.orm import Session

from nsync.rucio_bridge.schemas import is_valid

_ACCOUNTS, _HELD = models.Account, models.IdentityAccountAssociation


def account_of(instance: str) -> str:
    """The account that owns here what `instance` shares."""
    return f"nsync-{instance}"


def exists(session: Session, account: InternalAccount) -> bool:
    """Whether it is here, in whatever state."""
    return session.execute(select(_ACCOUNTS.status).where(_ACCOUNTS.account == account)).first() is not None


def unfit(session: Session, instance: str) -> Optional[str]:
    """Why the account of `instance` cannot own anything here, and the way out; None when it can, or can be made."""
    account = InternalAccount(account_of(instance))
    row = session.execute(select(_ACCOUNTS.status, _ACCOUNTS.account_type).where(_ACCOUNTS.account == account)).first()
    wrong = _not_made(account) if row is None else _not_used(session, account, row.status, row.account_type)
    return None if wrong is None else f"account {account.external!r}, which is to own here what {instance} shares, {wrong}"


def _not_made(account: InternalAccount) -> Optional[str]:
    if is_valid("account", account.external):
        return None
    return "is not allowed by this Rucio's schema (policy package); let it take the name"


def _not_used(session: Session, account: InternalAccount, status: AccountStatus, account_type: AccountType) -> Optional[str]:
    if status == AccountStatus.DELETED:
        return f"is deleted; bring it back: 'rucio account update --unban {account.external}'"
    held = session.execute(select(_HELD.identity, _HELD.identity_type).where(_HELD.account == account)).first()
    if account_type == AccountType.SERVICE or held is None:
        return None
    remove = f"rucio account identity remove --type {held.identity_type.name} --id '{held.identity}' {account.external}"
    return f'is a {account_type.name} account that {held.identity!r} acts as; take its identities away: "{remove}"'
