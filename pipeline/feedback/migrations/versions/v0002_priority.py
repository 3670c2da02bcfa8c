"""The order of the queue is an index, and so are the runs' steps."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """To this version."""
    op.add_column("items", sa.Column("priority", sa.Float(precision=53), nullable=False, server_default="0"))
    op.execute("UPDATE items SET priority = uncertainty")
    op.drop_index("ix_items_queue", "items")
    order = ["is_gold", "is_done", sa.text("priority DESC"), "created_at", "id"]
    op.create_index("ix_items_queue", "items", order, unique=False)
    op.create_index("ix_items_run", "items", ["run", "step"], unique=False)


def downgrade() -> None:
    """To the one before."""
    op.drop_index("ix_items_run", "items")
    op.drop_index("ix_items_queue", "items")
    op.create_index("ix_items_queue", "items", ["is_gold", "is_done", "uncertainty", "created_at"], unique=False)
    op.drop_column("items", "priority")
