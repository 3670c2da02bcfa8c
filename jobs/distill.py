"""Distil: sample, judge, keep the best, and learn these as demonstrations.

    prompts -> encoder -> rollout (the teacher) -> rewards of rlhf.rewards -> the best of each prompt's samples
                                                                               -> distilled.parquet
                                                                               -> metrics/distill_samples.jsonl
    distilled.parquet -> its prompts through the door -> Ray Train x DeepSpeed, as in SFT -> checkpoints/distilled

With the teacher as its own student this is best-of-n distillation, or rejection-sampling fine-tuning (RAFT: Dong et al.
2023, arXiv 2304.06767; Llama 2, arXiv 2307.09288, section 3.2.3). With another student, `distill.student`, the better
model's answers teach a smaller one (sequence-level distillation: Kim and Rush 2016, arXiv 1606.07947).
Left out on purpose: checkpoints in between, as in SFT. What was sampled is on disk, and is not sampled again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from actors.loop import agreement
from actors.loop.crew import Crew, crew_of, loop_paths
from actors.loop.door import Batches, Door, PairBatches, check_some
from actors.loop.judge import OVERLONG, Judged, check_rows, judge, lacks
from actors.loop.metrics import ray_sinks
from actors.loop.reward_parts import part_metrics
from actors.loop.sampler import Sampled, generate
from actors.loop.step_metrics import counts
from actors.roles.encoder import PromptRef, needs_of
from actors.training import supervised
from jobs.command import main
from pipeline.config import FROZEN, Algorithm, ConfigError, PartNormalisation, Recipe
from pipeline.data.datasets import Datasets
from pipeline.data.held_out import NOTHING_HELD_OUT
from pipeline.data.table import PreferenceTable, write_preferences
from pipeline.records import OVERALL, Opinion, RaterKind, Rating
from pipeline.tracking import Tracker

ENCODED_AHEAD = 2
"""Batches that the encoders are at while the next one is sent."""
SAMPLES = "distill_samples"
"""Under which name metrics tell of the sampled batches; those of the learning are `distill`'s."""
RATER = "rewards"
SEED_OFFSET = 2**20
"""Batches are sampled with seeds that no step of the loop takes."""


def run(recipe: Recipe, *, crew: Crew | None = None) -> Path:
    """Trains and returns the checkpoint's directory."""
    settings, split = recipe.distill, recipe.distill.split
    datasets = Datasets(recipe.datasets, split).check("distill.split")
    check_rows(recipe, datasets, split)
    table = recipe.run.directory / "distilled.parquet"
    num_prompts, keep = min(settings.num_prompts, datasets.num_rows), min(settings.keep, settings.samples_per_prompt)
    if table.is_file():
        check_kept(recipe, len(PreferenceTable(table)), f"in {table}")
        print(f"{table}: what was kept before is learned; delete it to sample anew", flush=True)
    else:
        check_some(datasets, lacks(recipe))
        check_kept(recipe, num_prompts * keep, f"at most, {keep} of each of {num_prompts} prompts")
        # On GPUs who judges and who learns take turns.
        with crew_of(recipe, crew) as workers:
            write_preferences(table, workers.insist("distill", partial(best, recipe, workers)))
    with crew_of(recipe, crew, training="distill") as workers:
        workers.insist("distill", partial(train, recipe, workers, table))
    return recipe.checkpoint("distilled")


def check_kept(recipe: Recipe, num_kept: int, where: str) -> None:
    """Makes sure that a batch can be drawn of what is kept: before anything is sampled, or the student is loaded.

    Raises:
        ConfigError: it cannot.
    """
    if num_kept < recipe.distill.batch_size:
        raise ConfigError(
            f"distill.batch_size={recipe.distill.batch_size}: only {num_kept} completions are kept {where}; lower it, "
            "or sample anew with more distill.num_prompts or distill.keep"
        )


def best(recipe: Recipe, workers: Crew) -> list[Rating]:
    """The best samples of each prompt, as good ones.

    Raises:
        ConfigError: there is nothing to judge by, a part from outside cannot be loaded, or none is as good as
            `distill.least_reward` asks.
    """
    settings, teacher = recipe.distill, recipe.checkpoint(recipe.distill.teacher)
    if not recipe.rlhf.rewards:
        raise ConfigError("rlhf.rewards={}: nothing says which samples are the best; name a reward")
    judges = {role: path for role, path in loop_paths(recipe).items() if role in ("reward", "grader")}
    roles = workers.roles({"encoder": teacher, "rollout": teacher, **judges})
    if roles.graders is not None:
        roles.graders.check(recipe)
        agreement.measure(roles.graders, recipe)
    # Rollout may see media with towers that learn; who judges has features, as in the loop.
    needs = needs_of(recipe, teacher, recipe.rlhf.policy.parts, FROZEN)
    door = Door(roles, recipe, settings.split, stage="distill", needs=needs, lacks=lacks(recipe))
    wanted, size = min(settings.num_prompts, door.datasets.num_rows), recipe.rlhf.prompts_per_step
    num_batches = -(-wanted // size)
    kept, rewards, num_prompts, num_sampled = list[Rating](), list[float](), 0, 0
    tracker = Tracker(recipe.run, SAMPLES, num_steps=num_batches, extra_sinks=ray_sinks(recipe.run, SAMPLES))
    with tracker, closing(Batches(door, recipe, size=size)) as batches:
        for batch in range(num_batches):
            prompts = batches.take()[: wanted - batch * size]
            answer = generate(
                roles,
                prompts,
                recipe.rlhf.sampling,
                group_size=settings.samples_per_prompt,
                seed=SEED_OFFSET + batch,
            )
            sampled = Sampled(prompts, list(chain.from_iterable(answer.result())), [])
            judged = judge(roles, recipe, sampled, split=settings.split)
            found = best_of(judged, settings.keep, settings.least_reward)
            kept += [rating for rating, _ in found]
            rewards += [reward for _, reward in found]
            counted = {f"counts/{reason}": number for reason, number in counts(door, judged).items()}
            tracker.log(batch, {**judged_metrics(judged, recipe.rlhf.algorithm), **counted})
            num_prompts += len(prompts)
            num_sampled += len(judged.unshaped)
    if not kept:
        raise ConfigError(
            f"distill.least_reward={settings.least_reward}: none of {num_sampled} completions is as good; lower it"
        )
    print(
        f"{len(kept)} of {num_sampled} completions of {num_prompts} prompts are kept; mean reward {fmean(rewards):.3f}",
        flush=True,
    )
    return kept


def judged_metrics(judged: Judged, algorithm: Algorithm) -> dict[str, float]:
    """The mean reward and each part's mean, spread, weight and share, of the plain sum by which the best are chosen."""
    plain = replace(judged, parts={name: part for name, part in judged.parts.items() if name != OVERLONG})
    as_it_is = algorithm.model_copy(update={"part_normalisation": PartNormalisation.NONE})
    return {**plain.mean(), **part_metrics(plain, as_it_is)}


def best_of(judged: Judged, keep: int, least: float | None) -> list[tuple[Rating, float]]:
    """The `keep` completions of each group with the highest rewards, of at least `least`, each text once.

    Completions without a reward are never among them; of equal rewards the first ones are.
    """
    found: list[tuple[Rating, float]] = []
    known = judged.unshaped
    if judged.unrewarded is not None:
        known = known.masked_fill(judged.unrewarded, -math.inf)
    for rollout, rewards in zip(judged.rollouts, known.view(len(judged.rollouts), -1).tolist(), strict=True):
        texts = set[str]()
        for place in sorted(range(len(rewards)), key=lambda place: -rewards[place]):
            completion, reward = rollout.completions[place], rewards[place]
            is_good = reward > -math.inf and (least is None or reward >= least)
            if is_good and len(texts) < keep and completion.text not in texts:
                texts.add(completion.text)
                ids = tuple(completion.token_ids.tolist())
                rating = Rating(rollout.prompt_id, ids, completion.text, {OVERALL: 1.0}, RATER, RaterKind.SCRIPTED)
                found.append((rating, reward))
    return found


def train(recipe: Recipe, workers: Crew, table: Path) -> None:
    """The student learns what was kept."""
    settings = recipe.distill
    source, kept = settings.student or recipe.checkpoint(settings.teacher), PreferenceTable(table)
    check_kept(recipe, len(kept), f"in {table}")
    roles = workers.roles({"encoder": source})
    needs = needs_of(recipe, source, settings.parts)
    door = Door(roles, recipe, settings.split, stage="distill", needs=needs)
    batches = PairBatches(door, recipe, kept, size=settings.batch_size, held_out=NOTHING_HELD_OUT)
    drawn: deque[dict[str, float]] = deque()

    def data() -> Iterator[dict[str, Any]]:
        for step in range(settings.num_steps):
            batches.announce(min(1 + ENCODED_AHEAD, settings.num_steps - step))
            taken = batches.take()
            drawn.append({**door.metrics(), "counts/pairs_refused": float(batches.num_refused)})
            yield {"items": [demonstration(said, prompt, settings.student) for said, prompt in taken]}

    sinks = ray_sinks(recipe.run, "distill")
    with Tracker(recipe.run, "distill", num_steps=settings.num_steps, extra_sinks=sinks) as tracker:
        training = workers.training("distill")
        for step, metrics in training.run(source=source, target=recipe.checkpoint("distilled"), data=data()):
            supervised.show(tracker, step, {**metrics, **(drawn.popleft() if step >= 0 else {})})


def demonstration(said: Opinion, prompt: PromptRef, student: Path | None) -> supervised.Demonstration:
    """What is learned: tokens as they were sampled, or for another student their text in tokens of its own."""
    assert isinstance(said, Rating)
    return supervised.Demonstration(prompt, said.token_ids if student is None else said.text)


if __name__ == "__main__":
    main(run, __doc__)
