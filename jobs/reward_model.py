"""Reward model: sample pairs from the SFT model, have them judged, learn to judge.

    train prompts -> encoder -> rollout (SFT model) -> rater -> preferences.parquet
    preferences, a batch a step -> their prompts through the door -> Ray Train x DeepSpeed: Bradley-Terry and others
                                                                       -> checkpoints/reward_model
                                  held-out rows, scored at the end -> reward_model.json

The rater of this job is scripted: it knows the reference answer, and errs as often as `preferences.error_rate` says.
Where the prepared table holds comparisons or labels, or `<run>/preferences.parquet` lies there already (from people,
say), they are used as they are and nothing is sampled. Of the prompts a tenth is held out, by a hash of their ids: what
is said of these standardises the scores, and says how right and how well calibrated they are.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from actors.loop.brought import brought_opinions
from actors.loop.comparisons import check_enough, comparisons
from actors.loop.crew import Crew, Roles, check_there, crew_of
from actors.loop.door import Batches, Door, check_some, given, nothing
from actors.loop.metrics import ray_sinks
from actors.loop.sampler import generate
from actors.roles.encoder import needs_of
from actors.training import supervised
from jobs.command import main
from pipeline.config import ConfigError, PreferenceLearning, Recipe, RewardModel
from pipeline.data.datasets import Datasets
from pipeline.data.table import PreferenceTable, write_preferences
from pipeline.evaluation.bias import blindness, length_bias
from pipeline.evaluation.calibration import ScoredPair, calibration_json
from pipeline.evaluation.ratings import ScoredRating, ratings_json
from pipeline.feedback.scripted import ScriptedRater
from pipeline.records import Preference, PromptInfo
from pipeline.tracking import Tracker

# Seeds of the compared samples are those of a step that training never takes.
SAMPLING_STEP = -1
FEW_HELD_OUT = 30
"""Held-out pairs below which a warning says that little can be known from them."""


def run(recipe: Recipe, *, crew: Crew | None = None) -> Path:
    """Trains and returns the checkpoint's directory."""
    table = given_table(recipe, recipe.checkpoint("sft"), recipe.reward_model, stage="reward_model")
    with crew_of(recipe, crew, training="reward_model") as workers:
        workers.insist("reward_model", partial(train, recipe, workers, table))
    return recipe.checkpoint("reward_model")


def given_table(recipe: Recipe, source: Path, settings: RewardModel | PreferenceLearning, *, stage: str) -> Path:
    """Where the run's preferences lie; what came with the data is put there, if nothing is.

    source: the checkpoint in whose tokens they are learned. settings: of the stage that learns them.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ConfigError: they are fewer than a batch, or could not be more if they were sampled, or no row has an answer.
    """
    table = recipe.run.directory / "preferences.parquet"
    datasets = Datasets(recipe.datasets, recipe.preferences.split).check("preferences.split")
    check_there(recipe, {stage: source})
    if not table.is_file() and (first := next(preferences := brought_opinions(recipe, source), None)):
        write_preferences(table, chain([first], preferences))
    if table.is_file():
        check_enough(PreferenceTable(table), settings, stage=stage)
        return table
    check_some(datasets, lacks)
    asked = recipe.preferences
    most = min(asked.num_prompts, datasets.num_rows) * asked.pairs_per_prompt
    if most < settings.batch_size:
        raise ConfigError(
            f"{stage}.batch_size={settings.batch_size}: at most {most} preferences are sampled; lower it, or raise "
            "preferences.num_prompts or preferences.pairs_per_prompt"
        )
    return table


def train(recipe: Recipe, workers: Crew, table: Path) -> None:
    """The whole stage, but for comparisons that are there."""
    source = recipe.checkpoint("sft")
    roles = workers.roles({"encoder": source} if table.is_file() else {"encoder": source, "rollout": source})
    needs = needs_of(recipe, source, recipe.reward_model.parts, recipe.rlhf.policy.parts)
    # Comparisons that are there speak for themselves.
    asked = nothing if table.is_file() else lacks
    door = Door(roles, recipe, recipe.preferences.split, stage="reward_model", needs=needs, lacks=asked)
    # Of each batch that lies ready: metrics tell of the step, and not of how far reading is ahead of it.
    drawn: deque[dict[str, float]] = deque()
    tracker = Tracker(
        recipe.run,
        "reward_model",
        num_steps=recipe.reward_model.num_steps,
        extra_sinks=ray_sinks(recipe.run, "reward_model"),
    )
    with tracker:
        for step, metrics in workers.training("reward_model").run(
            source=source,
            target=recipe.checkpoint("reward_model"),
            data=made_or_given(recipe, roles, door, table, drawn),
        ):
            if "held_out" in metrics:
                ratings = metrics["held_out_ratings"]
                metrics = assess(recipe, table, metrics["held_out"], metrics["score"], ratings)
            refused = drawn.popleft() if drawn and step >= 0 else {}
            supervised.show(tracker, step, {**metrics, **refused})


def lacks(info: PromptInfo) -> str | None:
    """What a row lacks for the scripted rater."""
    if info.answer is not None:
        return None
    return "no answer for the scripted rater to compare with; bring comparisons instead (preferences.parquet)"


def made_or_given(
    recipe: Recipe, roles: Roles, door: Door, path: Path, drawn: deque[dict[str, float]]
) -> Iterator[dict[str, Any]]:
    """The preferences of the table, made first where there is none; see `comparisons`."""
    yield from comparisons(recipe, door, there_or_made(recipe, roles, door, path), drawn)


def there_or_made(recipe: Recipe, roles: Roles, door: Door, path: Path) -> PreferenceTable:
    """The table, made first where there is none."""
    if not path.is_file():
        write_preferences(path, sample_preferences(recipe, roles, door))
    return PreferenceTable(path)


def assess(
    recipe: Recipe,
    path: Path,
    pairs: Sequence[ScoredPair],
    score: dict[str, float],
    ratings: Sequence[ScoredRating] = (),
) -> dict[str, float]:
    """Writes what is held out says of the reward model to `<run>/reward_model.json`; returns it as metrics.

    path: of the table that it learned from; score: what standardises its scores.
    """
    found = calibration_json(pairs)
    warning = None
    if len(pairs) + len(ratings) < FEW_HELD_OUT:
        held_out = f"{len(pairs)} pairs" + (f" and {len(ratings)} ratings" if ratings else "")
        warning = (
            f"only {held_out} are held out: the scale of the learned reward and its accuracy are uncertain; "
            "raise preferences.num_prompts or reward_model.held_out_fraction"
        )
        print(f"warning: {warning}", flush=True)
    content = {
        "raters": PreferenceTable(path).raters(),
        "warning": warning,
        "score": score,
        **found,
        "criteria": ratings_json(ratings),
        "length": length_bias(pairs, ratings),
        "blind": blindness(pairs),
    }
    (recipe.run.directory / "reward_model.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return {f"held_out/{name}": float(value) for name, value in figures(content).items() if value is not None}


def figures(content: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of `reward_model.json` that become metrics."""
    overall, length = content["overall"], content["length"]
    low, high = overall["accuracy_interval"] or (None, None)
    return {
        **{name: overall[name] for name in ("num_pairs", "accuracy", "brier", "calibration_error")},
        "accuracy_low": low,
        "accuracy_high": high,
        **{f"accuracy/task:{name}": each["accuracy"] for name, each in content["tasks"].items()},
        **{f"accuracy/modality:{name}": each["accuracy"] for name, each in content["modalities"].items()},
        **{f"blind_gap/modality:{name}": (each["gap"] or {}).get("value") for name, each in content["blind"].items()},
        **{f"accuracy/criterion:{name}": each["accuracy"] for name, each in content["criteria"].items()},
        **{f"brier/criterion:{name}": each["brier"] for name, each in content["criteria"].items()},
        "length_correlation": length["correlation"],
        "accuracy/chosen:shorter": length["chosen_shorter"]["accuracy"],
        "accuracy/chosen:longer": length["chosen_longer"]["accuracy"],
    }


def sample_preferences(recipe: Recipe, roles: Roles, door: Door) -> list[Preference]:
    """Pairs of different completions of the SFT model, judged by the scripted rater."""
    settings = recipe.preferences
    num_prompts = min(settings.num_prompts, door.datasets.num_rows)
    with closing(Batches(door, recipe, size=num_prompts)) as batches:
        prompts = batches.take()
    answer = generate(
        roles,
        prompts,
        recipe.rlhf.sampling.model_copy(update={"temperature": settings.temperature}),
        group_size=settings.samples_per_prompt,
        seed=SAMPLING_STEP,
    )
    rater = ScriptedRater(
        error_rate=settings.error_rate,
        seed=recipe.run.seed,
        pairs_per_prompt=settings.pairs_per_prompt,
        ties=settings.ties,
    )
    rollouts = [rollout for rollouts in answer.result() for rollout in rollouts]
    judged = [
        rater.compare(rollout, given(prompt.info.answer), *prompt.info.accepted)
        for prompt, rollout in zip(prompts, rollouts, strict=True)
    ]
    num_silent = sum(not pairs for pairs in judged)
    print(f"{num_silent} of {len(judged)} groups have nothing to compare: no preference", flush=True)
    return list(chain.from_iterable(judged))


if __name__ == "__main__":
    main(run, __doc__)
