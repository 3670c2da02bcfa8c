"""The policy: the copy that learns. Policy loss, KL in the loss where asked for, entropy bonus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.engine.files import File, Folder
from actors.engine.place import Place
from actors.engine.state import Saved
from actors.engine.weights import Weights
from actors.fleet.world import split
from actors.roles.encoder import PromptRef
from actors.roles.reference import ReferenceWorker
from actors.roles.scoring import Group, ShardedWorker
from pipeline.algorithms.aggregation import Normalisers, aggregate, token_mean
from pipeline.algorithms.direct_preference import dpo_loss
from pipeline.algorithms.kl import estimate_kl, kl_k3
from pipeline.algorithms.off_policy import ImportanceWeights, importance_weights, mismatch
from pipeline.algorithms.surrogates import Surrogate, policy_surrogate
from pipeline.config import Algorithm, ImportanceCorrection, KlPlace, OffPolicy, PolicyLossName
from pipeline.experience import ExperienceBatch, collate_experience
from pipeline.models.checkpoint import save_checkpoint
from pipeline.packing import GroupSize, Pass, plan_passes
from pipeline.records import Experience, Records

Row = tuple[PromptRef, Experience]


@dataclass(frozen=True)
class Minibatch:
    """One rank's share of an optimizer step, pass by pass; `normalisers` count the shares of all ranks."""

    passes: tuple[tuple[Row, ...], ...]
    normalisers: Normalisers


class Minibatches(list[Minibatch]):
    """Those of one rank, which travel to it in few arrays; a row that comes again, in another epoch, does so once."""

    def __reduce__(self) -> tuple[Any, ...]:
        rows = {id(row): row for each in self for rows in each.passes for row in rows}
        places = {key: place for place, key in enumerate(rows)}
        passes = [[[places[id(row)] for row in rows] for rows in each.passes] for each in self]
        prompts, experience = Records(prompt for prompt, _ in rows.values()), Records(of for _, of in rows.values())
        return _minibatches, (prompts, experience, passes, [each.normalisers for each in self])


def _minibatches(
    prompts: Sequence[PromptRef],
    experience: Sequence[Experience],
    passes: Sequence[Sequence[Sequence[int]]],
    normalisers: Sequence[Normalisers],
) -> Minibatches:
    rows = [*zip(prompts, experience, strict=True)]
    return Minibatches(
        Minibatch(tuple(tuple(rows[place] for place in places) for places in each), of)
        for each, of in zip(passes, normalisers, strict=True)
    )


def groups_of(rows: Sequence[Row]) -> list[Group]:
    """Prompts and completions of a pass, as the model takes them."""
    return [
        (prompt, [ids[mask] for ids, mask in zip(experience.token_ids, experience.mask, strict=True)])
        for prompt, experience in rows
    ]


def plan_update(
    rows: Sequence[Row], *, num_ranks: int, budget: int, algorithm: Algorithm, seed: Sequence[int]
) -> list[Minibatches]:
    """For each rank, its minibatches of all epochs, in passes of at most `budget` tokens.

    Order and make-up of the minibatches do not depend on the number of ranks. One whose completions are all left out
    of the loss is no optimizer step.
    """
    shares = [Minibatches() for _ in range(num_ranks)]
    sizes = [GroupSize(prompt.num_tokens, *experience.mask.shape) for prompt, experience in rows]
    for epoch in range(algorithm.num_epochs):
        order = np.random.default_rng([*seed, epoch]).permutation(len(rows))
        for indices in split(order.tolist(), min(algorithm.num_minibatches, len(rows))):
            minibatch = [rows[index] for index in indices]
            normalisers = Normalisers(
                num_tokens=float(sum(experience.loss_mask.sum() for _, experience in minibatch)),
                num_completions=float(sum(experience.num_learned for _, experience in minibatch)),
            )
            if not normalisers.num_tokens:
                continue
            plan = plan_passes([sizes[index] for index in indices], num_ranks=num_ranks, budget=budget)
            for share, passes in zip(shares, plan, strict=True):
                share.append(Minibatch(tuple(_rows_of(each, minibatch) for each in passes), normalisers))
    return shares


def _rows_of(each: Pass, rows: Sequence[Row]) -> tuple[Row, ...]:
    if each.counts:
        return tuple(rows[index] for index in each.groups)
    # A copy that evens out the work of the ranks and teaches nothing.
    return tuple((rows[index][0], replace(rows[index][1], weight=0.0)) for index in each.groups)


class LearningWorker(ShardedWorker):
    """A sharded role with an optimizer: updates, checkpoints, export."""

    keeps_weights = False

    def setup(self, place: Place, path: Path) -> None:
        """Starts from the checkpoint, with a fresh optimizer."""
        super().setup(place, path)
        self._last_update: tuple[int, dict[str, float]] = (-1, {})

    def losses(
        self, groups: Sequence[Group], experience: ExperienceBatch, normalisers: Normalisers, kl_weight: float
    ) -> dict[str, Tensor]:
        """`loss` to be minimised and statistics, all shares of the step's by `normalisers`."""
        raise NotImplementedError

    def update(self, minibatches: Sequence[Minibatch], *, step: int, kl_weight: float) -> dict[str, float]:
        """One optimizer step for each minibatch. The same step asked for twice is done once."""
        if self._last_update[0] == step:
            return self._last_update[1]
        totals: dict[str, float] = {}
        first: dict[str, float] = {}
        grad_norm, num_skipped = 0.0, 0
        with self.fetched(prompt for each in minibatches for rows in each.passes for prompt, _ in rows):
            for minibatch in minibatches:
                for rows in minibatch.passes:
                    last = rows is minibatch.passes[-1]
                    self._micro_step(rows, minibatch.normalisers, kl_weight, totals, last=last)
                grad_norm += self.engine.grad_norm / len(minibatches)
                num_skipped += self.engine.is_skipped
                first = first or self.first_metrics()
        totals = self.engine.sum_over_ranks(totals)
        metrics = first | {name: total / len(minibatches) for name, total in totals.items()}
        metrics |= {"grad_norm": grad_norm, "learning_rate": self.engine.learning_rate}
        metrics["counts/steps_skipped"] = float(num_skipped)
        self._last_update = (step, metrics)
        return metrics

    def _micro_step(
        self, rows: Sequence[Row], normalisers: Normalisers, kl_weight: float, totals: dict[str, float], *, last: bool
    ) -> None:
        def loss() -> Tensor:
            experience = collate_experience([item for _, item in rows], device=self.device)
            losses = self.losses(groups_of(rows), experience, normalisers, kl_weight)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach())
            return losses["loss"]

        self.engine.train(loss, last=last)

    def first_metrics(self) -> dict[str, float]:
        """What only the first optimizer step of an update can tell, while weights are as they were before."""
        return {}

    def save(self, folder: Folder) -> Saved:
        """This rank's share of the parameters, optimizer state and schedule, with its random state."""
        return self.engine.save(folder)

    def checkpoint_bytes(self) -> int:
        """What all ranks together write of this role."""
        return self.engine.checkpoint_bytes

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

    role = "policy"

    def losses(
        self, groups: Sequence[Group], experience: ExperienceBatch, normalisers: Normalisers, kl_weight: float
    ) -> dict[str, Tensor]:
        algorithm: Algorithm = self.recipe.rlhf.algorithm
        sampling = self.recipe.rlhf.sampling
        mask = experience.mask
        normalisers = replace(normalisers, max_length=sampling.max_new_tokens)

        def aggregated(values: Tensor) -> Tensor:
            return aggregate(aggregation=algorithm.aggregation, values=values, mask=mask, normalisers=normalisers)

        def mean(values: Tensor) -> Tensor:
            """Statistics are means over tokens whatever the aggregation, so that runs can be compared."""
            return token_mean(values=values.detach().float(), mask=mask, num_tokens=normalisers.num_tokens)

        logprobs, entropy = self.engine(*self.batch(groups), sampling.temperature or 1.0)
        self._note_mismatch(logprobs.detach(), experience, normalisers)
        if algorithm.policy_loss is PolicyLossName.DPO:
            statistics = pair_losses(logprobs, experience, normalisers, algorithm.dpo_beta)
        else:
            surrogate = _surrogate(logprobs, experience, algorithm)
            importance = _importance(experience, algorithm.off_policy)
            statistics = {
                "policy_loss": aggregated(importance.weights * surrogate.loss),
                "clip_fraction": mean(surrogate.clipped),
                "ratio": mean(surrogate.ratio),
            }
            if algorithm.off_policy.correction is not ImportanceCorrection.NONE:
                statistics["importance_weight"] = mean(importance.weights)
                statistics["importance_limited"] = mean(importance.limited)
        loss = statistics["policy_loss"]
        if algorithm.entropy_weight > 0:
            loss = loss - algorithm.entropy_weight * aggregated(entropy)
        moved = kl_k3(policy_logprobs=experience.behaviour_logprobs, reference_logprobs=logprobs.detach())
        statistics |= {"entropy": mean(entropy), "kl_behaviour": mean(moved)}
        if algorithm.kl.place is KlPlace.LOSS and kl_weight > 0:
            kl = estimate_kl(
                estimator=algorithm.kl.estimator,
                policy_logprobs=logprobs,
                reference_logprobs=experience.reference_logprobs,
            )
            statistics["kl_loss"] = aggregated(kl)
            loss = loss + kl_weight * statistics["kl_loss"]
        return {"loss": loss, **statistics}

    def update(self, minibatches: Sequence[Minibatch], *, step: int, kl_weight: float) -> dict[str, float]:
        """Also measures how far rollout and trainer were apart before the update."""
        self._mismatch: dict[str, float] | None = {"mean": 0.0, "kl": 0.0}
        self._mismatch_max = 0.0
        return super().update(minibatches, step=step, kl_weight=kl_weight)

    def _note_mismatch(self, logprobs: Tensor, experience: ExperienceBatch, normalisers: Normalisers) -> None:
        """Adds a pass of the first minibatch: there the policy is still the one that should have sampled."""
        if self._mismatch is None or not experience.mask.any():
            return
        apart = mismatch(
            proximal_logprobs=logprobs, behaviour_logprobs=experience.behaviour_logprobs, mask=experience.mask
        )
        share = float(experience.mask.sum()) / normalisers.num_tokens
        self._mismatch = {name: total + share * apart._asdict()[name] for name, total in self._mismatch.items()}
        self._mismatch_max = max(self._mismatch_max, apart.max)

    def first_metrics(self) -> dict[str, float]:
        """The mismatch of rollout and trainer: mean and largest difference of logprobs, and KL, in nats."""
        assert self._mismatch is not None
        metrics = self.engine.sum_over_ranks(self._mismatch)
        metrics["max"] = self.engine.max_over_ranks(self._mismatch_max)
        self._mismatch = None
        return {f"mismatch/{name}": value for name, value in metrics.items()}

    def weights(self, version: int) -> Weights:
        """The trained parameters, on rank 0; all ranks must call it."""
        return Weights(version, self.engine.gather(trainable_only=True))


def pair_losses(
    logprobs: Tensor, experience: ExperienceBatch, normalisers: Normalisers, beta: float
) -> dict[str, Tensor]:
    """DPO's loss of groups that hold a better completion and then a worse one, and how well these are told apart."""
    ratios = ((logprobs - experience.reference_logprobs) * experience.mask).sum(1)
    chosen, rejected = ratios[0::2], ratios[1::2]
    is_learned, num_pairs = experience.mask.any(1)[0::2], normalisers.num_completions / 2
    rewards = (beta * (chosen - rejected) * is_learned).detach()
    return {
        "policy_loss": dpo_loss(
            chosen=chosen,
            rejected=rejected,
            margin=torch.zeros_like(chosen),
            weight=is_learned.to(chosen.dtype),
            total_weight=num_pairs,
            beta=beta,
        ),
        "reward_accuracy": (rewards > 0).sum() / num_pairs,
        "reward_margin": rewards.sum() / num_pairs,
    }


def _surrogate(logprobs: Tensor, experience: ExperienceBatch, algorithm: Algorithm) -> Surrogate:
    return policy_surrogate(
        name=algorithm.policy_loss,
        policy_logprobs=logprobs,
        proximal_logprobs=experience.proximal_logprobs,
        advantages=experience.advantages,
        mask=experience.mask,
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_above,
        dual_clip=algorithm.dual_clip,
    )


def _importance(experience: ExperienceBatch, off_policy: OffPolicy) -> ImportanceWeights:
    return importance_weights(
        correction=off_policy.correction,
        proximal_logprobs=experience.proximal_logprobs,
        behaviour_logprobs=experience.behaviour_logprobs,
        mask=experience.mask,
        cap=off_policy.cap,
        low=off_policy.low,
        high=off_policy.high,
    )
