"""A deterministic simulation of a federation: several instances in one process, on virtual time, with everything going wrong.

What is simulated is what is shipped: codec, signatures, log, store on SQLite, gossip; only the network, the clocks and the
processes are made up. One seed tells one story, and always the same (`python -m nsync.testing 1-100`).
"""

from nsync.testing.simulation import Failed, Simulation, Story

__all__ = ["Failed", "Simulation", "Story"]
