"""The fusion model as RLlib's modules: one for policy gradients (PPO, A2C, REINFORCE, BC, MARWIL), one for Q-learning,
one for SAC with discrete actions.

`model_config` of a module holds `fusion` (the settings), `cached` (whether observations are features of frozen
encoders, which the module then does without), `start` (the weights of a fusion model to start from, and whose logits a
policy starts with) and, where actions are items that have something to see, `items` (see `ItemHead`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import torch
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.algorithms.sac.sac_learner import (
    ACTION_LOG_PROBS,
    ACTION_LOG_PROBS_NEXT,
    ACTION_PROBS,
    ACTION_PROBS_NEXT,
)
from ray.rllib.algorithms.sac.torch.default_sac_torch_rl_module import DefaultSACTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.schedules.scheduler import Scheduler
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.config.fusion import FusionSettings
from pipeline.decisions.environment import HISTORY
from pipeline.decisions.table import DecisionTable
from pipeline.models.fusion.model import FusionModel
from pipeline.models.fusion.outputs import FusionOutput
from pipeline.models.fusion.samples import PRESENT, Inputs

LEAST_PROBABILITY = 1e-8
HEAD = "head."


def fusion_model(settings: FusionSettings, *, cached: bool) -> FusionModel:
    """The fusion model; where features are cached without its encoders, which nobody would ask, or send to runners."""
    model = FusionModel(settings, 1, load_encoders=not cached)
    if cached:
        for each in model.modalities:
            model.encoders[each.value] = nn.Identity()
    return model


class FusionEncoder(nn.Module):
    """An observation as one vector: the fused embedding [B, D], and what was done in the session behind it.

    size: D, and with a history D + A.
    """

    def __init__(self, model_config: dict[str, Any], observations: gym.spaces.Dict) -> None:
        super().__init__()
        settings = FusionSettings.model_validate(model_config["fusion"])
        self.model = fusion_model(settings, cached=bool(model_config.get("cached")))
        if model_config.get("start"):
            self.model.load_state_dict(_started(model_config["start"], self.model), strict=False)
        history = observations[HISTORY].shape if HISTORY in observations.spaces else None
        self.size = self.model.embedding_size + (history[0] if history else 0)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """RLlib's batch with `obs` -> `encoder_out` float32 [B, size]."""
        observations: dict[str, Tensor] = batch[Columns.OBS]
        embedding = self.fused(observations).embedding
        if HISTORY in observations:
            embedding = torch.cat([embedding, observations[HISTORY]], dim=-1)
        return {ENCODER_OUT: embedding}

    def fused(self, observations: dict[str, Tensor]) -> FusionOutput:
        """What the fusion model makes of observations: presence and masks are true above a half."""
        return self.model(inputs_of(observations))


def _started(path: str, model: FusionModel) -> dict[str, Tensor]:
    """Weights of a fusion model on disk that this one has as well, but for the head, which is another."""
    own = model.state_dict()
    return {name: each for name, each in load_file(path).items() if name in own and not name.startswith(HEAD)}


def start_policy(module: FusionPolicyModule | FusionSACModule) -> None:
    """Lets the logits of a policy be those of the model that it starts from; what is new to it has none."""
    settings = cast(dict[str, Any], module.model_config)
    if settings.get("start") and isinstance(module.pi, nn.Linear):
        state = load_file(settings["start"])
        weight, bias = state[f"{HEAD}weight"], state[f"{HEAD}bias"]
        with torch.no_grad():
            module.pi.weight.zero_()[: len(weight), : weight.shape[1]] = weight
            module.pi.bias[: len(bias)] = bias


def inputs_of(observations: dict[str, Tensor]) -> Inputs:
    """The fusion model's inputs in an observation."""
    inputs = {name: each for name, each in observations.items() if name != HISTORY}
    return {name: each > 0.5 if name == PRESENT or name.endswith("_mask") else each for name, each in inputs.items()}


class ItemHead(nn.Module):
    """Scores of items by what they show and say: logits_k = <W e, item_k> / sqrt(D) + (V e + b)_k; actions that are no
    items have the second term alone.

    Items are rows of a `DecisionTable`, raw or of cached features, and have a fusion model of their own.
    items: `fusion`, `cached` and `path`, the table's file.
    """

    def __init__(self, size: int, num_actions: int, items: dict[str, Any]) -> None:
        super().__init__()
        self.model = fusion_model(FusionSettings.model_validate(items["fusion"]), cached=bool(items.get("cached")))
        for name, array in DecisionTable.load(Path(items["path"])).inputs.items():
            self.register_buffer(f"input_{name}", torch.from_numpy(array), persistent=False)
        self.query = nn.Linear(size, self.model.embedding_size)
        self.plain = nn.Linear(size, num_actions)

    def forward(self, embedding: Tensor) -> Tensor:
        """[B, size] -> [B, A]."""
        inputs = {name.removeprefix("input_"): each for name, each in self.named_buffers(recurse=False)}
        keys = self.model(inputs).embedding
        scores = self.query(embedding) @ keys.T / keys.shape[-1] ** 0.5
        others = self.plain(embedding)
        return torch.cat([others[:, : len(keys)] + scores, others[:, len(keys) :]], dim=-1)


def action_head(module: Any, size: int) -> nn.Module:
    """What gives each action a number: [B, size] -> [B, A]."""
    num_actions = int(module.action_space.n)
    items = module.model_config.get("items")
    return ItemHead(size, num_actions, items) if items else nn.Linear(size, num_actions)


class FusionPolicyModule(TorchRLModule, ValueFunctionAPI):
    """Logits of a policy and the value of a state, both of one embedding."""

    def setup(self) -> None:
        """Builds the networks."""
        assert isinstance(self.model_config, dict)
        self.encoder = FusionEncoder(self.model_config, cast(gym.spaces.Dict, self.observation_space))
        self.pi = action_head(self, self.encoder.size)
        start_policy(self)
        self.vf = nn.Linear(self.encoder.size, 1)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.pi(self.encoder(batch)[ENCODER_OUT])}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        embedding = self.encoder(batch)[ENCODER_OUT]
        return {Columns.EMBEDDINGS: embedding, Columns.ACTION_DIST_INPUTS: self.pi(embedding)}

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Values [B] of the observations of a batch, or of their embeddings."""
        if embeddings is None:
            embeddings = self.encoder(batch)[ENCODER_OUT]
        return self.vf(embeddings).squeeze(-1)


class FusionQModule(DefaultDQNTorchRLModule):
    """Q values; with `dueling` as V + A - mean A (Wang et al. 2016, arXiv 1511.06581)."""

    def setup(self) -> None:
        """Builds the networks; RLlib's own class makes and uses the targets."""
        settings = cast(dict[str, Any], self.model_config)
        self.uses_dueling = bool(settings["dueling"])
        self.uses_double_q = bool(settings["double_q"])
        self.num_atoms = 1
        self.epsilon_schedule = Scheduler(fixed_value_or_schedule=settings["epsilon"], framework="torch")
        self.encoder = FusionEncoder(settings, cast(gym.spaces.Dict, self.observation_space))
        self.af = action_head(self, self.encoder.size)
        if self.uses_dueling:
            self.vf = nn.Linear(self.encoder.size, 1)

    def get_initial_state(self) -> dict[str, Any]:
        """It has no state."""
        return {}


class FusionSACModule(DefaultSACTorchRLModule):
    """A policy and two Q functions, each with a fusion model of its own (Christodoulou 2019, arXiv 1910.07207)."""

    def setup(self) -> None:
        """Builds the networks; RLlib's own class makes and uses the targets."""
        settings = cast(dict[str, Any], self.model_config)
        observations = cast(gym.spaces.Dict, self.observation_space)
        self.twin_q = bool(settings["twin_q"])
        self.pi_encoder = FusionEncoder(settings, observations)
        self.pi = action_head(self, self.pi_encoder.size)
        start_policy(self)
        if not self.inference_only:
            self.qf_encoder = FusionEncoder(settings, observations)
            self.qf = action_head(self, self.qf_encoder.size)
            if self.twin_q:
                self.qf_twin_encoder = FusionEncoder(settings, observations)
                self.qf_twin = action_head(self, self.qf_twin_encoder.size)

    def _forward_train_discrete(self, batch: dict[str, Any]) -> dict[str, Any]:
        """RLlib takes the logarithm of a softmax, which is -inf for an action that is never taken, and 0 times that is
        no number."""
        output = super()._forward_train_discrete(batch)
        for probabilities, logarithms in (
            (ACTION_PROBS, ACTION_LOG_PROBS),
            (ACTION_PROBS_NEXT, ACTION_LOG_PROBS_NEXT),
        ):
            output[logarithms] = output[probabilities].clamp_min(LEAST_PROBABILITY).log()
        return output
