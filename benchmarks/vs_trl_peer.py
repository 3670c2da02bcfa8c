"""TRL's side of `benchmarks.vs_trl`: its GRPOTrainer, timed by phase. It runs in TRL's environment.

    prompts.parquet + checkpoint -> GRPOTrainer -> steps.jsonl, one line when an optimizer step is done

Phases are timed by wrapping the trainer's methods, each without what it calls of other phases:

    generate            _generate_single_turn
    score               _get_per_token_logps_and_entropies of the reference
    reprocess           _tokenize_prompts, chat templates, and every other call of the processor
    forward + backward  compute_loss and Accelerator.backward
    optimizer           Optimizer.step, by torch's own hooks

The rest of a step (data, rewards, splitting, logging) is what the caller finds to be left over.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import importlib.metadata
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GENERATE, SCORE, REPROCESS = "generate", "score", "reprocess"
LEARN, OPTIMIZER = "forward + backward", "optimizer"


class Phases:
    """CPU-seconds of this process by phase; what a phase calls of another counts there alone."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    def enter(self, phase: str) -> None:
        """Begins a phase, and holds the one around it."""
        self._book()
        self._open.append(phase)

    def leave(self) -> None:
        """Ends the innermost phase; the one around it goes on."""
        self._book()
        self._open.pop()

    def _book(self) -> None:
        now = time.process_time()
        if self._open:
            self.cpu_s[self._open[-1]] = self.cpu_s.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    def timed(self, phase: str, function: Callable[..., Any], *, within: str | None = None) -> Callable[..., Any]:
        """`function`, timed as `phase`, or as part of the phase around it where that is `within`."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if within is not None and within in self._open:
                return function(*args, **kwargs)
            self.enter(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return wrapper


def install(phases: Phases, trainer: Any, processor: Any) -> None:
    """Wraps the methods of the trainer, its accelerator, the processor's class and all optimizers."""
    for phase, name in {
        GENERATE: "_generate_single_turn",
        REPROCESS: "_tokenize_prompts",
        LEARN: "compute_loss",
    }.items():
        setattr(trainer, name, phases.timed(phase, getattr(trainer, name)))
    score = "_get_per_token_logps_and_entropies"
    setattr(trainer, score, phases.timed(SCORE, getattr(trainer, score), within=LEARN))
    trainer.accelerator.backward = phases.timed(LEARN, trainer.accelerator.backward)
    # Calls find `__call__` on the class, not on the object.
    kind = type(processor)
    kind.__call__ = phases.timed(REPROCESS, kind.__call__)
    module = importlib.import_module(type(trainer).__module__)
    for name in ("prepare_multimodal_messages", "apply_chat_template"):
        setattr(module, name, phases.timed(REPROCESS, getattr(module, name)))
    optimizer = importlib.import_module("torch.optim.optimizer")
    optimizer.register_optimizer_step_pre_hook(lambda *_: phases.enter(OPTIMIZER))
    optimizer.register_optimizer_step_post_hook(lambda *_: phases.leave())


def digest(prompts: list[list[int]]) -> str:
    """Hash of a step's prompts as token ids, in whatever order and however often repeated."""
    return hashlib.sha256(json.dumps(sorted({tuple(map(int, ids)) for ids in prompts})).encode()).hexdigest()


def length_reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """-clip((length - target) / target, 0, 1) in characters, case folded, runs of whitespace as one space."""
    rewards: list[float] = []
    for (message,), reference in zip(completions, answer, strict=True):
        length, target = (len(" ".join(text.casefold().split())) for text in (message["content"], reference))
        target = max(target, 1)
        rewards.append(-min(max((length - target) / target, 0.0), 1.0))
    return rewards


def load_prompts(path: Path, cache: Path) -> Any:
    """The prompts as TRL takes them: messages without the tag that marks the picture's place, which is the front."""
    datasets = importlib.import_module("datasets")
    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(cache))

    def without_tags(row: dict[str, Any]) -> dict[str, Any]:
        messages = [{**message, "content": message["content"].removeprefix("<image>")} for message in row["prompt"]]
        return {"prompt": messages}

    return rows.select_columns(["prompt", "images", "answer"]).map(without_tags)


def make_trainer(options: argparse.Namespace, phases: Phases) -> Any:
    """A GRPOTrainer with the settings that the caller gave to Polyphony as well."""
    trl, transformers = importlib.import_module("trl"), importlib.import_module("transformers")
    num_completions = options.prompts * options.group_size
    settings = trl.GRPOConfig(
        output_dir=str(options.out),
        use_cpu=True,
        bf16=False,
        max_steps=options.steps,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=num_completions // options.micro_batch,
        gradient_checkpointing=False,
        num_generations=options.group_size,
        max_completion_length=options.tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=options.beta,
        num_iterations=1,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        shuffle_dataset=False,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        seed=options.seed,
    )
    model = transformers.AutoModelForImageTextToText.from_pretrained(options.checkpoint, dtype="float32")
    if options.freeze:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(options.freeze.split(","))))
    processor = transformers.AutoProcessor.from_pretrained(options.checkpoint)
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=length_reward,
        args=settings,
        train_dataset=load_prompts(options.data, options.out / "cache"),
        processing_class=processor,
    )
    install(phases, trainer, processor)
    return trainer


def run(options: argparse.Namespace) -> None:
    """Trains, and writes a line a step: CPU-seconds by phase so far, the prompts' digest, TRL's metrics."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    torch.set_num_threads(1)
    phases = Phases()
    trainer = make_trainer(options, phases)
    tokenize, digests = trainer._tokenize_prompts, []

    def remember(prompts: Any) -> Any:
        tokenized = tokenize(prompts)
        digests.append(digest(tokenized[0]))
        return tokenized

    trainer._tokenize_prompts = remember

    class Lines(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            metrics = {name: values[-1] for name, values in trainer._metrics["train"].items() if values}
            row = {"step": state.global_step - 1, "cpu_s": phases.cpu_s, "prompts": digests[-1], "metrics": metrics}
            with (options.out / "steps.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    trainer.add_callback(Lines())
    trainer.train()
    parameters = list(trainer.model.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    setup = {
        "versions": {name: importlib.metadata.version(name) for name in ("trl", "transformers", "torch")},
        "trainable": trainable,
        "frozen": sum(parameter.numel() for parameter in parameters) - trainable,
        "attention": trainer.model.config._attn_implementation,
        "threads": torch.get_num_threads(),
    }
    (options.out / "setup.json").write_text(json.dumps(setup), encoding="utf-8")


def main() -> None:
    """Command line; every option is set by `benchmarks.vs_trl`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("prompts", "group-size", "tokens", "micro-batch", "steps", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--beta", type=float, required=True, help="weight of the KL in the loss")
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--freeze", default="", help="prefixes of the parameters that do not train")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
