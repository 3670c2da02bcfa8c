"""What it saves to encode each medium once and to prefill each prompt once: a whole PPO step with and without.

    prompts with one picture -> towers -> generate -> reference, reward, values -> policy update, critic update

*On*: a medium is encoded once for all roles, and a prompt runs once a pass for the n completions of its group.
*Off*: what the field does: every completion is a row of its own behind its own copy of the prompt, and every pass
encodes its media again. Both run the same functions of `pipeline` on the same weights, prompts and seeds, on one
thread, without Ray and DeepSpeed, and give the same logprobs: that is checked.

    python -m benchmarks.once
    python -m benchmarks.once --media-tokens 256 --group-sizes 8 --repeats 3
    python -m benchmarks.once --device cuda --model 3b        (bfloat16, random weights, MFU and bandwidth as well)

Each measurement is a forked child, so that its peak of resident memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.once_model import Models, ceilings, pictures, prompts_with
from pipeline.algorithms.aggregation import token_mean
from pipeline.algorithms.losses import clipped_value_loss
from pipeline.algorithms.surrogates import ppo
from pipeline.generation.generate import generate
from pipeline.models.batch import CompletionBatch, PromptBatch, collate_completions, collate_prompts
from pipeline.packing import GroupSize, plan_passes
from pipeline.records import EncodedPrompt, ProcessedPrompt

NUM_PROMPTS, NUM_TOKENS, BUDGET = 4, 16, 8192
Batch = tuple[PromptBatch, CompletionBatch]


@dataclass(frozen=True)
class Measured:
    """Seconds of a step and of its phases, calls of a tower, prompt tokens run, peak of memory above the start."""

    step_s: float
    phase_s: dict[str, float]
    tower_calls: int
    prompt_tokens: int
    peak_mib: float
    apart: float
    """Of the same completions: nats by which their mean logprob under the reference differs between on and off."""


class Step:
    """One PPO step over some prompts with n completions each."""

    def __init__(self, models: Models, prompts: Sequence[ProcessedPrompt], *, group_size: int, once: bool):
        self.models, self.group_size, self.once = models, group_size, once
        self.prompts = prompts if once else [_apart(each, row) for each in prompts for row in range(group_size)]
        self.group_of_row = group_size if once else 1
        self.counts = {"towers": 0, "prompt_tokens": 0}
        self.phase_s: dict[str, float] = {}
        models.watch(self.counts)

    def run(self) -> None:
        """The step."""
        self._share(self.once)
        encoded = self._timed("encode", self._encode)
        completions = self._timed("generate", lambda: self._generate(encoded))
        with torch.no_grad():
            self._timed("reference", lambda: self._score(encoded, completions, self.models.reference))
            self._timed("reward", lambda: self._score(encoded, completions, self.models.reward))
            self._timed("values", lambda: self._score(encoded, completions, self.models.critic))
        self._timed(
            "policy update", lambda: self._update(encoded, completions, self._policy_loss, self.models.policy_adam)
        )
        self._timed(
            "critic update", lambda: self._update(encoded, completions, self._value_loss, self.models.critic_adam)
        )

    def _share(self, once: bool) -> None:
        for model in self.models.all:
            model.decoder.share_prefix = once

    @torch.no_grad()
    def apart(self) -> float:
        """Nats between the mean logprobs that the reference gives the same completions on, and off."""
        encoded = self._encode()
        completions, means = self._generate(encoded), list[float]()
        for once in (True, False):
            self._share(once)
            logprobs = torch.cat([rows[rows != 0] for rows in self._score(encoded, completions, self.models.reference)])
            means.append(float(logprobs.mean()))
        return abs(means[0] - means[1])

    def _timed(self, phase: str, work: Callable[[], Any]) -> Any:
        started = self.models.clock()
        result = work()
        self.phase_s[phase] = self.models.clock() - started
        return result

    def _encode(self) -> list[EncodedPrompt | ProcessedPrompt]:
        if not self.once:
            return list(self.prompts)
        features: dict[str, Any] = {}
        policy = self.models.policy.decoder
        for prompt in self.prompts:
            for medium in prompt.media:
                if medium.key not in features:
                    with torch.no_grad():
                        (found,) = policy.architecture.encode(policy.model, medium.kind, [medium.tensors])
                    features[medium.key] = found.float().cpu().numpy()
        return [
            EncodedPrompt(each.id, each.input_ids, each.position_ids, tuple(features[m.key] for m in each.media))
            for each in self.prompts
        ]

    def decoding_s(self) -> float:
        """Seconds of one more token for all completions: without prefill, which two lengths have in common."""
        encoded, few, many = self._encode(), NUM_TOKENS, 4 * NUM_TOKENS
        seconds: dict[int, float] = {}
        for num_tokens in (few, few, many):  # The first one warms up.
            started = self.models.clock()
            self._generate(encoded, num_tokens)
            seconds[num_tokens] = self.models.clock() - started
        return (seconds[many] - seconds[few]) / (many - few)

    def _generate(self, encoded: Sequence[Any], num_tokens: int = NUM_TOKENS) -> list[list[np.ndarray[Any, Any]]]:
        samples = generate(
            self.models.policy,
            self._prompts(encoded),
            group_size=self.group_of_row,
            seeds=list(range(NUM_PROMPTS * self.group_size)),
            temperature=1.0,
            max_new_tokens=num_tokens,
            end_ids=[],
        )
        ids = [sample.token_ids for sample in samples]
        return [ids[start : start + self.group_of_row] for start in range(0, len(ids), self.group_of_row)]

    def _prompts(self, encoded: Sequence[Any]) -> PromptBatch:
        return collate_prompts(encoded, pad_id=0).to(self.models.device)

    def _passes(self, encoded: Sequence[Any], completions: Sequence[Sequence[Any]]) -> list[Batch]:
        sizes = [GroupSize(len(each.input_ids), self.group_of_row, NUM_TOKENS) for each in encoded]
        (plan,) = plan_passes(sizes, num_ranks=1, budget=BUDGET)
        return [
            (
                self._prompts([encoded[index] for index in each.groups]),
                collate_completions([completions[index] for index in each.groups], pad_id=0).to(self.models.device),
            )
            for each in plan
        ]

    def _score(self, encoded: Sequence[Any], completions: Sequence[Sequence[Any]], model: Any) -> list[Tensor]:
        outputs = [model(*batch) for batch in self._passes(encoded, completions)]
        return [each[0] if isinstance(each, tuple) else each for each in outputs]

    def _update(self, encoded: Any, completions: Any, loss: Callable[[Batch], Tensor], optimizer: Any) -> None:
        for batch in self._passes(encoded, completions):
            loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    def _policy_loss(self, batch: Batch) -> Tensor:
        logprobs, _ = self.models.policy(*batch)
        mask = batch[1].mask
        signal = torch.ones_like(logprobs)
        surrogate = ppo(
            policy_logprobs=logprobs,
            proximal_logprobs=logprobs.detach(),
            advantages=signal,
            mask=mask,
            clip_low=0.2,
            clip_high=0.2,
            dual_clip=None,
        )
        return token_mean(values=surrogate.loss, mask=mask, num_tokens=float(mask.sum()))

    def _value_loss(self, batch: Batch) -> Tensor:
        values = self.models.critic(*batch)
        return clipped_value_loss(
            values_now=values,
            values_behaviour=values.detach(),
            returns=torch.ones_like(values),
            mask=batch[1].mask,
            clip=0.2,
            num_tokens=float(batch[1].mask.sum()),
        )


def _apart(prompt: ProcessedPrompt, row: int) -> ProcessedPrompt:
    """A copy whose media are taken for others, so that no pass finds out that it encodes them again."""
    return replace(prompt, media=tuple(replace(medium, key=f"{medium.key}-{row}") for medium in prompt.media))


def measure(models: Models, *, media_tokens: int, group_size: int, once: bool, repeats: int) -> Measured:
    """The median step of `repeats`, after one that warms up."""
    prompts = prompts_with(models, pictures(NUM_PROMPTS, media_tokens))
    apart = Step(models, prompts, group_size=group_size, once=True).apart() if once else 0.0
    if models.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = _peak_mib(models)
    found: list[Measured] = []
    for _ in range(repeats + 1):
        step = Step(models, prompts, group_size=group_size, once=once)
        started = models.clock()
        step.run()
        spent = models.clock() - started
        found.append(Measured(spent, step.phase_s, step.counts["towers"], step.counts["prompt_tokens"], 0.0, apart))
    kept = sorted(found[1:], key=lambda each: each.step_s)[repeats // 2]
    return replace(kept, peak_mib=_peak_mib(models) - before)


def _peak_mib(models: Models) -> float:
    if models.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_child(work: Callable[[], Measured]) -> Measured:
    """Runs `work` in a forked child and returns what it measured.

    Raises:
        RuntimeError: the child failed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(writing, "w", encoding="utf-8") as pipe:
                json.dump(asdict(work()), pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if not answer:
        raise RuntimeError("the measuring process failed; its error stands above")
    return Measured(**json.loads(answer))


def speed(models: Models, rows: Sequence[tuple[int, int, Measured, Measured]]) -> str:
    """Of a GPU: MFU of the policy's update, and decoding against what reading all weights once a token takes."""
    flops, bandwidth = ceilings(models.device)
    weights = models.num_weights
    lines = [
        f"{torch.cuda.get_device_name()}: {flops / 1e12:.0f} TFLOP/s (product), {bandwidth / 1e12:.2f} TB/s (copy), "
        f"both measured; {weights / 1e9:.2f} B weights of the language model"
    ]
    bound_s = 2 * weights / bandwidth
    for media_tokens, group_size, _, on in rows:
        prompts = prompts_with(models, pictures(NUM_PROMPTS, media_tokens))
        tokens = sum(len(each.input_ids) for each in prompts) + NUM_PROMPTS * group_size * NUM_TOKENS
        mfu = 6 * weights * tokens / on.phase_s["policy update"] / flops
        token_s = Step(models, prompts, group_size=group_size, once=True).decoding_s()
        lines.append(
            f"- {media_tokens} media tokens, n = {group_size}: MFU of the update {mfu:.2f} ({tokens} tokens); "
            f"a token of {NUM_PROMPTS * group_size} completions takes {1000 * token_s:.1f} ms, "
            f"{bound_s / token_s:.2f} of the bandwidth bound"
        )
    return "\n".join(lines)


def table(rows: Sequence[tuple[int, int, Measured, Measured]]) -> str:
    """The result as Markdown: off, on, and off / on."""
    lines = [
        "| media tokens | n | step off (s) | step on (s) | **off / on** | tower calls off / on "
        "| prompt tokens off / on | peak MiB off / on |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for media_tokens, group_size, off, on in rows:
        lines.append(
            f"| {media_tokens} | {group_size} | {off.step_s:.3f} | {on.step_s:.3f} | **{off.step_s / on.step_s:.1f}** "
            f"| {off.tower_calls} / {on.tower_calls} | {off.prompt_tokens:,} / {on.prompt_tokens:,} "
            f"| {off.peak_mib:.0f} / {on.peak_mib:.0f} |"
        )
    return "\n".join(lines)


def phases(rows: Sequence[tuple[int, int, Measured, Measured]]) -> str:
    """Seconds of each phase, off and on, in the setting of the aim or the first one."""
    chosen = next((row for row in rows if row[:2] == (256, 8)), rows[0])
    lines = [f"Phases at {chosen[0]} media tokens and n = {chosen[1]}, seconds off / on:"]
    for name, off_s in chosen[2].phase_s.items():
        lines.append(f"- {name}: {off_s:.3f} / {chosen[3].phase_s[name]:.3f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: measures, prints, appends to `RESULTS.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media-tokens", type=int, nargs="+", default=[64, 256, 1024], help="tokens of a picture")
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[2, 8, 16], help="completions of a prompt")
    parser.add_argument("--repeats", type=int, default=3, help="steps measured, of which the median counts")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--model", default="tiny", choices=["tiny", "3b"], help="random weights")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/RESULTS.md"), help="file to append to")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    on_gpu = options.device == "cuda"
    models = Models(options.model, torch.device(options.device))
    rows: list[tuple[int, int, Measured, Measured]] = []
    for media_tokens in options.media_tokens:
        for group_size in options.group_sizes:
            found: list[Measured] = []
            for once in (False, True):

                def work(once: bool = once, tokens: int = media_tokens, size: int = group_size) -> Measured:
                    repeats = options.repeats
                    return measure(models, media_tokens=tokens, group_size=size, once=once, repeats=repeats)

                # A GPU's context does not survive a fork.
                found.append(work() if on_gpu else in_child(work))
            off, on = found
            if on.apart > (0.02 if on_gpu else 1e-4):
                sys.exit(f"on and off disagree: the mean logprobs of the same completions by {on.apart} nats")
            rows.append((media_tokens, group_size, off, on))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    text = f"{table(rows)}\n\n{phases(rows)}"
    if on_gpu:
        text += f"\n\n{speed(models, rows)}"
    print(text)
    host = machine.describe()
    with options.results.open("a", encoding="utf-8") as file:
        file.write(
            f"\n## {datetime.now(UTC).date().isoformat()}: once\n\n"
            f"- Machine: {host['cores']} cores, {host['cpu']}"
            f"{', ' + torch.cuda.get_device_name() if on_gpu else ', one thread; not run on a GPU'}\n"
            f"- Command: `{shlex.join(['python', '-m', 'benchmarks.once', *given])}`\n"
            f"- {NUM_PROMPTS} prompts with a picture each, n completions of {NUM_TOKENS} tokens, one epoch, "
            f"one minibatch; passes of at most {BUDGET} tokens; median of {options.repeats} steps\n\n{text}\n"
        )
    ratio = {f"{row[0]}x{row[1]}": row[2].step_s / row[3].step_s for row in rows}
    print(json.dumps({"benchmark": "once", "off_over_on": ratio, "median": statistics.median(ratio.values())}))


if __name__ == "__main__":
    main()
