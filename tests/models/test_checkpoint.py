"""Checkpoints in and out: what is saved comes back, and a save that breaks off harms nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForMultimodalLM, AutoProcessor

from pipeline.config import ConfigError, Dtype
from pipeline.models.architectures import ARCHITECTURES, UnsupportedArchitecture, architecture_of
from pipeline.models.batch import CompletionBatch, PromptBatch
from pipeline.models.checkpoint import (
    HEAD_FILE,
    load_model,
    load_policy,
    load_reward_model,
    load_value_model,
    save_checkpoint,
    tower_fingerprint,
)
from pipeline.models.forward import RewardModel

LOAD: dict[str, Any] = {"dtype": Dtype.FLOAT32, "trust_remote_code": False}


def _state(module: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


def _change(module: nn.Module) -> None:
    """Makes every parameter differ from what the checkpoint it came from holds."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


@torch.no_grad()
def _output(module: nn.Module, batch: tuple[PromptBatch, CompletionBatch]) -> Tensor:
    found = module(*batch)
    return found[0] if isinstance(found, tuple) else found


def test_a_policy_that_is_saved_and_loaded_gives_the_same_logprobs(
    checkpoint: Path, batch: tuple[PromptBatch, CompletionBatch], tmp_path: Path
) -> None:
    policy = load_policy(checkpoint, **LOAD)
    original = _output(policy, batch)
    _change(policy)
    save_checkpoint(tmp_path / "saved", module=policy, state=_state(policy), source=checkpoint)
    loaded = load_policy(tmp_path / "saved", **LOAD)
    assert torch.equal(_output(loaded, batch), _output(policy, batch))
    assert (_output(loaded, batch) - original).abs().max() > 1e-2
    assert not (tmp_path / "saved" / HEAD_FILE).exists()


def test_the_weights_saved_are_those_handed_over_not_those_at_hand(checkpoint: Path, tmp_path: Path) -> None:
    policy = load_policy(checkpoint, **LOAD)
    gathered = _state(policy)
    _change(policy)  # a shard's own parameters may be anything
    save_checkpoint(tmp_path / "saved", module=policy, state=gathered, source=checkpoint)
    loaded = _state(load_policy(tmp_path / "saved", **LOAD))
    assert loaded.keys() == gathered.keys()
    assert all(np.array_equal(loaded[name], gathered[name]) for name in gathered)


def test_what_is_saved_is_an_ordinary_directory_with_its_processor(checkpoint: Path, tmp_path: Path) -> None:
    policy = load_policy(checkpoint, **LOAD)
    save_checkpoint(tmp_path / "saved", module=policy, state=_state(policy), source=checkpoint)
    _, loading = AutoModelForMultimodalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    before, after = (AutoProcessor.from_pretrained(path) for path in (checkpoint, tmp_path / "saved"))
    assert after.chat_template == before.chat_template
    assert after.image_processor.to_dict() == before.image_processor.to_dict()
    assert after.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_reward_model_keeps_head_mean_and_scale(
    checkpoint: Path, batch: tuple[PromptBatch, CompletionBatch], tmp_path: Path
) -> None:
    reward = load_reward_model(checkpoint, **LOAD)
    assert (reward.mean.item(), reward.scale.item()) == (0.0, 1.0)
    _change(reward)
    reward.means.fill_(1.5)
    reward.covariances.fill_(0.25**2)
    save_checkpoint(tmp_path / "reward", module=reward, state=_state(reward), source=checkpoint)
    loaded = load_reward_model(tmp_path / "reward", **LOAD)
    assert (loaded.mean.item(), loaded.scale.item()) == (1.5, 0.25)
    assert torch.equal(_output(loaded, batch), _output(reward, batch))


def test_a_critic_takes_over_the_head_of_a_reward_model(
    checkpoint: Path, batch: tuple[PromptBatch, CompletionBatch], tmp_path: Path
) -> None:
    reward = load_reward_model(checkpoint, **LOAD)
    _change(reward)
    save_checkpoint(tmp_path / "reward", module=reward, state=_state(reward), source=checkpoint)
    critic = load_value_model(tmp_path / "reward", **LOAD)
    assert all(
        torch.allclose(tensor, reward.head.state_dict()[name]) for name, tensor in critic.head.state_dict().items()
    )
    # The score of the first tokens is the value of the state after them.
    prompts, completions = batch
    values = _output(critic, batch)
    first = CompletionBatch(completions.token_ids[::2, :2], completions.mask[::2, :2], completions.owner[::2])
    assert torch.allclose(_output(reward, (prompts, first))[:, 0, 0], values[::2, 2], atol=1e-5)


def _several_heads(checkpoint: Path) -> RewardModel:
    reward = load_reward_model(checkpoint, **LOAD, criteria=("helpful", "fluent"), num_members=3)
    _change(reward)
    reward.means.copy_(torch.tensor([1.0, -0.5]))
    reward.covariances.copy_(torch.tensor([[4.0, 1.0], [1.0, 2.0]]))
    return reward


def test_several_heads_come_back_with_their_names_and_are_weighed_anew(
    checkpoint: Path, batch: tuple[PromptBatch, CompletionBatch], tmp_path: Path
) -> None:
    reward = _several_heads(checkpoint)
    save_checkpoint(tmp_path / "reward", module=reward, state=_state(reward), source=checkpoint)
    loaded = load_reward_model(tmp_path / "reward", **LOAD, weights={"helpful": 3.0, "fluent": 1.0})
    assert (loaded.head.criteria, loaded.head.num_members) == (("helpful", "fluent"), 3)
    scores = _output(loaded, batch)
    assert scores.shape[1:] == (2, 3) and torch.equal(scores, _output(reward, batch))
    assert (scores - scores.mean(2, keepdim=True)).abs().max() > 1e-2
    # 3/4 - 1/8, and 9/16 * 4 + 2 * 3/16 * 1 + 1/16 * 2.
    assert (loaded.mean.item(), loaded.scale.item()) == pytest.approx((0.625, 2.75**0.5))
    expected = (0.75 * scores[:, 0] + 0.25 * scores[:, 1] - 0.625) / 2.75**0.5
    assert torch.allclose(loaded.rewards(scores), expected, atol=1e-6)
    with pytest.raises(ConfigError, match=r"criterion_weights\.safe: .*has the criteria helpful, fluent"):
        load_reward_model(tmp_path / "reward", **LOAD, weights={"safe": 1.0})


def test_a_critic_of_several_heads_starts_as_their_standardised_weighted_mean(
    checkpoint: Path, batch: tuple[PromptBatch, CompletionBatch], tmp_path: Path
) -> None:
    reward, weights = _several_heads(checkpoint), {"helpful": 1.0, "fluent": 3.0}
    save_checkpoint(tmp_path / "reward", module=reward, state=_state(reward), source=checkpoint)
    reward.weigh(weights)
    values = _output(load_value_model(tmp_path / "reward", **LOAD, weights=weights), batch)
    prompts, completions = batch
    first = CompletionBatch(completions.token_ids[::2, :2], completions.mask[::2, :2], completions.owner[::2])
    rewards = reward.rewards(_output(reward, (prompts, first))).mean(1)
    assert torch.allclose(rewards, values[::2, 2], atol=1e-5)


def test_a_reward_model_of_one_row_with_mean_and_scale_loads_as_it_was(tiny_checkpoint: Path, tmp_path: Path) -> None:
    reward = load_reward_model(tiny_checkpoint, **LOAD)
    save_checkpoint(tmp_path / "old", module=reward, state=_state(reward), source=tiny_checkpoint)
    linear = reward.head.linear
    old = {"head.linear.weight": linear.weight.detach(), "head.linear.bias": linear.bias.detach()}
    scales = {"mean": torch.tensor(0.3), "scale": torch.tensor(0.7)}
    save_file({**old, **scales}, tmp_path / "old" / HEAD_FILE)
    loaded = load_reward_model(tmp_path / "old", **LOAD, criteria=("ignored",), num_members=5)
    assert (loaded.head.criteria, loaded.head.num_members) == (("overall",), 1)
    assert torch.equal(loaded.head.linear.weight, linear.weight)
    assert (loaded.mean.item(), loaded.scale.item()) == (scales["mean"].item(), scales["scale"].item())
    critic = load_value_model(tmp_path / "old", **LOAD)
    assert torch.allclose(critic.head.linear.weight, linear.weight / 0.7)
    assert critic.head.linear.bias.item() == pytest.approx((linear.bias.item() - 0.3) / 0.7)


def test_a_critic_comes_back_from_its_own_checkpoint(
    checkpoint: Path, batch: tuple[PromptBatch, CompletionBatch], tmp_path: Path
) -> None:
    critic = load_value_model(checkpoint, **LOAD)
    _change(critic)
    save_checkpoint(tmp_path / "critic", module=critic, state=_state(critic), source=checkpoint)
    assert torch.equal(_output(load_value_model(tmp_path / "critic", **LOAD), batch), _output(critic, batch))


def test_a_reward_model_is_no_policy(tiny_checkpoint: Path, tmp_path: Path) -> None:
    reward = load_reward_model(tiny_checkpoint, **LOAD)
    save_checkpoint(tmp_path / "reward", module=reward, state=_state(reward), source=tiny_checkpoint)
    with pytest.raises(ValueError, match=r"reward: head\.safetensors marks a reward model or a critic"):
        load_policy(tmp_path / "reward", **LOAD)


def test_bfloat16_is_kept_and_the_head_stays_in_float32(tiny_checkpoint: Path, tmp_path: Path) -> None:
    reward = load_reward_model(tiny_checkpoint, dtype=Dtype.BFLOAT16, trust_remote_code=False)
    assert reward.decoder.model.dtype == torch.bfloat16
    state = {name: tensor.detach().float().numpy() for name, tensor in reward.state_dict().items()}
    save_checkpoint(tmp_path / "reward", module=reward, state=state, source=tiny_checkpoint)
    loaded = load_reward_model(tmp_path / "reward", dtype=Dtype.BFLOAT16, trust_remote_code=False)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == (torch.bfloat16 if name.startswith("decoder.") else torch.float32)
        assert torch.equal(tensor, reward.state_dict()[name])


def _break_model(monkeypatch: pytest.MonkeyPatch, policy: Any) -> None:
    def write_half(directory: Path, **_: Any) -> None:
        Path(directory).mkdir(parents=True)
        (Path(directory) / "config.json").write_text("{")
        raise OSError("no space left on device")

    monkeypatch.setattr(policy.decoder.model, "save_pretrained", write_half)


def _break_processor(monkeypatch: pytest.MonkeyPatch, policy: Any) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("transformers.processing_utils.ProcessorMixin.save_pretrained", fail)


@pytest.mark.parametrize("break_off", [_break_model, _break_processor])
def test_a_save_that_breaks_off_leaves_the_old_checkpoint(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    break_off: Callable[[pytest.MonkeyPatch, Any], None],
) -> None:
    saved = tmp_path / "saved"
    policy = load_policy(tiny_checkpoint, **LOAD)
    old = _state(policy)
    save_checkpoint(saved, module=policy, state=old, source=tiny_checkpoint)
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    _change(policy)
    with monkeypatch.context() as context:
        break_off(context, policy)
        with pytest.raises(OSError, match="no space left"):
            save_checkpoint(saved, module=policy, state=_state(policy), source=tiny_checkpoint)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == files
    # And the next save works, whatever the broken one left behind.
    save_checkpoint(saved, module=policy, state=_state(policy), source=tiny_checkpoint)
    new = _state(load_policy(saved, **LOAD))
    assert all(np.array_equal(new[name], array) for name, array in _state(policy).items())
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_the_fingerprint_is_that_of_the_towers_alone(checkpoint: Path) -> None:
    model, architecture = load_model(checkpoint, **LOAD)
    again, _ = load_model(checkpoint, **LOAD)
    before = tower_fingerprint(model, architecture)
    assert tower_fingerprint(again, architecture) == before
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not architecture.is_tower(name):
                parameter.add_(1.0)
    assert tower_fingerprint(model, architecture) == before
    for prefix in architecture.tower_prefixes:
        parameter = next(tensor for name, tensor in model.named_parameters() if name.startswith(prefix))
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        after = tower_fingerprint(model, architecture)
        assert after != before
        before = after


@pytest.mark.parametrize("load", [load_policy, load_reward_model, load_value_model])
def test_a_missing_checkpoint_is_named(tmp_path: Path, load: Callable[..., Any]) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*nowhere: config\.json is missing"):
        load(tmp_path / "nowhere", **LOAD)


def test_an_unsupported_model_type_is_named_beside_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UnsupportedArchitecture) as caught:
        load_policy(tmp_path, **LOAD)
    for word in ("model_type='gpt2'", str(tmp_path), *ARCHITECTURES):
        assert word in str(caught.value)


def test_a_directory_with_code_of_its_own_does_not_run_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    config = json.loads((other / "config.json").read_text())
    module = "configuration_planted"
    config["auto_map"] = {"AutoConfig": f"{module}.Planted", "AutoModelForMultimodalLM": f"{module}.Planted"}
    (other / "config.json").write_text(json.dumps(config))
    (other / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    load_policy(other, **LOAD)
    assert not (tmp_path / "ran").exists()
    assert architecture_of(other) is ARCHITECTURES["qwen2_5_omni_thinker"]
