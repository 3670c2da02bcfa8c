"""The policy: the copy that learns. Clipped policy loss, KL in the loss where asked for, entropy bonus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from actors.encoder import PromptRef
from actors.reference import ReferenceWorker
from actors.scoring import ShardedWorker
from actors.weights import Weights
from pipeline.algorithms.aggregation import token_sum_over
from pipeline.algorithms.kl import estimate_kl
from pipeline.algorithms.losses import clipped_policy_loss, entropy_bonus
from pipeline.config import Algorithm, KlPlace
from pipeline.experience import ExperienceBatch, collate_experience
from pipeline.models.checkpoint import save_checkpoint
from pipeline.records import Experience


@dataclass(frozen=True)
class Minibatch:
    """One rank's share of an optimizer step; `num_tokens` counts the tokens of all ranks' shares."""

    prompts: tuple[PromptRef, ...]
    experience: tuple[Experience, ...]
    num_tokens: float


class LearningWorker(ShardedWorker):
    """A sharded role with an optimizer: updates, checkpoints, export."""

    _last_update: tuple[int, dict[str, float]] = (-1, {})

    def losses(
        self, minibatch: Minibatch, part: slice, experience: ExperienceBatch, kl_weight: float
    ) -> dict[str, Tensor]:
        """`loss` to be minimised and statistics, all sums over the micro-batch divided by `minibatch.num_tokens`."""
        raise NotImplementedError

    def update(self, minibatches: Sequence[Minibatch], *, step: int, kl_weight: float) -> dict[str, float]:
        """One optimizer step for each minibatch. The same step asked for twice is done once."""
        if self._last_update[0] == step:
            return self._last_update[1]
        totals: dict[str, float] = {}
        grad_norm = 0.0
        for minibatch in minibatches:
            parts = list(self.slices(len(minibatch.prompts)))
            for part in parts:
                self._micro_step(minibatch, part, kl_weight, totals, last=part is parts[-1])
            grad_norm += self.engine.grad_norm / len(minibatches)
        totals = self.engine.sum_over_ranks(totals)
        metrics = {name: total / len(minibatches) for name, total in totals.items()}
        metrics |= {"grad_norm": grad_norm, "learning_rate": self.engine.learning_rate}
        self._last_update = (step, metrics)
        return metrics

    def _micro_step(
        self, minibatch: Minibatch, part: slice, kl_weight: float, totals: dict[str, float], *, last: bool
    ) -> None:
        def loss() -> Tensor:
            experience = collate_experience(minibatch.experience[part], device=self.device)
            losses = self.losses(minibatch, part, experience, kl_weight)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach())
            return losses["loss"]

        self.engine.train(loss, last=last)

    def groups(self, minibatch: Minibatch, part: slice) -> tuple[object, ...]:
        """The model's inputs for a micro-batch."""
        experience = minibatch.experience[part]
        completions = [
            [row[mask] for row, mask in zip(group.token_ids, group.mask, strict=True)] for group in experience
        ]
        return self.batch(minibatch.prompts[part], completions)

    def save(self, directory: Path) -> None:
        """This rank's shard of parameters, optimizer and schedule, with its random state."""
        self.engine.save(directory, {"rng": torch.get_rng_state()})

    def resume(self, directory: Path) -> None:
        """Restores what `save` wrote."""
        torch.set_rng_state(self.engine.load(directory)["rng"])

    def export(self, directory: Path) -> None:
        """Writes the role as a Hugging Face directory; all ranks must call it."""
        state = self.engine.gather()
        if self.engine.world.rank == 0:
            save_checkpoint(directory, module=self.engine.module, state=state, source=self.path)


class PolicyWorker(LearningWorker, ReferenceWorker):
    """Learns from advantages; scores like a reference."""

    def losses(
        self, minibatch: Minibatch, part: slice, experience: ExperienceBatch, kl_weight: float
    ) -> dict[str, Tensor]:
        algorithm: Algorithm = self.recipe.rlhf.algorithm
        temperature = self.recipe.rlhf.sampling.temperature or 1.0
        logprobs, entropy = self.engine(*self.groups(minibatch, part), temperature)
        num_tokens = minibatch.num_tokens
        policy = clipped_policy_loss(
            policy_logprobs=logprobs,
            behaviour_logprobs=experience.behaviour_logprobs,
            advantages=experience.advantages,
            mask=experience.mask,
            clip=algorithm.clip,
            num_tokens=num_tokens,
        )
        bonus = entropy_bonus(entropy=entropy, mask=experience.mask, num_tokens=num_tokens)
        loss = policy.loss - algorithm.entropy_weight * bonus
        statistics = {
            "policy_loss": policy.loss,
            "entropy": bonus,
            "clip_fraction": policy.clip_fraction,
            "kl_behaviour": policy.approx_kl,
            "ratio": policy.ratio_mean,
        }
        if algorithm.kl.place is KlPlace.LOSS and kl_weight > 0:
            kl = estimate_kl(
                estimator=algorithm.kl.estimator,
                policy_logprobs=logprobs,
                reference_logprobs=experience.reference_logprobs,
            )
            statistics["kl_loss"] = token_sum_over(values=kl, mask=experience.mask, num_tokens=num_tokens)
            loss = loss + kl_weight * statistics["kl_loss"]
        return {"loss": loss, **statistics}

    def weights(self, version: int) -> Weights:
        """The trained parameters, on rank 0; all ranks must call it."""
        return Weights(version, self.engine.gather(trainable_only=True))
