"""Discrete CQL: Q-learning from a log that keeps the values of actions down that were not taken.

RLlib 2.60's own CQL is a variant of its continuous SAC: its learner needs resampled actions and their densities
(`actions_curr_repeat`, `logp_next_resampled`), which its module makes for Box actions only. For K actions the same idea
is one term beside the temporal-difference loss of DQN, with no sampling: `conservative_term`.
"""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.algorithms.dqn.dqn_learner import QF_NEXT_PREDS, QF_PREDS, QF_TARGET_NEXT_PREDS
from ray.rllib.algorithms.marwil import MARWIL, MARWILConfig
from ray.rllib.core.columns import Columns
from torch import Tensor

from pipeline.decisions.learners import FusionDQNLearner


def conservative_term(q_values: Tensor, actions: Tensor) -> Tensor:
    """mean(log sum_k exp Q_k - Q_a), the regulariser of CQL(H) (Kumar et al. 2020, arXiv 2006.04779, equation 4).

    q_values: float32 [B, K]; actions: int64 [B]. At least 0: it is -log softmax(Q)_a.
    """
    taken = q_values.gather(1, actions.long().view(-1, 1))[:, 0]
    return (torch.logsumexp(q_values, dim=1) - taken).mean()


def conservative_loss(
    *,
    q_values: Tensor,
    next_values: Tensor,
    next_targets: Tensor,
    actions: Tensor,
    rewards: Tensor,
    terminated: Tensor,
    gamma: float,
    conservatism: float,
) -> Tensor:
    """mean (Q_a - (r + gamma Q'_a*))^2 + conservatism * `conservative_term`; double Q: a* is the best by `next_values`.

    q_values, next_values: float32 [B, K], of the learning network; next_targets: [B, K], Q', of the target network.
    actions int64 [B], rewards float32 [B], terminated bool [B]: nothing follows.
    """
    following = next_targets.gather(1, next_values.argmax(dim=1, keepdim=True))[:, 0]
    targets = (rewards + gamma * (~terminated.bool()) * following).detach()
    taken = q_values.gather(1, actions.long().view(-1, 1))[:, 0]
    return ((taken - targets) ** 2).mean() + conservatism * conservative_term(q_values, actions)


class ConservativeQLearner(FusionDQNLearner):
    """DQN's learner, with target networks, of another loss. (DQN's own keeps each row's error, which fails where the
    batches of a log differ in length.)"""

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """See `conservative_loss`."""
        loss = conservative_loss(
            q_values=fwd_out[QF_PREDS],
            next_values=fwd_out[QF_NEXT_PREDS],
            next_targets=fwd_out[QF_TARGET_NEXT_PREDS],
            actions=batch[Columns.ACTIONS],
            rewards=batch[Columns.REWARDS],
            terminated=batch[Columns.TERMINATEDS],
            gamma=config.gamma,
            conservatism=config.conservatism,
        )
        term = conservative_term(fwd_out[QF_PREDS], batch[Columns.ACTIONS])
        self.metrics.log_dict({"loss": loss.detach(), "conservative_term": term.detach()}, key=module_id, window=1)
        return loss


class ConservativeQConfig(MARWILConfig):
    """Offline Q-learning in MARWIL's training step, as RLlib's IQL does it."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or ConservativeQ)
        self.conservatism = 0.1
        self.double_q, self.dueling = True, True
        self.tau, self.target_network_update_freq = 1.0, 0
        self.epsilon = 0.0

    def build_learner_connector(self, *args: Any, **kwargs: Any) -> Any:
        """Without MARWIL's returns, for which it lengthens sessions."""
        pipeline: Any = super().build_learner_connector(*args, **kwargs)
        pipeline.remove("AddOneTsToEpisodesAndTruncate")
        pipeline.remove("GeneralAdvantageEstimation")
        return pipeline

    @property
    def _model_config_auto_includes(self) -> dict[str, Any]:
        own = {"double_q": self.double_q, "dueling": self.dueling, "epsilon": self.epsilon}
        return super()._model_config_auto_includes | own


class ConservativeQ(MARWIL):
    """Discrete CQL."""

    @classmethod
    def get_default_config(cls) -> ConservativeQConfig:
        """Its own."""
        return ConservativeQConfig()
