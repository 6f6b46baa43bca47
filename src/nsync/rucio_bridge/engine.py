"""Rucio's own engine: the database of rucio.cfg, with the pool that its operator configured."""

from rucio.db.sqla.session import get_engine

__all__ = ["get_engine"]
