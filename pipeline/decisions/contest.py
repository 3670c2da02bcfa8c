"""Algorithms that meet the same decisions: what each has lost, one after the other, and what it does in the end.

Material -> encoders, frozen or not -> tables on disk -> online algorithms (online.py)  -> Outcome
                                                      -> from the log, random, LinUCB   -> Outcome
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.dqn.dqn_learner import QF_PREDS
from ray.rllib.core.columns import Columns
from safetensors.torch import save_file

from pipeline.config import ConfigError
from pipeline.config.decide import Decide, DecisionAlgorithm, DecisionReward
from pipeline.config.fusion import FusionSettings
from pipeline.decisions.bandits import LinUCB, fixed_features
from pipeline.decisions.environment import HISTORY, Session, order
from pipeline.decisions.estimators import examined_rewards
from pipeline.decisions.explanation import Probabilities
from pipeline.decisions.features import cached_features
from pipeline.decisions.material import LOG, TRAIN, Material
from pipeline.decisions.modules import FusionQModule
from pipeline.decisions.offline import learn_offline, offline_study
from pipeline.decisions.online import Evaluation, OnlineRun, Policy, Scene, evaluate, greedy
from pipeline.decisions.records import Log
from pipeline.decisions.supervised import ClickModel, Fit, inverse_propensities, learn_clicks
from pipeline.decisions.table import PRESENT, DecisionTable
from pipeline.models.fusion.model import FEATURES, FusionModel

TEMPERATURE = 0.1
"""Of the softmax over Q values where probabilities are asked for, as in explanations."""


@dataclass(frozen=True)
class Outcome:
    """regrets: float64 [T], of the decisions in their order. evaluations: by split, of the policy that it ended with.
    probabilities: of that policy over a table's inputs; None where it has none."""

    name: DecisionAlgorithm
    regrets: NDArray[np.float64]
    evaluations: Mapping[str, Evaluation]
    probabilities: Probabilities | None = None


class Contest:
    """The decisions of a run, and what everybody starts with."""

    def __init__(self, material: Material, settings: Decide, directory: Path, *, seed: int) -> None:
        """Encodes what is to be encoded, and writes the tables that environments read."""
        self.material, self.settings, self.directory, self.seed = material, settings, directory, seed
        self.session = Session(settings.session_length, settings.question_cost)
        self.tables = self._encoded() if settings.cache else dict(material.tables)
        # Raw pictures and sounds are large, and nobody asks for them any more.
        self.material = replace(material, tables=self.tables)
        for split, table in self.tables.items():
            table.save(self._path(split))

    @property
    def model_config(self) -> dict[str, Any]:
        """Of RLlib's modules."""
        return {"fusion": self.material.fusion.model_dump(mode="json"), "cached": self.settings.cache}

    @cached_property
    def start(self) -> Path:
        """The file of what `supervised` learned, on the inputs of the tables."""
        path = self.directory / "decisions" / "start.safetensors"
        save_file({name: each.contiguous() for name, each in self.learned.model.state_dict().items()}, path)
        return path

    def scene(self, split: str) -> Scene:
        """Where a split is decided."""
        table = self.tables[split]
        reward = self.settings.reward if split == TRAIN else DecisionReward.TRUTH
        return Scene(
            table=str(self._path(split)),
            encoder_key=table.encoder_key,
            reward=reward,
            live=self.settings.live if split == TRAIN else None,
            session=self.session,
            order_seed=self.seed,
        )

    @cached_property
    def supervised(self) -> ClickModel:
        """What learns from logged clicks as if they were labels, on raw modalities."""
        return self._learned(self._new_model(), self._log_table(raw=True))

    @cached_property
    def learned(self) -> ClickModel:
        """The same on what the tables hold, which are features where encoders are frozen."""
        return self._learned(self._new_head(), self._log_table()) if self.settings.cache else self.supervised

    @cached_property
    def sequence(self) -> NDArray[np.int64]:
        """Rows of the train split in the order in which everybody meets them: int64 [T]."""
        num, length = self.settings.num_decisions, len(self.tables[TRAIN])
        return np.concatenate([order(length, self.seed, round) for round in range(-(-num // length))])[:num]

    def online(
        self, name: DecisionAlgorithm, *, resume: bool = False, watch: Callable[[int, dict[str, float]], None]
    ) -> Outcome:
        """An algorithm of RLlib's stack. `watch` is called with each iteration's number and metrics."""
        run = OnlineRun(
            name,
            self.settings,
            self.scene(TRAIN),
            seed=self.seed,
            model=self.model_config | ({"start": str(self.start)} if self.settings.warm_start else {}),
            directory=self.directory / "checkpoints" / "decide" / name.value,
            resume=resume,
        )
        every = self.settings.evaluate_every
        try:
            while not run.done:
                metrics = run.step()
                if every and run.iteration % every == 0:
                    found = evaluate(greedy(run.module), self.scene(self.settings.validation_split))
                    metrics["validation/regret"] = float(found.regrets.mean())
                watch(run.iteration, metrics)
            evaluations = self._evaluations(greedy(run.module))
            regrets = np.array(run.regrets[: self.settings.num_decisions])
            return Outcome(name, regrets, evaluations, module_probabilities(run.module))
        finally:
            run.close()

    def offline(self, name: DecisionAlgorithm) -> Outcome:
        """A policy that was learned from the log, and meets the decisions as it is."""
        if name is DecisionAlgorithm.SUPERVISED:
            policy: Any = self.learned
        else:
            log = self._log()
            policy, _ = learn_offline(
                name,
                self._log_table(),
                log,
                rewards=self._examined(),
                model=self.model_config,
                settings=self.settings.offline,
                gamma=self.settings.gamma,
                seed=self.seed,
            )
        return self._fixed(name, policy.probabilities)

    def random(self) -> Outcome:
        """Chance."""
        num_actions = self.tables[TRAIN].num_actions + self.session.asks
        rng = np.random.default_rng((self.seed, 11))

        def policy(observations: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
            return rng.integers(num_actions, size=len(observations[PRESENT]))

        return Outcome(DecisionAlgorithm.RANDOM, self._met(policy), self._evaluations(policy))

    def linucb(self) -> Outcome:
        """LinUCB on the same features, or without frozen encoders on fixed ones of its own."""
        table, states = self.tables[TRAIN], {split: self._states(split) for split in self._splits}
        bandit = LinUCB(table.num_actions, states[TRAIN].shape[1], alpha=self.settings.linucb_alpha)
        feedback, rng = self.scene(TRAIN).feedback(), np.random.default_rng((self.seed, 12))
        regrets = np.zeros(len(self.sequence))
        for place, row in enumerate(self.sequence.tolist()):
            state, rewards = states[TRAIN][row], table.rewards[row]
            action = int(bandit.probabilities(state[None])[0].argmax())
            bandit.update(state, action, feedback(row, action, rng))
            regrets[place] = rewards.max() - rewards[action]
        evaluations = {
            split: _of_actions(self.tables[split], bandit.means(states[split]).argmax(1)) for split in self._splits[1:]
        }
        return Outcome(DecisionAlgorithm.LINUCB, regrets, evaluations)

    def study(self, names: Sequence[DecisionAlgorithm]) -> dict[str, Any]:
        """What policies that learn from a part of the log are worth by the rest of it, and in truth."""
        table = self._log_table()
        return offline_study(
            names,
            table,
            self._log(),
            rewards=self._examined(),
            model=self.model_config,
            reward_model=self._new_head,
            settings=self.settings.offline,
            true_rewards=table.rewards,
            gamma=self.settings.gamma,
            seed=self.seed,
        )

    @property
    def _splits(self) -> tuple[str, ...]:
        return TRAIN, self.settings.validation_split, self.settings.test_split

    def _path(self, split: str) -> Path:
        return self.directory / "decisions" / f"{split}.safetensors"

    def _encoded(self) -> dict[str, DecisionTable]:
        settings = self.settings
        model = self.supervised.model if settings.encoders_from_log else self._new_model()
        return {
            split: cached_features(
                table,
                model,
                self.directory / "features" / f"{split}.safetensors",
                pools=settings.pool,
                workers=settings.feature_workers,
            )
            for split, table in self.material.tables.items()
        }

    def _new_model(self, settings: FusionSettings | None = None) -> FusionModel:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return FusionModel(settings or self.material.fusion, len(self.material.actions))

    def _new_head(self) -> FusionModel:
        """A model for inputs as the tables have them: of features, it needs no encoders."""
        model = self._new_model()
        if self.settings.cache:
            for each in model.modalities:
                model.encoders[each.value] = torch.nn.Identity()
        return model

    def _fit(self) -> Fit:
        own = self.settings.offline
        return Fit(own.loss, own.num_steps, own.batch_size, own.learning_rate, self.seed)

    def _learned(self, model: FusionModel, table: DecisionTable) -> ClickModel:
        log, corrects = self._log(), self.settings.offline.correct_positions
        rewards = self._examined() if corrects else log.rewards
        weights = inverse_propensities(log) if corrects else None
        return learn_clicks(model, table.inputs, actions=log.actions, rewards=rewards, weights=weights, fit=self._fit())

    def _log(self) -> Log:
        if self.material.log is None:
            raise ConfigError("decide.algorithm: nothing was logged to learn from; use source=world, or an online one")
        return self.material.log

    def _log_table(self, *, raw: bool = False) -> DecisionTable:
        self._log()
        return (self.material.tables if raw else self.tables)[LOG]

    def _examined(self) -> NDArray[np.float64]:
        assert self.material.examination is not None
        return examined_rewards(self._log(), self.material.examination)

    def _fixed(self, name: DecisionAlgorithm, probabilities: Probabilities) -> Outcome:
        def policy(observations: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
            states = {key: each for key, each in observations.items() if key != HISTORY}
            return probabilities(states).argmax(1)

        return Outcome(name, self._met(policy), self._evaluations(policy), probabilities)

    def _met(self, policy: Policy) -> NDArray[np.float64]:
        """Regrets of a policy that does not change, in the order of the decisions: [T]."""
        found = evaluate(policy, replace(self.scene(TRAIN), reward=DecisionReward.TRUTH))
        by_row = np.zeros(len(found.rows))
        by_row[found.rows] = found.regrets
        return by_row[self.sequence]

    def _evaluations(self, policy: Policy) -> dict[str, Evaluation]:
        return {split: evaluate(policy, self.scene(split)) for split in self._splits[1:]}

    def _states(self, split: str) -> NDArray[np.float32]:
        """States of a linear bandit, rows of length 1: float32 [N, D]."""
        inputs = self.tables[split].inputs
        if not any(name.endswith(FEATURES) for name in inputs):
            return fixed_features(self.material.samples[split])
        parts = [each.mean(1) for name, each in inputs.items() if name.endswith(FEATURES)]
        states = np.concatenate([*parts, inputs[PRESENT], np.ones((len(parts[0]), 1))], 1)
        return (states / np.linalg.norm(states, axis=1, keepdims=True)).astype(np.float32)


def _of_actions(table: DecisionTable, actions: NDArray[np.int64]) -> Evaluation:
    rows = np.arange(len(table))
    rewards = table.rewards[rows, actions].astype(np.float64)
    return Evaluation(rows, actions, table.rewards.max(1) - rewards, rewards)


def module_probabilities(module: Any) -> Probabilities:
    """What an RLlib module would do with which probability at the beginning of a session; Q values as a softmax."""
    space = module.observation_space

    def probabilities(states: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        num = len(states[PRESENT])
        # At the beginning of a session nothing was done in it.
        arrays = {HISTORY: np.zeros((num, *space[HISTORY].shape)), **states} if HISTORY in space.spaces else states
        observed = {name: torch.from_numpy(np.asarray(arrays[name], box.dtype)) for name, box in space.items()}
        with torch.no_grad():
            if isinstance(module, FusionQModule):
                logits: Any = module.compute_q_values({Columns.OBS: observed})[QF_PREDS] / TEMPERATURE
            else:
                logits = module.forward_inference({Columns.OBS: observed})[Columns.ACTION_DIST_INPUTS]
        return logits.softmax(1).numpy()

    return probabilities


def curve(regrets: NDArray[np.float64], every: int) -> Iterator[tuple[float, float]]:
    """Mean regret of each window of decisions, at its end."""
    for start in range(0, len(regrets) - every + 1, every):
        yield float(start + every), float(regrets[start : start + every].mean())
