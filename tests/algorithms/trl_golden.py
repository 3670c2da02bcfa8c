"""Writes `trl_golden.json`: what TRL's own trainers make of given rewards and logprobs, for `test_trl.py` to compare.

TRL cannot live in this project's environment (it asks for another transformers), so it gets its own, and the numbers
come back in a file:

    python -m venv /tmp/trl && /tmp/trl/bin/pip install trl==1.16.0
    /tmp/trl/bin/python tests/algorithms/trl_golden.py

The methods that run are TRL's, unchanged: `_generate_and_score_completions` (advantages, importance weights) and
`_compute_loss`. Only what surrounds them is given: completions, rewards and the logprobs that a model would compute.
Nothing in the file is typed in by hand; the inputs are drawn from a seed and lie beside the results.
"""

from __future__ import annotations

import importlib
import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

NUM_GROUPS, GROUP_SIZE, LENGTH = 3, 4, 6
MAX_LENGTH = 8  # what Dr.GRPO divides by; longer than any completion here
BETA, CAP, LOW, HIGH = 0.1, 1.3, 0.7, 1.4

LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "grpo_with_kl": {"loss_type": "grpo", "beta": BETA},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "dapo_with_kl": {"loss_type": "dapo", "epsilon_high": 0.28, "beta": BETA},
    "dual_clip": {"loss_type": "dapo", "delta": 1.5},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.1},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.5},  # TRL's is the bound itself: 1 + clip_high
    "dapo_with_token_weights": {"loss_type": "dapo", "mode": "token_truncate", "clip_max": CAP},
    "dapo_with_sequence_weights": {"loss_type": "dapo", "mode": "sequence_truncate", "clip_max": CAP},
    "dapo_with_icepop": {"loss_type": "dapo", "mode": "token_mask", "clip_min": LOW, "clip_max": HIGH},
}


def main() -> None:
    """Draws the inputs, runs TRL on them and writes both."""
    torch.set_default_dtype(torch.float64)
    given = draw_inputs()
    groups_of_one = given | {"rewards": given["rewards"][:3]}
    golden = {
        "versions": {name: importlib.import_module(name).__version__ for name in ("trl", "torch", "transformers")},
        "inputs": {name: value.tolist() for name, value in given.items()},
        "settings": {"group_size": GROUP_SIZE, "max_length": MAX_LENGTH, "beta": BETA},
        "off_policy": {"cap": CAP, "low": LOW, "high": HIGH},
        "advantages": {
            "grpo": scored(grpo_trainer(given))["advantages"].tolist(),
            "grpo_of_one": scored(grpo_trainer(groups_of_one, group_size=1), 3)["advantages"].tolist(),
            "dr_grpo": scored(grpo_trainer(given, scale_rewards="none"))["advantages"].tolist(),
            "rloo": scored(rloo_trainer(given))["advantages"].tolist(),
            "rloo_with_kl": scored(rloo_trainer(given, beta=BETA))["advantages"].tolist(),
            "rloo_of_one": scored(rloo_trainer(groups_of_one, group_size=1), 3)["advantages"].tolist(),
        },
        "losses": {name: loss_of(grpo_trainer(given, **settings), given) for name, settings in LOSSES.items()},
        "rloo_on_its_own_samples": loss_of(rloo_trainer(given), given | {"policy": given["proximal"]}),
    }
    path = Path(__file__).with_name("trl_golden.json")
    parts = (f"{json.dumps(name)}: {json.dumps(part)}" for name, part in golden.items())
    path.write_text("{" + ",\n".join(parts) + "}\n")
    print(f"{path}: {golden['versions']}, {len(LOSSES)} losses")


def draw_inputs() -> dict[str, Tensor]:
    """Rewards [N] and logprobs [N, T] of 1 to 6 tokens, rounded; the rewards of one group are all the same."""
    generator = torch.Generator().manual_seed(11)
    shape = (NUM_GROUPS * GROUP_SIZE, LENGTH)
    lengths = torch.randint(1, LENGTH + 1, shape[:1], generator=generator)
    rewards = torch.randint(-2, 4, shape[:1], generator=generator).double()
    rewards[:GROUP_SIZE] = 1.0
    proximal = -3.0 * torch.rand(shape, generator=generator) - 0.5
    near = {
        name: proximal + 0.3 * torch.randn(shape, generator=generator) for name in ("policy", "behaviour", "reference")
    }
    logprobs = {name: (1000 * value).round() / 1000 for name, value in {"proximal": proximal, **near}.items()}
    return {"lengths": lengths, "rewards": rewards, **logprobs}


def scored(trainer: Any, num_rows: int = NUM_GROUPS * GROUP_SIZE) -> dict[str, Tensor]:
    """What the trainer makes of one batch before the update."""
    return trainer._generate_and_score_completions([{"prompt": "?"}] * num_rows)


def loss_of(trainer: Any, given: dict[str, Tensor]) -> dict[str, Any]:
    """The trainer's loss of the batch, its gradient in the policy's logprobs, and the weights it used, if any."""
    inputs = scored(trainer)
    policy = given["policy"].clone().requires_grad_()
    # The entropy is only logged here.
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (policy, torch.zeros_like(policy), None)
    loss = trainer._compute_loss(trainer.model, inputs)
    (gradient,) = torch.autograd.grad(loss, policy)
    result = {"loss": loss.item(), "gradient": gradient.tolist()}
    if "importance_sampling_ratio" in inputs:
        result["weights"] = inputs["importance_sampling_ratio"].tolist()
    return result


def grpo_trainer(
    given: dict[str, Tensor],
    *,
    mode: str | None = None,
    clip_min: float | None = None,
    clip_max: float | None = None,
    delta: float | None = None,
    **settings: Any,
) -> Any:
    """TRL's GRPOTrainer on given completions. With a `mode` it corrects for the engine that sampled, as with vLLM."""
    lengths = [int(length) for length in given["lengths"][: len(given["rewards"])]]
    trainer = _bare(importlib.import_module("trl").GRPOTrainer, given)
    trainer.args.delta = delta
    trainer.__dict__ |= {
        "_generate": lambda prompts: (
            [[1]] * len(prompts),
            [[2] * length for length in lengths],
            None,
            ["!"] * len(prompts),
            [row[:length].tolist() for row, length in zip(given["behaviour"], lengths, strict=False)],
            {},
            None,
            None,
        ),
        "environment_factories": None,
        "environments": None,
        "tools": None,
        "_is_vlm": False,
        "multi_objective_aggregation": "sum_then_normalize",
        "scale_rewards": "group",
        "num_iterations": 2,  # with 1, TRL would take the policy's logprobs for those at the start of the update
        "use_vllm": mode is not None,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": mode,
        "vllm_importance_sampling_clip_min": clip_min,
        "vllm_importance_sampling_clip_max": clip_max,
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "max_completion_length": MAX_LENGTH,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "_entropy_bonus_enabled": False,
        "current_gradient_accumulation_steps": 1,
        **_with_group_size(settings),
    }
    return trainer


def rloo_trainer(given: dict[str, Tensor], **settings: Any) -> Any:
    """TRL's RLOOTrainer on given completions."""
    lengths = [int(length) for length in given["lengths"][: len(given["rewards"])]]
    trainer = _bare(importlib.import_module("trl").RLOOTrainer, given)
    trainer.__dict__ |= {
        "_generate": lambda prompts: (
            [[1]] * len(prompts),
            [[2] * length for length in lengths],
            ["!"] * len(prompts),
        ),
        "normalize_advantages": False,
        "reward_clip_range": None,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        **_with_group_size(settings),
    }
    return trainer


def _with_group_size(settings: dict[str, Any]) -> dict[str, Any]:
    size = settings.pop("group_size", GROUP_SIZE)
    return {"num_generations": size, "num_generations_eval": size, **settings}


def _bare(trainer_class: Any, given: dict[str, Tensor]) -> Any:
    """A trainer without model, data and set-up, which its two methods do not need."""
    accelerate = importlib.import_module("accelerate")
    trainer = object.__new__(trainer_class)
    reference = SimpleNamespace()

    def logprobs(model: Any, *_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
        values = given["reference" if model is reference else "proximal"]
        width = int(given["lengths"][: len(given["rewards"])].max())
        values = values[: len(given["rewards"]), :width]
        return values, torch.zeros_like(values), None

    trainer.__dict__ |= {
        "accelerator": accelerate.Accelerator(cpu=True),
        "model": SimpleNamespace(training=True, is_gradient_checkpointing=False),
        "ref_model": reference,
        "args": SimpleNamespace(
            per_device_train_batch_size=len(given["rewards"]),
            gradient_checkpointing_kwargs=None,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
            use_bias_correction_kl=False,
        ),
        "aux_loss_enabled": False,
        "beta": 0.0,
        "chat_template_kwargs": {},
        "eos_token_ids": [2],
        "log_multimodal": False,
        "mask_truncated_completions": False,
        "pad_to_multiple_of": None,
        "processing_class": None,
        "_tokenizer": SimpleNamespace(pad_token_id=0),
        "reward_func_names": ["given"],
        "reward_funcs": [None],
        "reward_weights": torch.ones(1),
        "_calculate_rewards": lambda *_: given["rewards"][:, None],
        "_get_per_token_logps_and_entropies": logprobs,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_logs": defaultdict(list, rewards=defaultdict(list), extra=defaultdict(list)),
        "_pending_extra_logs": defaultdict(list),
        "_pending_metrics": defaultdict(list),
    }
    return trainer


if __name__ == "__main__":
    main()
