"""How Alembic meets the feedback store: over the connection that `Database.migrate` gives it."""

from __future__ import annotations

from alembic import context

from pipeline.feedback.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
