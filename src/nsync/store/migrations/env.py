"""Alembic's environment: runs the versions on the connection that `nsync.store.migrations` passes in."""

from alembic import context

from nsync.store import schema
from nsync.store.migrations import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata,
    version_table=VERSION_TABLE,
    include_name=lambda name, kind, parents: kind != "table" or (name or "").startswith("nsync_"),
)
context.run_migrations()
