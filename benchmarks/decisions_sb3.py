"""DQN, A2C and PPO by Stable-Baselines3 and by us, on the same environment and the same decisions: learning curves.

    python -m benchmarks.decisions_sb3 [num_decisions] [seed]

Both see the same cached features in the same order, in as many environments; theirs go through a network of their own,
a flattened observation and one hidden layer, with settings as near to ours as theirs have them. It prints the mean
regret of each window of decisions, and as its last line `{"benchmark": "decisions_sb3", "ours": ..., "theirs": ...}`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from jobs.command import connect
from pipeline.config import load_recipe
from pipeline.config.decide import Decide, DecisionAlgorithm
from pipeline.decisions.contest import Contest, curve
from pipeline.decisions.environment import DecisionEnv
from pipeline.decisions.material import TRAIN, of_world
from pipeline.decisions.online import Scene

RECIPE = Path(__file__).parent.parent / "jobs" / "recipes" / "recommendation.yaml"
NAMES = (DecisionAlgorithm.DQN, DecisionAlgorithm.A2C, DecisionAlgorithm.PPO)


class Regrets(BaseCallback):
    """Keeps the regret of each session as it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[float] = []

    def _on_step(self) -> bool:
        ended = zip(self.locals["infos"], self.locals["dones"], strict=True)
        self.found += [float(infos["regret"]) for infos, done in ended if done]
        return True


def theirs(name: DecisionAlgorithm, settings: Decide, scene: Scene, *, seed: int) -> np.ndarray:
    """Regrets of Stable-Baselines3, float64 [T]."""
    num = settings.num_envs

    def maker(stream: int) -> Any:
        def make() -> DecisionEnv:
            return scene.environment(stream=stream, num_streams=num)

        return make

    environments = DummyVecEnv([maker(stream) for stream in range(num)])
    shared: dict[str, Any] = {"gamma": settings.gamma, "seed": seed, "policy_kwargs": {"net_arch": [64]}}
    match name:
        case DecisionAlgorithm.DQN:
            own = settings.dqn
            model: Any = DQN(
                "MultiInputPolicy",
                environments,
                learning_rate=own.learning_rate,
                buffer_size=own.buffer_size,
                learning_starts=own.warmup_steps,
                batch_size=own.batch_size,
                # One step of each environment, then as many updates as let each decision be learned as often as ours.
                train_freq=1,
                gradient_steps=max(1, round(own.intensity * num / own.batch_size)),
                target_update_interval=own.target_steps,
                exploration_fraction=min(1.0, own.epsilon_steps / settings.num_decisions),
                exploration_final_eps=own.epsilon[1],
                **shared,
            )
        case DecisionAlgorithm.A2C:
            gradient = settings.a2c
            model = A2C(
                "MultiInputPolicy",
                environments,
                learning_rate=gradient.learning_rate,
                n_steps=max(1, gradient.batch_size // num),
                ent_coef=gradient.entropy_weight,
                vf_coef=gradient.value_weight,
                gae_lambda=gradient.gae_lambda,
                normalize_advantage=True,  # as RLlib's GAE does
                use_rms_prop=False,
                **shared,
            )
        case _:
            gradient = settings.ppo
            model = PPO(
                "MultiInputPolicy",
                environments,
                learning_rate=gradient.learning_rate,
                n_steps=max(1, gradient.batch_size // num),
                batch_size=gradient.minibatch_size,
                n_epochs=gradient.num_epochs,
                ent_coef=gradient.entropy_weight,
                vf_coef=gradient.value_weight,
                gae_lambda=gradient.gae_lambda,
                clip_range=gradient.clip,
                **shared,
            )
    regrets = Regrets()
    model.learn(settings.num_decisions, callback=regrets)
    return np.array(regrets.found[: settings.num_decisions])


def main(num_decisions: int, seed: int) -> dict[str, Any]:
    """Runs both, and returns what the last line says."""
    torch.set_num_threads(1)
    connect(address="local", num_cpus=2, object_store_memory=200_000_000)
    with tempfile.TemporaryDirectory(prefix="decisions-") as folder:
        overrides = [
            f"run.directory={folder}",
            f"decide.num_decisions={num_decisions}",
            f"decide.world.train_wishes={num_decisions}",
            "decide.warm_start=false",  # theirs start from nothing
        ]
        settings = load_recipe(RECIPE, overrides).decide
        contest = Contest(of_world(settings, Path(folder), seed=seed), settings, Path(folder), seed=seed)
        curves: dict[str, dict[str, np.ndarray]] = {"ours": {}, "theirs": {}}
        for name in NAMES:
            curves["ours"][name.value] = contest.online(name, watch=lambda step, metrics: None).regrets
            curves["theirs"][name.value] = theirs(name, settings, contest.scene(TRAIN), seed=seed)
    every = max(1, num_decisions // 10)
    for name in NAMES:
        for side, found in curves.items():
            points = "  ".join(f"{value:.3f}" for _, value in curve(found[name.value], every))
            print(f"{name.value:5} {side:7} {points}", flush=True)
    summary: dict[str, Any] = {"benchmark": "decisions_sb3", "num_decisions": num_decisions, "seed": seed}
    for side, found in curves.items():
        summary[side] = {
            name: {"mean": float(regrets.mean()), "last": float(regrets[-every:].mean())}
            for name, regrets in found.items()
        }
    print(json.dumps(summary), flush=True)
    return summary


if __name__ == "__main__":
    main(int((sys.argv[1:2] or ["4000"])[0]), int((sys.argv[2:3] or ["0"])[0]))
