"""The policy: the copy that learns. Clipped policy loss, KL in the loss where asked for, entropy bonus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from actors.encoder import PromptRef
from actors.engine import World
from actors.files import File, Folder
from actors.group import split, split_evenly
from actors.reference import ReferenceWorker
from actors.scoring import Group, ShardedWorker
from actors.state import Saved
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

    rows: tuple[tuple[PromptRef, Experience], ...]
    num_tokens: float

    def groups(self, part: slice) -> list[Group]:
        """Prompts and completions of a micro-batch, as the model takes them."""
        return [
            (prompt, [ids[mask] for ids, mask in zip(experience.token_ids, experience.mask, strict=True)])
            for prompt, experience in self.rows[part]
        ]


def plan_update(
    rows: Sequence[tuple[PromptRef, Experience]], *, num_ranks: int, algorithm: Algorithm, seed: Sequence[int]
) -> list[list[Minibatch]]:
    """For each rank, its minibatches of all epochs. Their order and make-up do not depend on the number of ranks."""
    shares: list[list[Minibatch]] = [[] for _ in range(num_ranks)]
    for epoch in range(algorithm.num_epochs):
        order = np.random.default_rng([*seed, epoch]).permutation(len(rows))
        for minibatch in split([rows[index] for index in order], min(algorithm.num_minibatches, len(rows))):
            num_tokens = float(sum(experience.mask.sum() for _, experience in minibatch))
            for share, part in zip(shares, split_evenly(minibatch, num_ranks, _without_weight), strict=True):
                # Micro-batches of prompts of like length hold little padding.
                share.append(Minibatch(tuple(sorted(part, key=lambda row: row[0].num_tokens)), num_tokens))
    return shares


def _without_weight(row: tuple[PromptRef, Experience]) -> tuple[PromptRef, Experience]:
    """A copy that evens out the work of the ranks and teaches nothing."""
    return row[0], replace(row[1], weight=0.0)


class LearningWorker(ShardedWorker):
    """A sharded role with an optimizer: updates, checkpoints, export."""

    keeps_weights = False

    def setup(self, world: World, path: Path) -> None:
        """Starts from the checkpoint, with a fresh optimizer."""
        super().setup(world, path)
        self._last_update: tuple[int, dict[str, float]] = (-1, {})

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
            parts = list(self.slices(len(minibatch.rows)))
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
            experience = collate_experience([item for _, item in minibatch.rows[part]], device=self.device)
            losses = self.losses(minibatch, part, experience, kl_weight)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach())
            return losses["loss"]

        self.engine.train(loss, last=last)

    def save(self, folder: Folder) -> Saved:
        """This rank's share of the parameters, optimizer state and schedule, with its random state."""
        return self.engine.save(folder)

    def damages(self, folder: Folder, files: Sequence[File]) -> list[str]:
        """What is wrong with this rank's share of the files, read whole; nothing where all is well."""
        share = files[self.engine.world.rank :: self.engine.world.size]
        return [damage for file in share if (damage := folder.damage(file))]

    def resume(self, folder: Folder, names: Sequence[str], schedule: Mapping[str, Any]) -> None:
        """Restores what `save` wrote, by any number of ranks."""
        self.engine.load(folder, names, schedule)

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
        logprobs, entropy = self.engine(*self.batch(minibatch.groups(part)), temperature)
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
