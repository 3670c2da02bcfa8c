"""Freezing, adapters and learning rates by part of the model; adapters merged or apart on the way out."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import ConfigError, PartMode, PartName, Parts
from pipeline.models.architectures import Architecture
from pipeline.records import MediaKind

MODEL_PREFIX = "decoder.model."
ADAPTER_DIRECTORY = "adapter"
_ADAPTER = ".default.weight"


def part_of(name: str, architecture: Architecture) -> PartName:
    """The part that a parameter of a role's module belongs to, by its name there."""
    inner = name.removeprefix(MODEL_PREFIX)
    return architecture.part_of(inner) if inner != name else PartName.HEAD


def set_parts(module: nn.Module, parts: Parts, *, field: str) -> None:
    """Adds adapters and marks which parameters of a role's module learn.

    Args:
        field: where `parts` stands in the recipe, for errors.

    Raises:
        ConfigError: the model lacks a part that was given settings, a pattern matches nothing, or int8 weights are to
            learn.
    """
    decoder: Any = module.decoder
    _add_adapters(decoder, parts, field)
    names: dict[PartName, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in module.named_parameters():
        names.setdefault(part_of(name, decoder.architecture), []).append((name, parameter))
    for part_name in PartName:
        part, found = parts.of(part_name), names.get(part_name, [])
        if not found and (part.learning_rate is not None or part.keep_frozen):
            raise ConfigError(f"{field}.{part_name}: the model has no such part; it has {', '.join(sorted(names))}")
        for name, parameter in found:
            learns = part.mode is PartMode.TRAIN or (part.mode is PartMode.LORA and _is_adapter(name))
            if learns and not parameter.is_floating_point():
                raise ConfigError(
                    f"{field}.{part_name}.mode={part.mode}: {name} holds int8 weights, which cannot learn; start from "
                    "the checkpoint that they were made of"
                )
            parameter.requires_grad_(learns)
        for pattern in part.keep_frozen:
            matched = [parameter for name, parameter in found if fnmatchcase(name, pattern)]
            if not matched:
                raise ConfigError(_matches_nothing(f"{field}.{part_name}.keep_frozen", pattern, [n for n, _ in found]))
            for parameter in matched:
                parameter.requires_grad_(False)


def _add_adapters(decoder: Any, parts: Parts, field: str) -> None:
    lora = [name for name in PartName if parts.of(name).mode is PartMode.LORA]
    if not lora:
        return
    layers = {
        name: decoder.architecture.part_of(f"{name}.")
        for name, layer in decoder.model.named_modules()
        if isinstance(layer, nn.Linear) and decoder.architecture.part_of(f"{name}.") in lora
    }
    for part_name in lora:
        if part_name not in layers.values():
            raise ConfigError(f"{field}.{part_name}.mode=lora: the model has no such part, or no linear layer in it")
    for pattern in parts.lora.targets:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise ConfigError(_matches_nothing(f"{field}.lora.targets", pattern, list(layers)))
    from peft import LoraConfig, inject_adapter_in_model

    chosen = [name for name in layers if any(fnmatchcase(name, pattern) for pattern in parts.lora.targets)]
    for part_name in lora:
        if not any(layers[name] is part_name for name in chosen):
            raise ConfigError(f"{field}.{part_name}.mode=lora: no linear layer of it is among lora.targets")
    config = LoraConfig(r=parts.lora.rank, lora_alpha=parts.lora.alpha, target_modules=chosen)  # pyright: ignore[reportArgumentType]
    inject_adapter_in_model(config, decoder.model)


def _matches_nothing(field: str, pattern: str, names: Sequence[str]) -> str:
    return f"{field}: {pattern!r} matches nothing; names here are such as {', '.join(names[:3]) or '(none)'}"


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


@contextmanager
def adapters_off(module: nn.Module) -> Generator[None, None, None]:
    """Runs a module as it would be without its adapters.

    They still run, and count for nothing: under ZeRO every rank has to run the same modules each time.
    """
    layers: list[Any] = [layer for layer in module.modules() if hasattr(layer, "lora_A")]
    scalings = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        layer.scaling.update(dict.fromkeys(layer.scaling, 0.0))
    try:
        yield
    finally:
        for layer, scaling in zip(layers, scalings, strict=True):
            layer.scaling.update(scaling)


def live_kinds(parts: Parts, architecture: Architecture) -> dict[MediaKind, str]:
    """Kinds of media whose tower or projector learns, so that features go stale with each update, and the reason."""
    learning = set(parts.learning())
    reasons: dict[MediaKind, str] = {}
    for kind in architecture.modalities:
        by = learning & {architecture.towers[kind], PartName.PROJECTOR}
        if by:
            reasons[kind] = ", ".join(f"{name}.mode={parts.of(name).mode}" for name in sorted(by))
    return reasons


def parameter_groups(module: nn.Module, parts: Parts, *, learning_rate: float) -> list[dict[str, Any]]:
    """Optimizer groups of the parameters that learn: one a learning rate, in the order of the module."""
    decoder: Any = module.decoder
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            rate = parts.of(part_of(name, decoder.architecture)).learning_rate or learning_rate
            groups.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


def parameter_table(module: nn.Module, parts: Parts | None = None, *, learning_rate: float | None = None) -> str:
    """How many parameters of each part learn, how and at which rate, as a printable table."""
    decoder: Any = module.decoder
    counts: dict[PartName, list[int]] = {}
    for name, parameter in module.named_parameters():
        row = counts.setdefault(part_of(name, decoder.architecture), [0, 0])
        row[0 if parameter.requires_grad else 1] += _numel(parameter)
    lines = [f"{'part':<16}{'trainable':>14}{'frozen':>14}  mode    rate"]
    for name in PartName:
        if name in counts:
            trainable, frozen = counts[name]
            mode = parts.of(name).mode if parts else PartMode.FREEZE if not trainable else PartMode.TRAIN
            rate = (parts.of(name).learning_rate if parts else None) or learning_rate
            shown = f"{rate:g}" if rate and trainable else "-"
            lines.append(f"{name:<16}{trainable:>14,}{frozen:>14,}  {mode:<8}{shown}")
    return "\n".join(lines)


def _numel(parameter: nn.Parameter) -> int:
    # Under ZeRO-3 the parameter itself is empty and its true size stands beside it.
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def merged(module: nn.Module, state: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """`state` (parameters by their names in `module`) as a model without adapters has it: W + alpha / rank * B @ A."""
    layers: dict[str, Any] = {f"{name}.": layer for name, layer in module.named_modules() if hasattr(layer, "lora_A")}
    plain: dict[str, NDArray[Any]] = {}
    for name, array in state.items():
        if _is_adapter(name):
            continue
        plain[name.replace(".base_layer.", ".")] = array
    for prefix, layer in layers.items():
        down, up = (state[f"{prefix}lora_{side}{_ADAPTER}"] for side in "AB")
        weight = plain[f"{prefix}weight"]
        plain[f"{prefix}weight"] = weight + np.float32(layer.scaling["default"]) * (up @ down).astype(weight.dtype)
    return plain


def save_adapter(directory: Path, *, module: nn.Module, state: Mapping[str, NDArray[Any]], source: Path) -> None:
    """Writes the adapters in PEFT's format; `PeftModel.from_pretrained(base, directory)` loads them."""
    from safetensors.torch import save_file

    decoder: Any = module.decoder
    config: Any = next(iter(decoder.model.peft_config.values()))
    directory.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {}
    for name, array in state.items():
        if _is_adapter(name):
            key = name.removeprefix(MODEL_PREFIX).replace(_ADAPTER, ".weight")
            weights[f"base_model.model.{key}"] = torch.from_numpy(np.array(array))
    save_file(weights, directory / "adapter_model.safetensors")
    described = {**config.to_dict(), "base_model_name_or_path": str(source), "inference_mode": True}
    described["target_modules"] = sorted(config.target_modules)
    (directory / "adapter_config.json").write_text(json.dumps(described, default=str, indent=2), encoding="utf-8")


def learns_adapters_alone(module: nn.Module) -> bool:
    """Whether adapters hold all that the module learned, so that the base and they give the whole of it."""
    learning = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    return bool(learning) and all(map(_is_adapter, learning))
