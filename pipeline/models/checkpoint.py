"""Checkpoints in and out: ordinary Hugging Face directories, a scalar head beside the model where a role has one."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import ConfigError, Dtype
from pipeline.models.architectures import Architecture, architecture_of
from pipeline.models.forward import Policy, RewardModel, ScalarHead, ValueModel
from pipeline.models.parts import ADAPTER_DIRECTORY, MODEL_PREFIX, learns_adapters_alone, merged, save_adapter

HEAD_FILE = "head.safetensors"
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


def load_reward_model(path: Path, *, dtype: Dtype, trust_remote_code: bool) -> RewardModel:
    """A reward model; its head starts at random where the checkpoint has none."""
    model, architecture = load_model(path, dtype=dtype, trust_remote_code=trust_remote_code)
    reward_model = RewardModel(model, architecture, ScalarHead(hidden_size(model)))
    head = _read_head(path)
    if head:
        reward_model.head.load_state_dict({name: head[f"head.{name}"] for name in reward_model.head.state_dict()})
        reward_model.mean.copy_(head["mean"])
        reward_model.scale.copy_(head["scale"])
    return reward_model


def load_value_model(path: Path, *, dtype: Dtype, trust_remote_code: bool) -> ValueModel:
    """A critic, from a plain checkpoint, or from a reward model's: it then starts as the standardised reward."""
    model, architecture = load_model(path, dtype=dtype, trust_remote_code=trust_remote_code)
    value_model = ValueModel(model, architecture, ScalarHead(hidden_size(model)))
    head = _read_head(path)
    if head:
        mean, scale = head.get("mean", torch.zeros(())), head.get("scale", torch.ones(()))
        value_model.head.load_state_dict(
            {
                "linear.weight": head["head.linear.weight"] / scale,
                "linear.bias": (head["head.linear.bias"] - mean) / scale,
            }
        )
    return value_model


def hidden_size(model: Any) -> int:
    """Width of the decoder."""
    return int(model.config.get_text_config().hidden_size)


def _read_head(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    file = path / HEAD_FILE
    return load_file(file) if file.is_file() else {}


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


def check_same_towers(paths: Mapping[str, Path]) -> None:
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
        raise ConfigError(
            f"roles share tower features, but their towers differ: {listed}; train the reward model again"
        )


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
        save_file(head, with_temporary / HEAD_FILE)
    if learns_adapters_alone(module):
        save_adapter(with_temporary / ADAPTER_DIRECTORY, module=module, state=state, source=source)
    # Renamed, not removed, so that a whole checkpoint exists at every moment.
    retired = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    if directory.exists():
        directory.rename(retired)
    with_temporary.rename(directory)
    shutil.rmtree(retired, ignore_errors=True)
