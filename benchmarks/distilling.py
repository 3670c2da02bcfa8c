"""What does a small model learn from a better one? A teacher, a student by distillation, a student by SFT alone.

    seed k -> <out>/seed-k/teacher   jobs.prepare, jobs.sft
           -> <out>/seed-k/student   jobs.prepare model.tiny_hidden=64, jobs.sft: as long, on the same demonstrations
           -> in the teacher's run, from the student's untrained checkpoint, as long:
              jobs.distill           on the teacher's samples for the same prompts, of each the one that is right
           -> jobs.evaluate both -> a table, and one JSON object as the last line

    python -m benchmarks.distilling
    python -m benchmarks.distilling --seeds 0 -- sft.num_steps=200

Skill and manner are those of `benchmarks.preferences`. Samples are judged by `contains`, which asks for skill alone.
What lies there already is not run again, so that an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning import run_alone
from benchmarks.preferences import Measured, measured
from benchmarks.seeds import mean
from pipeline.config import Recipe, load_recipe
from pipeline.evaluation.results import ModelName

MODELS = ("teacher", "student by distillation", "student by SFT alone")
ALL = 10**6
"""More prompts than there are."""


def distillation(recipe: Recipe, student: Path) -> list[str]:
    """Options of `jobs.distill`: everything as in SFT, from the student's untrained checkpoint."""
    as_sft = recipe.sft.model_dump(mode="json", exclude={"rows"})
    own = {"student": str(student), "num_prompts": recipe.sft.rows or ALL, "least_reward": 1.0}
    return [f"distill={json.dumps({**as_sft, **own})}", "rlhf.rewards={contains: 1.0}"]


def stages(config: Path, overrides: Sequence[str], directory: Path, seed: int) -> list[tuple[Path, list[str]]]:
    """What each stage leaves, and its command, in order."""
    teacher, student = directory / "teacher", directory / "student"
    shared = f"data.path={teacher / 'data'}"

    def job(name: str, run: Path, *options: str) -> list[str]:
        own = [f"run.directory={run}", f"run.seed={seed}", "evaluate.blind=false"]
        return [f"jobs.{name}", "--config", str(config), *overrides, *own, *options]

    base = student / "checkpoints" / "base"
    learning = distillation(load_recipe(config, overrides), base)
    return [
        (teacher / "data" / "test.parquet", job("prepare", teacher)),
        (teacher / "checkpoints" / "sft", job("sft", teacher, shared)),
        (base, job("prepare", student, "model.tiny_hidden=64", shared)),
        (student / "checkpoints" / "sft", job("sft", student, shared)),
        (teacher / "checkpoints" / "distilled", job("distill", teacher, shared, *learning)),
        # Each model runs its own towers, whatever the recipe's loop shares.
        (
            teacher / "summary.json",
            job("evaluate", teacher, shared, "evaluate.checkpoint=distilled", "rlhf.encoder.cache_mib=0"),
        ),
        (student / "summary.json", job("evaluate", student, shared, "evaluate.checkpoint=sft")),
    ]


def num_parameters(checkpoint: Path) -> int:
    """Of a checkpoint, by its files."""
    from safetensors.numpy import load_file

    return sum(array.size for file in checkpoint.glob("model*.safetensors") for array in load_file(file).values())


def found(directory: Path) -> dict[str, Measured]:
    """Parameters, skill and manner of each model of a seed."""
    teacher, student = directory / "teacher", directory / "student"
    of_teacher, of_student = (
        json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in (teacher, student)
    )
    rows = (
        (teacher / "checkpoints" / "sft", measured(of_teacher, ModelName.SFT)),
        (teacher / "checkpoints" / "distilled", measured(of_teacher, ModelName.RLHF)),
        (student / "checkpoints" / "sft", measured(of_student, ModelName.SFT)),
    )
    return {
        name: {"parameters": num_parameters(checkpoint), **row}
        for name, (checkpoint, row) in zip(MODELS, rows, strict=True)
    }


def summarised(seeds: Sequence[Mapping[str, Measured]]) -> dict[str, Any]:
    """The machine-readable last line: means over the seeds."""
    models = {
        model: {name: mean([seed[model][name] for seed in seeds]) for name in seeds[0][model]} for model in MODELS
    }
    return {"benchmark": "distilling", "models": models, "seeds": len(seeds)}


def table(summary: Mapping[str, Any]) -> str:
    """The same for people."""
    lines = ["| | parameters | skill | manner |", "|---|---:|---:|---:|"]
    for model, row in summary["models"].items():
        skill, manner = ("" if row[name] is None else f"{row[name]:.3f}" for name in ("skill", "manner"))
        lines.append(f"| {model} | {row['parameters']:,.0f} | {skill} | {manner} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: runs what is missing, prints the table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("jobs/recipes/application.yaml"), help="the recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="run.seed of each run")
    parser.add_argument("--out", type=Path, default=Path("runs/distilling"), help="where the runs go")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="options over the recipe's")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    directories = {seed: options.out.resolve() / f"seed-{seed}" for seed in options.seeds}
    for seed, directory in directories.items():
        for number, (product, job) in enumerate(stages(options.config.resolve(), options.overrides, directory, seed)):
            if not product.exists():
                run_alone(job, f"seed {seed}, {job[0]}", directory / f"{number}-{job[0]}.log")
    summary = summarised([found(directory) for directory in directories.values()])
    print(table(summary), json.dumps(summary), sep="\n", flush=True)


if __name__ == "__main__":
    main()
