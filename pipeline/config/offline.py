"""Learning to decide from a log, and what the learned policy is worth by that log."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from pipeline.config.section import Section


class ClickLoss(StrEnum):
    REGRESSION = "regression"
    CROSS_ENTROPY = "cross_entropy"


class OfflineLearning(Section):
    num_steps: int = Field(default=600, gt=0)
    """Optimizer steps."""
    batch_size: int = Field(default=128, gt=0)
    """Decisions in a step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Of Adam."""
    loss: ClickLoss = ClickLoss.REGRESSION
    """Of `supervised`. `regression`: foresee the reward of the logged action; `cross_entropy`: name the item that was
    clicked."""
    correct_positions: bool = False
    """Of `supervised`: whether clicks are divided by the probability that their place is examined, and weighted by the
    inverse of their propensity; without, it believes the log. Other algorithms always divide."""
    beta: float = Field(default=1.0, ge=0, le=1)
    """Of `marwil`: how much better actions count for more; 0 is `bc`."""
    conservatism: float = Field(default=0.1, ge=0)
    """Of `cql`: weight of keeping Q values of actions down that were not taken; 0 is Q-learning."""
    target_steps: int = Field(default=100, gt=0)
    """Steps between two reports; `cql` then copies its Q values to the target network."""
    clip: float | None = Field(default=None, gt=0)
    """Largest weight in the estimates; null cuts none. Clipping makes them vary less, and too low."""
    judged_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of the log's sessions by which policies are judged; they learn from the rest."""
    num_folds: int = Field(default=2, ge=2)
    """Parts of a log of which each is predicted by a model that learned from the others, for doubly robust ones."""
