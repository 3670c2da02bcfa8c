"""The reward model's steps on real DeepSpeed worlds: mixed opinions, mixed modalities, and any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from actors.training.reward_model import load_module
from pipeline.config import ConfigError, Dtype, load_recipe
from pipeline.models.checkpoint import load_reward_model, save_checkpoint
from pipeline.records import EncodedPrompt, Opinion, Preference, Ranking, RaterKind, Rating
from tests import worlds
from tests.worlds import judging

SHARED: dict[str, Any] = {"rater": "anna", "rater_kind": RaterKind.HUMAN}


def _opinions(prompts: list[EncodedPrompt]) -> list[Opinion]:
    """Some of each kind, on prompts with and without media."""
    first, second, third, fourth, *_ = (prompt.id for prompt in prompts)
    three = ((40,), (50, 60, 61), (70, 71))
    return [
        Preference(first, (40, 41), (50,), "", "", **SHARED, margin=0.5),
        Preference(third, (60,), (61, 62, 63), "", "", **SHARED, is_tie=True, weight=0.2),
        Ranking(second, three, ("",) * 3, (2, 1, 2), **SHARED),
        Ranking(fourth, three[:2], ("",) * 2, (1, 2), **SHARED, weight=2.0),
        Rating(fourth, (40, 42), "", {"helpful": 0.75, "grounded": 0.0}, **SHARED),
        Rating(first, (43,), "", {"overall": 0.0}, **SHARED, weight=0.5),
        Rating(third, (44, 45, 46), "", {"grounded": 1.0}, **SHARED),
    ]


@pytest.mark.parametrize("stage", [0, 3])
def test_two_ranks_learn_what_one_does(tiny_checkpoint: Path, prompts: list[EncodedPrompt], stage: int) -> None:
    arguments = (str(tiny_checkpoint), _opinions(prompts), prompts, stage, 3)
    ((alone, moved),) = worlds.run(judging.trained, 1, *arguments)
    (steps, together), (others, _) = worlds.run(judging.trained, 2, *arguments)
    assert steps == others
    for one, two in zip(alone, steps, strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    assert judging.difference(moved, together) < 1e-2
    losses = [step["loss"] for step in alone]
    assert losses[0] > losses[1] > losses[2] and set(alone[0]) == {"loss", "accuracy", "rating_error"}


def test_a_reward_model_that_learns_on_keeps_its_heads(tiny_checkpoint: Path, tmp_path: Path) -> None:
    module = load_reward_model(
        tiny_checkpoint, dtype=Dtype.FLOAT32, trust_remote_code=False, criteria=("helpful", "fluent"), num_members=2
    )
    state = {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
    save_checkpoint(tmp_path / "reward", module=module, state=state, source=tiny_checkpoint)
    same = load_recipe(
        None, ["reward_model={criteria: [helpful, fluent], ensemble: 2, criterion_weights: {fluent: 1}}"]
    )
    loaded = load_module(same, same.reward_model, tmp_path / "reward")
    assert torch.equal(loaded.head.linear.weight, module.head.linear.weight)
    assert loaded.weights.tolist() == [0.0, 1.0]
    other = load_recipe(None, ["reward_model.ensemble=2"])
    with pytest.raises(ConfigError, match=r"criteria=\['helpful', 'fluent'\].* and reward_model\.ensemble=2, not"):
        load_module(other, other.reward_model, tmp_path / "reward")
    fresh = load_module(other, other.reward_model, tiny_checkpoint)
    assert fresh.head.linear.weight.shape[0] == 2 and fresh.head.criteria == ("overall",)
    assert not torch.equal(fresh.head.linear.weight[0], fresh.head.linear.weight[1])
