"""Reward model: sample pairs from the SFT model, have them judged, learn to judge.

    train prompts -> encoder -> rollout (SFT model) -> rater -> preferences.parquet
    preferences   -> Ray Train x DeepSpeed: Bradley-Terry -> checkpoints/reward_model

The rater of this job is scripted: it knows the reference answer, and errs as often as `preferences.error_rate` says.
Where the prepared table holds comparisons, or `<run>/preferences.parquet` lies there already (from people, say), they
are used as they are and nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import ray

from actors import supervised
from actors.door import Batches, Door, given, nothing
from actors.encoder import needs_of
from actors.group import split
from actors.metrics import ray_sinks
from actors.roles import Crew, Roles, crew_of
from actors.rollout import RolloutWorker
from jobs.command import main
from pipeline.config import ConfigError, Recipe
from pipeline.data.datasets import Datasets
from pipeline.data.preferences import read_pairs
from pipeline.data.table import read_preferences, write_preferences
from pipeline.feedback.scripted import ScriptedRater
from pipeline.models.processing import load_processor
from pipeline.records import Preference, PromptInfo, RaterKind
from pipeline.tracking import Tracker

# Seeds of the compared samples are those of a step that training never takes.
SAMPLING_STEP = -1
HELD_OUT_FRACTION = 0.1


def run(recipe: Recipe, *, crew: Crew | None = None) -> Path:
    """Trains and returns the checkpoint's directory."""
    source, target = recipe.checkpoint("sft"), recipe.checkpoint("reward_model")
    table = recipe.run.directory / "preferences.parquet"
    if not table.is_file() and (given := given_preferences(recipe, source)):
        write_preferences(table, given)
    roles_needed = {"encoder": source} if table.is_file() else {"encoder": source, "rollout": source}
    with crew_of(recipe, crew) as workers:
        roles = workers.roles(roles_needed)
        needs = needs_of(recipe, source, recipe.reward_model.parts, recipe.rlhf.policy.parts)
        # Comparisons that are there speak for themselves.
        asked = nothing if table.is_file() else lacks
        door = Door(roles, recipe, "train", stage="reward_model", needs=needs, lacks=asked)
        num_steps = recipe.reward_model.num_steps
        with Tracker(
            recipe.run, "reward_model", num_steps=num_steps, extra_sinks=ray_sinks(recipe.run, "reward_model")
        ) as tracker:
            for step, metrics in workers.training("reward_model").run(
                source=source, target=target, data=comparisons(recipe, roles, door, table)
            ):
                supervised.show(tracker, step, metrics)
    return target


def lacks(info: PromptInfo) -> str | None:
    """What a row lacks for the scripted rater."""
    if info.answer is not None:
        return None
    return "no answer for the scripted rater to compare with; bring comparisons instead (preferences.parquet)"


def comparisons(
    recipe: Recipe, roles: Roles, door: Door, table: Path
) -> Iterator[dict[str, list[supervised.Comparison]]]:
    """The preferences of the table, made first where there is none, as training and held-out pairs: one message."""
    if not table.is_file():
        write_preferences(table, sample_preferences(recipe, roles, door))
    preferences = read_preferences(table)
    prompts = {prompt.id: prompt for prompt in door.admit(list({item.prompt_id: None for item in preferences}))}
    pairs = [
        supervised.Comparison(prompts[item.prompt_id], item.chosen_ids, item.rejected_ids)
        for item in preferences
        if item.prompt_id in prompts
    ]
    if len(pairs) < len(preferences):
        print(f"{len(preferences) - len(pairs)} of {len(preferences)} preferences: the prompt was refused", flush=True)
    num_held_out = max(1, int(len(pairs) * HELD_OUT_FRACTION))
    if len(pairs) - num_held_out < recipe.reward_model.batch_size:
        raise ConfigError(
            f"{table}: {len(pairs)} usable preferences are too few for "
            f"reward_model.batch_size={recipe.reward_model.batch_size}; raise preferences.num_prompts"
        )
    print(f"{len(pairs)} preferences by {', '.join(sorted({item.rater for item in preferences}))}", flush=True)
    yield {"items": pairs[num_held_out:], "held_out": pairs[:num_held_out]}


def given_preferences(recipe: Recipe, source: Path) -> list[Preference]:
    """The comparisons that came with the data, in tokens of the model."""
    pairs = [
        (each.prefix + pair.prompt_id, pair)
        for each in Datasets(recipe.datasets, "train").sources
        for pair in read_pairs(each.dataset.path, "train")
    ]
    if not pairs:
        return []
    tokenizer = load_processor(source, trust_remote_code=recipe.model.trust_remote_code).tokenizer

    def tokens(text: str) -> tuple[int, ...]:
        return (*tokenizer.encode(text), tokenizer.eos_token_id)

    return [
        Preference(
            prompt_id=prompt_id,
            chosen_ids=tokens(pair.chosen),
            rejected_ids=tokens(pair.rejected),
            chosen=pair.chosen,
            rejected=pair.rejected,
            rater=pair.dataset,
            rater_kind=RaterKind.DATASET,
        )
        for prompt_id, pair in pairs
    ]


def sample_preferences(recipe: Recipe, roles: Roles, door: Door) -> list[Preference]:
    """Pairs of different completions of the SFT model, judged by the scripted rater. Pairs of equals say nothing."""
    settings = recipe.preferences
    num_prompts = min(settings.num_prompts, door.datasets.num_rows)
    with closing(Batches(door, recipe, size=num_prompts)) as batches:
        prompts = batches.take()
    calls = roles.rollout.on_each(
        RolloutWorker.generate,
        split(prompts, len(roles.rollout)),
        recipe.rlhf.sampling.model_copy(update={"temperature": settings.temperature}),
        group_size=settings.samples_per_prompt,
        step=SAMPLING_STEP,
    )
    rater = ScriptedRater(error_rate=settings.error_rate, seed=recipe.run.seed)
    rollouts = [rollout for rollouts in ray.get(calls) for rollout in rollouts]
    judged = [
        rater.compare(rollout, given(prompt.info.answer)) for prompt, rollout in zip(prompts, rollouts, strict=True)
    ]
    preferences = [preference for preference in judged if preference is not None]
    print(
        f"{len(judged) - len(preferences)} of {len(judged)} groups have no better completion: no preference", flush=True
    )
    return preferences


if __name__ == "__main__":
    main(run, __doc__)
