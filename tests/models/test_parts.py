"""Freezing, adapters and learning rates by part, on both architectures; what is written out equals what was trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config import FROZEN, ConfigError, Dtype, LoopParts, Lora, Part, PartMode, PartName, Parts
from pipeline.models.architectures import architecture_of
from pipeline.models.batch import CompletionBatch, PromptBatch
from pipeline.models.checkpoint import load_model, load_policy, load_reward_model, save_checkpoint
from pipeline.models.forward import Policy
from pipeline.models.parts import (
    ADAPTER_DIRECTORY,
    learns_adapters_alone,
    live_kinds,
    merged,
    parameter_groups,
    parameter_table,
    part_of,
    set_parts,
)
from pipeline.records import MediaKind

LOAD: dict[str, Any] = {"dtype": Dtype.FLOAT32, "trust_remote_code": False}
Batch = tuple[PromptBatch, CompletionBatch]

# By hand, from the names that transformers gives; the first that fits counts, and all else is the language model.
PREFIXES = {
    "decoder.model.model.visual.merger.": PartName.PROJECTOR,
    "decoder.model.model.audio_tower.proj.": PartName.PROJECTOR,
    "decoder.model.visual.": PartName.VISION_TOWER,
    "decoder.model.model.visual.": PartName.VISION_TOWER,
    "decoder.model.model.audio_tower.": PartName.AUDIO_TOWER,
    "decoder.model.lm_head.": PartName.HEAD,
    "head.": PartName.HEAD,
}
WITH_LAYERS = (PartName.VISION_TOWER, PartName.AUDIO_TOWER, PartName.PROJECTOR, PartName.LANGUAGE_MODEL)


def _part(name: str) -> PartName:
    return next((part for prefix, part in PREFIXES.items() if name.startswith(prefix)), PartName.LANGUAGE_MODEL)


def _parts(**modes: Part) -> Parts:
    """All parts frozen but those named."""
    return Parts.model_validate({**{name: Part(mode=PartMode.FREEZE) for name in PartName}, **modes})


def _learning(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def _names(module: nn.Module, part: PartName) -> set[str]:
    return {name for name, _ in module.named_parameters() if _part(name) is part}


def _has(checkpoint: Path, part: PartName) -> bool:
    return part is not PartName.AUDIO_TOWER or MediaKind.AUDIO in architecture_of(checkpoint).modalities


def _state(module: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


@torch.no_grad()
def _logprobs(policy: nn.Module, batch: Batch) -> Tensor:
    return policy(*batch)[0]


@torch.no_grad()
def _train_adapters(module: nn.Module) -> None:
    """Gives every adapter a value of its own; a fresh one changes nothing."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in module.named_parameters():
        if ".lora_" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


LORA = Part(mode=PartMode.LORA)


@pytest.fixture
def adapted(checkpoint: Path) -> Policy:
    """A policy with trained adapters in all parts that can have some."""
    policy = load_policy(checkpoint, **LOAD)
    parts = {name: LORA for name in WITH_LAYERS if _has(checkpoint, name)}
    set_parts(policy, _parts(**parts, lora=Lora(rank=4, alpha=8)), field="parts")  # pyright: ignore[reportArgumentType]
    _train_adapters(policy)
    return policy


def test_every_parameter_belongs_to_the_part_that_its_name_says(checkpoint: Path) -> None:
    for module in (load_policy(checkpoint, **LOAD), load_reward_model(checkpoint, **LOAD)):
        found = {name: part_of(name, module.decoder.architecture) for name, _ in module.named_parameters()}
        assert found == {name: _part(name) for name in found}
        assert set(found.values()) == {part for part in PartName if _has(checkpoint, part)}


def test_by_default_all_learns_in_sft_and_all_but_the_towers_in_the_loop(checkpoint: Path) -> None:
    policy = load_policy(checkpoint, **LOAD)
    set_parts(policy, Parts(), field="parts")
    assert _learning(policy) == {name for name, _ in policy.named_parameters()}
    set_parts(policy, LoopParts(), field="parts")
    assert _learning(policy) == _names(policy, PartName.LANGUAGE_MODEL) | _names(policy, PartName.HEAD)
    set_parts(policy, FROZEN, field="parts")
    assert _learning(policy) == set()


@pytest.mark.parametrize("part", PartName)
def test_a_part_that_trains_alone_does_so_whole(checkpoint: Path, part: PartName) -> None:
    policy = load_policy(checkpoint, **LOAD)
    set_parts(policy, _parts(**{part: Part()}), field="parts")
    assert _learning(policy) == _names(policy, part)
    assert bool(_learning(policy)) == _has(checkpoint, part)


@pytest.mark.parametrize("part", WITH_LAYERS)
def test_fresh_adapters_learn_alone_and_change_nothing(checkpoint: Path, batch: Batch, part: PartName) -> None:
    if not _has(checkpoint, part):
        pytest.skip("this model has no such part")
    policy = load_policy(checkpoint, **LOAD)
    before = _logprobs(policy, batch)
    assert not learns_adapters_alone(policy)
    set_parts(policy, _parts(**{part: LORA}), field="parts")
    assert learns_adapters_alone(policy)
    learning = _learning(policy)
    assert learning and all(".lora_" in name and _part(name) is part for name in learning)
    assert torch.equal(_logprobs(policy, batch), before)
    _train_adapters(policy)
    assert (_logprobs(policy, batch) - before).abs().max() > 1e-4


def test_lora_targets_choose_the_layers(tiny_checkpoint: Path) -> None:
    policy = load_policy(tiny_checkpoint, **LOAD)
    set_parts(policy, _parts(language_model=LORA, lora=Lora(rank=2, targets=("*.q_proj",))), field="parts")  # pyright: ignore[reportArgumentType]
    layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in _learning(policy)}
    assert layers == {"q_proj"}
    shapes = {tuple(parameter.shape) for parameter in policy.parameters() if parameter.requires_grad}
    assert shapes == {(2, 128), (128, 2)}


def test_names_that_match_a_pattern_stay_frozen(checkpoint: Path) -> None:
    policy = load_policy(checkpoint, **LOAD)
    part = Part(keep_frozen=("*.embed_tokens.*", "*.layers.0.*"))
    set_parts(policy, _parts(language_model=part), field="parts")
    frozen = _names(policy, PartName.LANGUAGE_MODEL) - _learning(policy)
    assert frozen == {
        name for name in _names(policy, PartName.LANGUAGE_MODEL) if "embed_tokens" in name or ".layers.0." in name
    }


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"language_model": Part(keep_frozen=("*.layer.0.*",))},
            r"rlhf\.policy\.parts\.language_model\.keep_frozen: '\*\.layer\.0\.\*' matches nothing; "
            r"names here are such as decoder\.model\.model\.language_model\.",
        ),
        # A pattern of another part's names matches nothing in this one.
        (
            {"head": Part(keep_frozen=("*.visual.*",))},
            r"parts\.head\.keep_frozen: .*such as decoder\.model\.lm_head\.weight$",
        ),
        (
            {"language_model": LORA, "lora": Lora(targets=("*q_proj", "*query*"))},
            r"rlhf\.policy\.parts\.lora\.targets: '\*query\*' matches nothing; names here are such as model\.language_",
        ),
        (
            {"language_model": LORA, "vision_tower": LORA, "lora": Lora(targets=("model.language_model.*",))},
            r"rlhf\.policy\.parts\.vision_tower\.mode=lora: no linear layer of it is among lora\.targets",
        ),
    ],
)
def test_what_matches_nothing_is_an_error(checkpoint: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        set_parts(load_policy(checkpoint, **LOAD), _parts(**parts), field="rlhf.policy.parts")
    assert re.search(message, str(caught.value)), caught.value


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part(learning_rate=1e-4), r"parts\.audio_tower: the model has no such part; it has head, language_model, "),
        (Part(keep_frozen=("*",)), r"parts\.audio_tower: the model has no such part"),
        (LORA, r"parts\.audio_tower\.mode=lora: the model has no such part, or no linear layer in it"),
    ],
)
def test_settings_of_a_part_that_the_model_lacks_are_an_error(
    tiny_vl_checkpoint: Path, part: Part, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        set_parts(load_policy(tiny_vl_checkpoint, **LOAD), _parts(audio_tower=part), field="parts")


def test_each_learning_rate_has_a_group_and_each_learning_parameter_is_in_one(checkpoint: Path) -> None:
    policy = load_policy(checkpoint, **LOAD)
    parts = _parts(
        vision_tower=Part(learning_rate=1e-5),
        projector=Part(learning_rate=1e-3),
        language_model=Part(),
        head=Part(learning_rate=1e-3),
    )
    set_parts(policy, parts, field="parts")
    groups = {group["lr"]: group["params"] for group in parameter_groups(policy, parts, learning_rate=1e-4)}
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    found = {rate: {_part(names[id(parameter)]) for parameter in params} for rate, params in groups.items()}
    assert found == {
        1e-5: {PartName.VISION_TOWER},
        1e-3: {PartName.PROJECTOR, PartName.HEAD},
        1e-4: {PartName.LANGUAGE_MODEL},
    }
    grouped = [names[id(parameter)] for params in groups.values() for parameter in params]
    assert sorted(grouped) == sorted(_learning(policy))


def test_the_table_counts_every_parameter_once(checkpoint: Path, adapted: Policy) -> None:
    whole = load_policy(checkpoint, **LOAD)
    set_parts(whole, LoopParts(), field="parts")
    for policy in (whole, adapted):
        lines = [line.split() for line in parameter_table(policy).splitlines()]
        assert lines[0] == ["part", "trainable", "frozen", "mode", "rate"]
        counts = {name: [int(number.replace(",", "")) for number in row[:2]] for name, *row in lines[1:]}
        assert list(counts) == [part for part in PartName if _has(checkpoint, part)]
        assert sum(map(sum, counts.values())) == sum(parameter.numel() for parameter in policy.parameters())
        for part, (trainable, _) in counts.items():
            expected = sum(p.numel() for n, p in policy.named_parameters() if p.requires_grad and _part(n) == part)
            assert trainable == expected
    assert counts["head"] == [0, 1024 * 128]


def test_the_table_says_how_each_part_learns_and_at_which_rate(tiny_checkpoint: Path) -> None:
    reward = load_reward_model(tiny_checkpoint, **LOAD)
    parts = LoopParts.model_validate(
        {"vision_tower": {"mode": "lora", "learning_rate": 1e-5}, "lora": {"rank": 2, "targets": ["*.attn.proj"]}}
    )
    set_parts(reward, parts, field="parts")
    rows = {row[0]: row[1:] for row in map(str.split, parameter_table(reward, parts, learning_rate=2e-4).splitlines())}
    assert rows["head"] == ["129", "0", "train", "0.0002"]
    # A layer of 64 x 64 in its one block, of rank 2.
    assert (rows["vision_tower"][0], *rows["vision_tower"][2:]) == (str(2 * 2 * 64), "lora", "1e-05")
    assert (rows["projector"][0], *rows["projector"][2:]) == ("0", "freeze", "-")
    assert rows["language_model"][2:] == ["train", "0.0002"]


def test_what_is_merged_by_hand_is_what_is_merged() -> None:
    policy = nn.Module()
    layer = nn.Module()
    layer.lora_A = nn.Module()
    layer.scaling = {"default": 3.0}  # pyright: ignore[reportArgumentType]
    policy.proj = layer
    state = {
        "proj.base_layer.weight": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32),
        "proj.base_layer.bias": np.array([5.0, 6.0], np.float32),
        "proj.lora_A.default.weight": np.array([[1.0, 0.0]], np.float32),
        "proj.lora_B.default.weight": np.array([[2.0], [1.0]], np.float32),
        "other": np.array([7.0], np.float32),
    }
    found = merged(policy, state)
    assert found.keys() == {"proj.weight", "proj.bias", "other"}
    # B @ A = [[2, 0], [1, 0]], times 3.
    assert found["proj.weight"].tolist() == [[7.0, 2.0], [6.0, 4.0]]
    assert (found["proj.bias"].tolist(), found["other"].tolist()) == ([5.0, 6.0], [7.0])


def test_a_model_without_adapters_is_merged_to_itself(checkpoint: Path) -> None:
    policy = load_policy(checkpoint, **LOAD)
    state = _state(policy)
    found = merged(policy, state)
    assert found.keys() == state.keys() and all(found[name] is state[name] for name in state)


def test_the_export_is_a_plain_model_that_gives_the_adapted_models_logprobs(
    checkpoint: Path, batch: Batch, adapted: Policy, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "saved", module=adapted, state=_state(adapted), source=checkpoint)
    loaded = load_policy(tmp_path / "saved", **LOAD)
    assert not learns_adapters_alone(loaded)
    expected = _logprobs(adapted, batch)
    assert (_logprobs(loaded, batch) - expected).abs().max() < 2e-5
    assert (_logprobs(load_policy(checkpoint, **LOAD), batch) - expected).abs().max() > 1e-2


def test_peft_loads_the_adapter_onto_the_checkpoint_that_it_was_trained_on(
    checkpoint: Path, batch: Batch, adapted: Policy, tmp_path: Path
) -> None:
    from peft import PeftModel

    save_checkpoint(tmp_path / "saved", module=adapted, state=_state(adapted), source=checkpoint)
    model, architecture = load_model(checkpoint, **LOAD)
    PeftModel.from_pretrained(model, str(tmp_path / "saved" / ADAPTER_DIRECTORY))
    # The adapters now sit in `model` itself.
    assert (_logprobs(Policy(model, architecture), batch) - _logprobs(adapted, batch)).abs().max() < 2e-5


def test_there_is_no_adapter_apart_where_more_than_adapters_learned(tiny_checkpoint: Path, tmp_path: Path) -> None:
    policy = load_policy(tiny_checkpoint, **LOAD)
    set_parts(policy, _parts(language_model=LORA, head=Part()), field="parts")
    assert not learns_adapters_alone(policy)
    save_checkpoint(tmp_path / "saved", module=policy, state=_state(policy), source=tiny_checkpoint)
    assert not (tmp_path / "saved" / ADAPTER_DIRECTORY).exists()


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({}, {}),
        ({"language_model": LORA, "head": Part()}, {}),
        (
            {"vision_tower": LORA},
            {MediaKind.IMAGE: "vision_tower.mode=lora", MediaKind.VIDEO: "vision_tower.mode=lora"},
        ),
        ({"audio_tower": Part()}, {MediaKind.AUDIO: "audio_tower.mode=train"}),
        (
            {"projector": Part(), "audio_tower": LORA},
            {
                MediaKind.IMAGE: "projector.mode=train",
                MediaKind.VIDEO: "projector.mode=train",
                MediaKind.AUDIO: "audio_tower.mode=lora, projector.mode=train",
            },
        ),
    ],
)
def test_features_are_shared_unless_a_tower_or_the_projector_learns(
    checkpoint: Path, parts: dict[str, Part], expected: dict[MediaKind, str]
) -> None:
    architecture = architecture_of(checkpoint)
    found = live_kinds(_parts(**parts), architecture)
    assert found == {kind: reason for kind, reason in expected.items() if kind in architecture.modalities}
