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


def freeze_towers(module: nn.Module) -> None:
    """Stops gradients to the towers of a role's module; its other parameters train."""
    decoder: Any = module.decoder
    for name, parameter in decoder.model.named_parameters():
        if decoder.architecture.is_tower(name):
            parameter.requires_grad_(False)


def parameter_table(module: nn.Module) -> str:
    """How many parameters of each part train, as a printable table."""
    decoder: Any = module.decoder
    parts: dict[str, list[int]] = {}
    for name, parameter in module.named_parameters():
        inner = name.removeprefix("decoder.model.")
        part = "head" if name.startswith("head.") or inner.startswith("lm_head.") else "language model"
        if decoder.architecture.is_tower(inner):
            part = inner.split(".")[1]
        counts = parts.setdefault(part, [0, 0])
        counts[0 if parameter.requires_grad else 1] += _numel(parameter)
    lines = [f"{'part':<16}{'trainable':>14}{'frozen':>14}"]
    lines += [f"{part:<16}{trainable:>14,}{frozen:>14,}" for part, (trainable, frozen) in parts.items()]
    return "\n".join(lines)


def _numel(parameter: nn.Parameter) -> int:
    # Under ZeRO-3 the parameter itself is empty and its true size stands beside it.
    return int(getattr(parameter, "ds_numel", parameter.numel()))


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
    found = {role: file.read_text() for role, path in paths.items() if (file := path / FINGERPRINT_FILE).is_file()}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{role} {paths[role]} ({fingerprint[:8]})" for role, fingerprint in found.items())
        raise ConfigError(
            f"roles share tower features, but their towers differ: {listed}; train the reward model again"
        )


def save_checkpoint(directory: Path, *, module: nn.Module, state: Mapping[str, NDArray[Any]], source: Path) -> None:
    """Writes a role's module as a Hugging Face directory, all at once.

    Args:
        state: parameters and buffers by their names in `module`, gathered from all shards.
        source: the checkpoint that the processor is copied from.
    """
    from safetensors.numpy import save_file
    from transformers import AutoProcessor

    decoder: Any = module.decoder
    prefix = "decoder.model."
    weights = {
        name.removeprefix(prefix): torch.from_numpy(np.array(array)).to(decoder.model.dtype)
        for name, array in state.items()
        if name.startswith(prefix)
    }
    head = {name: np.array(array) for name, array in state.items() if not name.startswith(prefix)}
    with_temporary = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(with_temporary, ignore_errors=True)
    decoder.model.save_pretrained(with_temporary, state_dict=weights)
    AutoProcessor.from_pretrained(source).save_pretrained(with_temporary)
    (with_temporary / FINGERPRINT_FILE).write_text(_fingerprint(weights, decoder.architecture))
    if head:
        save_file(head, with_temporary / HEAD_FILE)
    # Renamed, not removed, so that a whole checkpoint exists at every moment.
    retired = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    if directory.exists():
        directory.rename(retired)
    with_temporary.rename(directory)
    shutil.rmtree(retired, ignore_errors=True)
