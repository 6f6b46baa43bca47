"""What the bridge does, counted with Rucio's own means: Prometheus, and statsd where [monitor] carbon_server names one.

Rucio's MetricManager makes one Prometheus metric of each, in the process' registry. So they are served at `[nsync] metrics` beside those of
`nsync.metrics`, and at Rucio's own port where [monitor] enable_metrics turns it on. A name is registered by one of the two modules.
"""

from __future__ import annotations

from rucio.core.monitor import MetricManager

_METRICS = MetricManager(prefix="nsync")

PUBLISHED_OPS = _METRICS.counter("published_ops", documentation="Ops that this instance put into its log")
APPLIED_CHANGESETS = _METRICS.counter("applied_changesets.{author}", documentation="Changesets that took effect here")
CHANGED_ENTRIES = _METRICS.counter(
    "changed_entries.{author}", documentation="Entries of the catalogue that changesets changed, with Rucio's rows for them"
)
VOID_STATEMENTS = _METRICS.counter("void_statements.{author}", documentation="Statements that their author had no right to make")
FAILED_TRANSACTIONS = _METRICS.counter("failed_transactions", documentation="Transactions that were rolled back and are tried again")
WRITE_LOCK_SECONDS = _METRICS.timer("write_lock_seconds", documentation="How long the database's write lock was held, each time")
PARKED_FACTS = _METRICS.gauge("parked_facts", documentation="Facts whose rows do not fit here, and what waits with them")
