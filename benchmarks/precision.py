"""How far rollout, trainer and the checkpoint's own forward are apart in bfloat16, on rows of every mix of modalities.

    prompts -> towers -> rollout: completions, their logprobs     prefill once, grouped attention token by token
                    \\-> trainer: the same tokens, scored at once   prefill once, sdpa
                        stock:   the checkpoint's own forward, on the raw row

All three run the functions of `pipeline` that the loop runs, on the same weights, in one process. `row` is what the
parity gate bounds (`rlhf.parity.tolerance`): the mean absolute difference of a completion's logprobs, here the largest
of all completions. `rounding` is the trainer's distance to the same weights in float32: what bfloat16 itself costs.

    python -m benchmarks.precision
    python -m benchmarks.precision --checkpoint runs/demo/checkpoints/sft --device cuda
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import machine
from pipeline.config import Dtype, MediaLimits, Prepare
from pipeline.data import demo
from pipeline.data.table import PromptTable
from pipeline.generation.generate import Sample, generate, sample_seed
from pipeline.models import tiny
from pipeline.models.batch import PromptBatch, collate_completions, collate_prompts
from pipeline.models.checkpoint import load_policy
from pipeline.models.forward import Policy
from pipeline.models.processing import PromptProcessor, load_processor
from pipeline.records import ProcessedPrompt, Prompt

NUM_TOKENS = 16
Rows = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Apart:
    """Differences of logprobs in nats: of all tokens the mean and the largest, of a completion's mean the largest."""

    mean: float
    row: float
    largest: float

    @classmethod
    def of(cls, one: Rows, other: Rows) -> Apart:
        """Of the same completions' logprobs [T] by two copies."""
        gaps = [np.abs(a - b) for a, b in zip(one, other, strict=True)]
        tokens = np.concatenate(gaps)
        return cls(float(tokens.mean()), max(float(gap.mean()) for gap in gaps), float(tokens.max()))


class Bed:
    """A checkpoint and prompts of all tasks."""

    def __init__(self, checkpoint: Path, data: Path, *, rows_per_task: int, device: torch.device):
        self.checkpoint, self.device = checkpoint, device
        tokenizer: Any = load_processor(checkpoint, trust_remote_code=False).tokenizer
        self.pad_id, self.end_id = int(tokenizer.pad_token_id), int(tokenizer.eos_token_id)
        self.special_ids = sorted(set(tokenizer.all_special_ids) - {self.end_id})
        self.rows = _rows(data, rows_per_task)

    def load(self, dtype: Dtype) -> tuple[Policy, PromptProcessor, list[ProcessedPrompt]]:
        """A copy of the model, and the prompts as it takes them."""
        policy = load_policy(self.checkpoint, dtype=dtype, trust_remote_code=False).to(self.device).eval()
        # An untrained model samples them all, and the stock forward looks for a medium behind one that opens media.
        policy.decoder.model.lm_head.forbidden = torch.tensor(self.special_ids, device=self.device)
        processor = PromptProcessor(
            path=self.checkpoint,
            model=policy.decoder.model,
            limits=MediaLimits(),
            max_prompt_tokens=512,
            trust_remote_code=False,
        )
        return policy, processor, [processor(row) for row in self.rows]

    def batch(self, prompts: Sequence[ProcessedPrompt]) -> PromptBatch:
        """All prompts as one batch."""
        return collate_prompts(prompts, pad_id=self.pad_id).to(self.device)


def _rows(data: Path, rows_per_task: int) -> list[Prompt]:
    table = PromptTable(data / "train.parquet")
    tasks: dict[str, list[Prompt]] = {}
    for prompt in table.read([info.id for info in table.infos()]):
        tasks.setdefault(cast(Prompt, prompt).task, []).append(cast(Prompt, prompt))
    return [prompt for prompts in tasks.values() for prompt in prompts[:rows_per_task]]


@torch.no_grad()
def compare(bed: Bed, dtype: Dtype, *, group_size: int) -> dict[str, Apart]:
    """The copies of one precision, each against the other: rollout and trainer, rollout and stock, and rounding."""
    policy, processor, prompts = bed.load(dtype)
    samples = generate(
        policy,
        bed.batch(prompts),
        group_size=group_size,
        seeds=[sample_seed(0, 0, prompt.id, index) for prompt in prompts for index in range(group_size)],
        temperature=1.0,
        max_new_tokens=NUM_TOKENS,
        end_ids=[bed.end_id],
    )
    rollout = [sample.behaviour_logprobs for sample in samples]
    trainer = _trainer(bed, policy, prompts, samples, group_size)
    stock = _stock(policy, processor, [row for row in bed.rows for _ in range(group_size)], samples)
    exact_policy, _, exact_prompts = bed.load(Dtype.FLOAT32)
    exact = _trainer(bed, exact_policy, exact_prompts, samples, group_size)
    return {
        "rollout and trainer": Apart.of(rollout, trainer),
        "rollout and stock": Apart.of(rollout, stock),
        "rounding": Apart.of(trainer, exact),
    }


def _trainer(
    bed: Bed, policy: Policy, prompts: Sequence[ProcessedPrompt], samples: Sequence[Sample], group_size: int
) -> Rows:
    ids = [sample.token_ids for sample in samples]
    groups = [ids[start : start + group_size] for start in range(0, len(ids), group_size)]
    completions = collate_completions(groups, pad_id=bed.pad_id).to(bed.device)
    logprobs: Any = policy(bed.batch(prompts), completions, 1.0, False)[0].cpu().numpy()
    return [row[: len(each)] for row, each in zip(logprobs, ids, strict=True)]


def _stock(policy: Policy, processor: PromptProcessor, rows: Sequence[Prompt], samples: Sequence[Sample]) -> Rows:
    """As `EncoderWorker.stock_logprobs` has them."""
    model = policy.decoder.model
    found: Rows = []
    for row, sample in zip(rows, samples, strict=True):
        ids = sample.token_ids
        inputs = processor.stock_inputs(row, ids)
        hidden = model.model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
        states = hidden.last_hidden_state[0, -len(ids) - 1 : -1]
        logprobs = policy.logits(states, temperature=1.0).log_softmax(-1)
        found.append(logprobs.cpu().numpy()[np.arange(len(ids)), ids])
    return found


def markdown(found: dict[Dtype, dict[str, Apart]]) -> str:
    """The result as a table."""
    lines = ["| type | copies | mean | row | largest token |", "|---|---|---:|---:|---:|"]
    for dtype, pairs in found.items():
        for name, apart in pairs.items():
            lines.append(f"| {dtype} | {name} | {apart.mean:.1e} | {apart.row:.1e} | {apart.largest:.1e} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: measures, prints, appends to `RESULTS.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a Hugging Face directory; else the tiny one, untrained")
    parser.add_argument("--rows", type=int, default=8, help="prompts of each of the six tasks")
    parser.add_argument("--group-size", type=int, default=4, help="completions of a prompt")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--results", type=Path, default=Path("benchmarks/RESULTS.md"), help="file to append to")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as scratch:
        data, checkpoint = Path(scratch) / "data", options.checkpoint or Path(scratch) / "tiny"
        demo.build(data, prepare=Prepare(train_rows=6 * options.rows, validation_rows=6, test_rows=6), seed=0)
        if options.checkpoint is None:
            tiny.build(checkpoint, architecture="qwen2_5_omni_thinker", corpus=demo.corpus(), seed=0)
        bed = Bed(checkpoint, data, rows_per_task=options.rows, device=torch.device(options.device))
        found = {dtype: compare(bed, dtype, group_size=options.group_size) for dtype in Dtype}
        num_rows = len(bed.rows)
    text = markdown(found)
    print(text)
    host = machine.describe()
    on_gpu = options.device == "cuda"
    with options.results.open("a", encoding="utf-8") as file:
        file.write(
            f"\n## {datetime.now(UTC).date().isoformat()}: precision\n\n"
            f"- Machine: {host['cores']} cores, {host['cpu']}"
            f"{', ' + torch.cuda.get_device_name() if on_gpu else '; not run on a GPU'}\n"
            f"- Command: `{shlex.join(['python', '-m', 'benchmarks.precision', *given])}`\n"
            f"- {num_rows} prompts of six tasks, {options.group_size} completions each of at most {NUM_TOKENS} tokens, "
            f"temperature 1; differences of logprobs in nats\n\n{text}\n"
        )
    row = {
        dtype: max(apart.row for name, apart in pairs.items() if name != "rounding") for dtype, pairs in found.items()
    }
    print(json.dumps({"benchmark": "precision", "row": row}))


if __name__ == "__main__":
    main()
