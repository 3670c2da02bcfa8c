"""Writes `trl_preference_golden.json`: what TRL's preference trainers make of given logprobs.

    python tests/algorithms/trl_preference_golden.py

`test_trl_preference.py` compares. As with `trl_golden.py`, which says where TRL is to be had, the methods that run are
TRL's, unchanged: `_compute_loss` of DPO and KTO, `get_batch_loss_metrics` of CPO (SimPO) and ORPO. Only the model is
given: it looks its logprobs up. The inputs are drawn from a seed and lie beside the results.
"""

from __future__ import annotations

import importlib
import json
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

NUM, LENGTH = 5, 6
BETA, SMOOTHING, GAMMA, SFT = 0.2, 0.1, 0.3, 0.5
DESIRABLE, UNDESIRABLE = 1.5, 0.8

DPO: dict[str, dict[str, Any]] = {
    "dpo": {"loss_types": ["sigmoid"]},
    "dpo_with_sft": {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, SFT]},
    "robust": {"loss_types": ["robust"], "label_smoothing": SMOOTHING},
    "hinge": {"loss_types": ["hinge"]},
    "ipo": {"loss_types": ["ipo"]},
}
KTO: dict[str, dict[str, Any]] = {
    "kto": {"loss_type": "kto", "calculate_KL": True},
    "apo_zero": {"loss_type": "apo_zero_unpaired", "calculate_KL": False},
}


def main() -> None:
    """Draws the inputs, runs TRL on them and writes both."""
    torch.set_default_dtype(torch.float64)
    given = draw_inputs()
    losses = {name: paired(dpo_trainer(given, **settings), given) for name, settings in DPO.items()}
    losses |= {name: unpaired(kto_trainer(given, **settings), given) for name, settings in KTO.items()}
    losses["simpo"] = reference_free("cpo", "CPOTrainer", given, loss_type="simpo", cpo_alpha=0.0)
    losses["simpo_smoothed"] = reference_free(
        "cpo", "CPOTrainer", given, loss_type="simpo", cpo_alpha=0.0, label_smoothing=SMOOTHING
    )
    losses["simpo_with_sft"] = reference_free("cpo", "CPOTrainer", given, loss_type="simpo", cpo_alpha=SFT)
    # Without a reference TRL smooths labels as DPO does: that is cDPO where the reference gives all the same.
    losses["dpo_smoothed_without_reference"] = reference_free(
        "cpo", "CPOTrainer", given, loss_type="sigmoid", cpo_alpha=0.0, label_smoothing=SMOOTHING, is_mean=False
    )
    losses["orpo"] = reference_free("orpo", "ORPOTrainer", given)
    golden = {
        "versions": {name: importlib.import_module(name).__version__ for name in ("trl", "torch", "transformers")},
        "settings": {
            "beta": BETA,
            "label_smoothing": SMOOTHING,
            "gamma": GAMMA,
            "sft_weight": SFT,
            "desirable_weight": DESIRABLE,
            "undesirable_weight": UNDESIRABLE,
        },
        "inputs": {name: value.tolist() for name, value in given.items()},
        "losses": losses,
    }
    path = Path(__file__).with_name("trl_preference_golden.json")
    parts = (f"{json.dumps(name)}: {json.dumps(part)}" for name, part in golden.items())
    path.write_text("{" + ",\n".join(parts) + "}\n")
    print(f"{path}: {golden['versions']}, {len(losses)} losses")


def draw_inputs() -> dict[str, Tensor]:
    """Logprobs [2N, T] of N chosen completions and then N rejected ones, of 1 to T tokens, rounded; 0 where padded.

    `kl_policy` and `kl_reference` are of completions that belong to other prompts.
    """
    generator = torch.Generator().manual_seed(2)
    shape = (2 * NUM, LENGTH)
    lengths = torch.randint(1, LENGTH + 1, shape[:1], generator=generator)
    mask = torch.arange(LENGTH)[None] < lengths[:, None]
    reference = -2.0 * torch.rand(shape, generator=generator) - 0.2
    policy = reference + 0.8 * torch.randn(shape, generator=generator)
    kl_reference = -3.0 * torch.rand(shape, generator=generator) - 0.5
    kl_policy = kl_reference + 0.3 * torch.rand(shape, generator=generator)
    drawn = {
        "policy": policy.clamp(max=-0.01),
        "reference": reference,
        "kl_policy": kl_policy,
        "kl_reference": kl_reference,
    }
    return {"lengths": lengths, **{name: (1000 * each * mask).round() / 1000 for name, each in drawn.items()}}


class Model:
    """Looks logprobs up: those of prompts that begin with 1, or those for the KL, whose prompts begin with 2."""

    training = True

    def __init__(self, main: Tensor, kl: Tensor):
        self._tables = {1: main, 2: kl}

    def __call__(self, *, input_ids: Tensor, **_: Any) -> Any:
        found = self._tables[int(input_ids[0, 0])]
        zeros = torch.zeros_like(found)
        return SimpleNamespace(log_probs=found, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def _batch(given: dict[str, Tensor], first: int = 1) -> dict[str, Tensor]:
    """One prompt token and the completion."""
    mask = torch.cat([torch.zeros(2 * NUM, 1), torch.arange(LENGTH)[None] < given["lengths"][:, None]], 1).long()
    ids = torch.full((2 * NUM, 1 + LENGTH), 7)
    ids[:, 0] = first
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask}


def paired(trainer: Any, given: dict[str, Tensor]) -> dict[str, Any]:
    """DPO's loss, its gradient in the policy's logprobs, and what it logs."""
    policy = given["policy"].clone().requires_grad_()
    return _result(trainer, trainer._compute_loss(Model(policy, policy), _batch(given), False), policy)


def unpaired(trainer: Any, given: dict[str, Tensor]) -> dict[str, Any]:
    """The same of KTO's; the chosen completions are the good ones."""
    policy = given["policy"].clone().requires_grad_()
    label = torch.arange(2 * NUM) < NUM
    batch = {**_batch(given), "label": label, **{f"KL_{name}": each for name, each in _batch(given, 2).items()}}
    return _result(trainer, trainer._compute_loss(Model(policy, given["kl_policy"]), batch, False), policy)


def reference_free(
    module: str, name: str, given: dict[str, Tensor], *, is_mean: bool = True, **settings: Any
) -> dict[str, Any]:
    """The same of CPO's and ORPO's on mean logprobs a token, or on sums."""
    trainer = _bare(getattr(importlib.import_module(f"trl.experimental.{module}"), name), given)
    trainer.__dict__ |= {"label_smoothing": 0.0, "simpo_gamma": GAMMA, "alpha": 0.0, **settings}
    policy = given["policy"].clone().requires_grad_()
    scores = policy.sum(1) / given["lengths"] if is_mean else policy.sum(1)
    likelihood = -policy[:NUM].sum() / given["lengths"][:NUM].sum()
    nothing = torch.zeros(NUM, 1)
    trainer.concatenated_forward = lambda *_: (scores[:NUM], scores[NUM:], nothing, nothing, likelihood)
    loss, metrics = trainer.get_batch_loss_metrics(None, {})
    trainer._metrics["train"] = {key: [value] for key, value in metrics.items()}
    return _result(trainer, loss, policy)


def _result(trainer: Any, loss: Tensor, policy: Tensor) -> dict[str, Any]:
    (gradient,) = torch.autograd.grad(loss, policy)
    shown = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "kl")
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items() if name in shown and values}
    return {"loss": loss.item(), "gradient": gradient.tolist(), "metrics": metrics}


def dpo_trainer(given: dict[str, Tensor], **settings: Any) -> Any:
    """TRL's DPOTrainer without model, data and set-up."""
    trainer = _bare(importlib.import_module("trl").DPOTrainer, given)
    trainer.__dict__ |= {"ld_alpha": None, "f_divergence_type": "reverse_kl", "label_smoothing": 0.0}
    trainer.__dict__ |= {"use_weighting": False, "loss_weights": [1.0], **settings}
    return trainer


def kto_trainer(given: dict[str, Tensor], **settings: Any) -> Any:
    """TRL's KTOTrainer without them."""
    trainer = _bare(importlib.import_module("trl").KTOTrainer, given)
    trainer.__dict__ |= {"desirable_weight": DESIRABLE, "undesirable_weight": UNDESIRABLE, **settings}
    return trainer


def _bare(trainer_class: Any, given: dict[str, Tensor]) -> Any:
    accelerate = importlib.import_module("accelerate")

    @contextmanager
    def as_it_is(*_: Any):
        yield

    module: Any = importlib.import_module(trainer_class.__module__)
    if hasattr(module, "disable_gradient_checkpointing"):
        module.disable_gradient_checkpointing = as_it_is
    trainer = object.__new__(trainer_class)
    trainer.__dict__ |= {
        "accelerator": accelerate.Accelerator(cpu=True),
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None),
        "model": torch.nn.Identity(),
        "ref_model": Model(given["reference"], given["kl_reference"]),
        "beta": BETA,
        "aux_loss_enabled": False,
        "precompute_ref_logps": False,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    return trainer


if __name__ == "__main__":
    main()
