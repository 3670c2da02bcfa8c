"""Prepare: make the built-in data and the tiny checkpoint.

    digits, speech, scenes, videos -> <run>/data/{train,validation,test}.parquet
    the texts of all questions     -> tokenizer -> <run>/checkpoints/base

Left out on purpose: reading other people's files. A table with the same columns (`pipeline/data/schema.py`) works
as `data.path`, a Hugging Face directory as `model.path`; neither is then made here.
"""

from __future__ import annotations

from jobs.command import main
from pipeline.config import Recipe
from pipeline.data import demo
from pipeline.models import tiny


def run(recipe: Recipe) -> dict[str, int]:
    """Writes what is missing and returns the number of rows by split and task."""
    if recipe.model.path is None:
        num_parameters = tiny.build(
            recipe.checkpoint("base"),
            architecture=recipe.model.tiny_architecture,
            corpus=demo.corpus(),
            seed=recipe.run.seed,
        )
        print(f"tiny {recipe.model.tiny_architecture}: {num_parameters:,} parameters")
    if recipe.data.path is not None:
        return {}
    counts = demo.build(recipe.data_path, prepare=recipe.prepare, seed=recipe.run.seed)
    for split in ("train", "validation", "test"):
        print(
            f"{split}: " + ", ".join(f"{key.split('/')[1]} {n}" for key, n in counts.items() if key.startswith(split))
        )
    return counts


if __name__ == "__main__":
    main(run, __doc__)
