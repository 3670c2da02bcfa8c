"""Checkpoints in and out: ordinary Hugging Face directories, a scalar head beside the model where a role has one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import ConfigError, Dtype
from pipeline.models.architectures import Architecture, architecture_of
from pipeline.models.forward import Policy, RewardHead, RewardModel, ScalarHead, ValueModel
from pipeline.models.parts import ADAPTER_DIRECTORY, MODEL_PREFIX, learns_adapters_alone, merged, save_adapter
from pipeline.records import OVERALL

HEAD_FILE = "head.safetensors"
CRITERIA = "criteria"
"""In that file's metadata: the criteria of a reward model, as JSON."""
FINGERPRINT_FILE = "towers.sha256"
DTYPES = {Dtype.FLOAT32: torch.float32, Dtype.BFLOAT16: torch.bfloat16}


def load_model(path: Path, *, dtype: Dtype, trust_remote_code: bool) -> tuple[Any, Architecture]:
    """The transformers model in a checkpoint directory, and its architecture.

    Raises:
        FileNotFoundError: the directory holds no checkpoint.
    """
    from transformers.utils import logging

    architecture = architecture_of(path, trust_remote_code=trust_remote_code)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = architecture.model_class().from_pretrained(
        path, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code, local_files_only=True
    )
    return model.eval(), architecture


def load_policy(path: Path, *, dtype: Dtype, trust_remote_code: bool) -> Policy:
    """A policy, reference or rollout copy.

    Raises:
        ValueError: the checkpoint is a reward model's or a critic's, whose vocabulary head would start at random.
    """
    if (path / HEAD_FILE).is_file():
        raise ValueError(f"{path}: {HEAD_FILE} marks a reward model or a critic; it has no vocabulary head")
    return Policy(*load_model(path, dtype=dtype, trust_remote_code=trust_remote_code))


def load_reward_model(
    path: Path,
    *,
    dtype: Dtype,
    trust_remote_code: bool,
    criteria: Sequence[str] = (OVERALL,),
    num_members: int = 1,
    weights: Mapping[str, float] | None = None,
) -> RewardModel:
    """A reward model; its head starts at random where the checkpoint has none.

    criteria, num_members: of such a head; else they are the checkpoint's. weights: of the criteria in the overall
    score; see `RewardModel.weigh`.
    """
    model, architecture = load_model(path, dtype=dtype, trust_remote_code=trust_remote_code)
    head = _read_head(path)
    if head:
        criteria, num_members = _heads(path, head)
    reward_model = RewardModel(model, architecture, RewardHead(hidden_size(model), criteria, num_members))
    if head:
        reward_model.head.load_state_dict({name: head[f"head.{name}"] for name in reward_model.head.state_dict()})
        means, covariances = _standardisation(head)
        reward_model.means.copy_(means)
        reward_model.covariances.copy_(covariances)
    reward_model.weigh(weights or {})
    return reward_model


def load_value_model(
    path: Path, *, dtype: Dtype, trust_remote_code: bool, weights: Mapping[str, float] | None = None
) -> ValueModel:
    """A critic, from a plain checkpoint, or from a reward model's: it then starts as the standardised overall reward.

    weights: of a reward model's criteria; see `RewardModel.weigh`.
    """
    head = _read_head(path)
    if "means" in head or "mean" in head:
        reward = load_reward_model(path, dtype=dtype, trust_remote_code=trust_remote_code, weights=weights)
        value_model = ValueModel(reward.decoder.model, reward.decoder.architecture, ScalarHead(_width(reward)))
        _start_as_reward(value_model.head.linear, reward)
        return value_model
    model, architecture = load_model(path, dtype=dtype, trust_remote_code=trust_remote_code)
    value_model = ValueModel(model, architecture, ScalarHead(hidden_size(model)))
    if head:
        value_model.head.load_state_dict({name: head[f"head.{name}"] for name in value_model.head.state_dict()})
    return value_model


def _width(reward: RewardModel) -> int:
    return hidden_size(reward.decoder.model)


@torch.no_grad()
def _start_as_reward(linear: nn.Linear, reward: RewardModel) -> None:
    """Makes a map to scalars that to the mean over the ensemble of the standardised overall scores: that is linear."""
    shape = len(reward.head.criteria), reward.head.num_members
    for name, offset in (("weight", 0.0), ("bias", reward.mean)):
        by_member = getattr(reward.head.linear, name).unflatten(0, shape)
        combined = torch.tensordot(reward.weights, by_member.mean(1), dims=1)
        getattr(linear, name).copy_((combined - offset) / reward.scale)


def hidden_size(model: Any) -> int:
    """Width of the decoder."""
    return int(model.config.get_text_config().hidden_size)


def _read_head(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    file = path / HEAD_FILE
    return load_file(file) if file.is_file() else {}


def _heads(path: Path, head: Mapping[str, Tensor]) -> tuple[tuple[str, ...], int]:
    """Criteria and members of a reward model's head. One that names no criteria has one."""
    from safetensors import safe_open

    with safe_open(path / HEAD_FILE, "pt") as file:
        named = (file.metadata() or {}).get(CRITERIA)
    criteria = (OVERALL,) if named is None else tuple(json.loads(named))
    return criteria, len(head["head.linear.bias"]) // len(criteria)


def _standardisation(head: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Means and covariances of the criteria; reward models of one criterion had `mean` and `scale`."""
    if "means" in head:
        return head["means"], head["covariances"]
    return head.get("mean", torch.zeros(())).view(1), head.get("scale", torch.ones(())).square().view(1, 1)


def tower_fingerprint(model: Any, architecture: Architecture) -> str:
    """Hash of the towers' weights: equal towers give equal features."""
    return _fingerprint(model.state_dict(), architecture)


def _fingerprint(weights: Mapping[str, Tensor], architecture: Architecture) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        if architecture.is_tower(name):
            digest.update(name.encode())
            digest.update(tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def check_same_towers(paths: Mapping[str, Path], *, cure: str = "train the reward model again") -> None:
    """Makes sure that roles which share tower features have the same towers; `paths` names their checkpoints by role.

    Checkpoints that Polyphony did not write keep no fingerprint and are taken on trust.

    Raises:
        ConfigError: they differ.
    """
    found = {
        role: file.read_text(encoding="utf-8")
        for role, path in paths.items()
        if (file := path / FINGERPRINT_FILE).is_file()
    }
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{role} {paths[role]} ({fingerprint[:8]})" for role, fingerprint in found.items())
        raise ConfigError(f"roles share tower features, but their towers differ: {listed}; {cure}")


def save_checkpoint(directory: Path, *, module: nn.Module, state: Mapping[str, NDArray[Any]], source: Path) -> None:
    """Writes a role's module as a Hugging Face directory, all at once, with adapters merged.

    Where nothing but adapters learned, they lie beside it as well.

    Args:
        state: parameters and buffers by their names in `module`, gathered from all shards.
        source: the checkpoint that the processor is copied from.
    """
    from safetensors.numpy import save_file
    from transformers import AutoProcessor

    decoder: Any = module.decoder
    plain = merged(module, state)
    weights = {
        name.removeprefix(MODEL_PREFIX): torch.from_numpy(np.array(array)).to(decoder.model.dtype)
        for name, array in plain.items()
        if name.startswith(MODEL_PREFIX)
    }
    head = {name: np.array(array) for name, array in plain.items() if not name.startswith(MODEL_PREFIX)}
    with_temporary = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(with_temporary, ignore_errors=True)
    decoder.model.save_pretrained(with_temporary, state_dict=weights)
    AutoProcessor.from_pretrained(source).save_pretrained(with_temporary)
    (with_temporary / FINGERPRINT_FILE).write_text(_fingerprint(weights, decoder.architecture), encoding="utf-8")
    if head:
        criteria = getattr(module.head, "criteria", None)
        save_file(head, with_temporary / HEAD_FILE, metadata=criteria and {CRITERIA: json.dumps(criteria)})
    if learns_adapters_alone(module):
        save_adapter(with_temporary / ADAPTER_DIRECTORY, module=module, state=state, source=source)
    # Renamed, not removed, so that a whole checkpoint exists at every moment.
    retired = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    if directory.exists():
        directory.rename(retired)
    with_temporary.rename(directory)
    shutil.rmtree(retired, ignore_errors=True)
