"""TRL's side of `benchmarks.dpo_vs_trl`: its DPOTrainer on the same pairs. It runs in TRL's environment, if it has one.

pairs.parquet + checkpoint -> DPOTrainer -> steps.jsonl, one line when an optimizer step is done
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any


def load_pairs(path: Path, cache: Path) -> Any:
    """The pairs as TRL takes them: messages without the tag that marks the picture's place, which is the front."""
    datasets = importlib.import_module("datasets")
    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(cache))
    return rows.cast_column("images", datasets.Sequence(datasets.Image()))


def make_trainer(options: argparse.Namespace) -> Any:
    """A DPOTrainer with the settings that the caller gave to Polyphony as well."""
    trl, transformers = importlib.import_module("trl"), importlib.import_module("transformers")
    settings = trl.DPOConfig(
        output_dir=str(options.out),
        use_cpu=True,
        bf16=False,
        max_steps=options.steps,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=options.pairs // options.micro_batch,
        gradient_checkpointing=False,
        precompute_ref_log_probs=False,
        max_length=None,
        beta=options.beta,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        seed=options.seed,
        dataloader_pin_memory=False,
    )

    def load() -> Any:
        model = transformers.AutoModelForImageTextToText.from_pretrained(options.checkpoint, dtype="float32")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(options.freeze.split(","))))
        return model

    return trl.DPOTrainer(
        model=load(),
        ref_model=load(),
        args=settings,
        train_dataset=load_pairs(options.data, options.out / "cache"),
        processing_class=transformers.AutoProcessor.from_pretrained(options.checkpoint),
    )


def run(options: argparse.Namespace) -> None:
    """Trains, and writes a line a step with TRL's metrics of it."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    torch.set_num_threads(1)
    trainer = make_trainer(options)

    class Lines(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            metrics = {name: values[-1] for name, values in trainer._metrics["train"].items() if values}
            with (options.out / "steps.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step - 1, "metrics": metrics}) + "\n")

    trainer.add_callback(Lines())
    trainer.train()
    parameters = list(trainer.model.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    setup = {
        "versions": {name: importlib.metadata.version(name) for name in ("trl", "transformers", "torch")},
        "trainable": trainable,
        "frozen": sum(parameter.numel() for parameter in parameters) - trainable,
    }
    (options.out / "setup.json").write_text(json.dumps(setup), encoding="utf-8")


def main() -> None:
    """Command line; every option is set by `benchmarks.dpo_vs_trl`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("pairs", "micro-batch", "steps", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("beta", "learning-rate"):
        parser.add_argument(f"--{name}", type=float, required=True)
    parser.add_argument("--freeze", default="", help="prefixes of the parameters that do not train")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
