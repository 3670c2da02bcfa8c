"""Evaluate: how good are the SFT model and the RLHF model on held-out rows, and do they look and listen?

    test.parquet -> encoder (as it is, blanked, with another row's media) -> rollout, with each model's weights
                 -> completions -> reward model, reference (the SFT model), exact match, WER, BLEU, ROUGE-L, distance
                 -> samples.jsonl, summary.json, report.html

The true reward is the exact match of sampled completions: its mean is what the policy is worth as it samples.
Rows without an answer have the learned reward and the KL alone, and are counted.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from actors.fleet.recoveries import read_losses
from actors.loop import agreement
from actors.loop.crew import Crew, Roles, check_there, crew_of
from actors.loop.door import Door, shared_rows
from actors.loop.judge import groups_of
from actors.loop.sampler import generate
from actors.loop.validation import read_end
from actors.roles.encoder import PromptRef, Showing, needs_of, own_towers
from actors.roles.reference import ReferenceWorker
from actors.roles.reward import RewardWorker
from actors.roles.rollout import RolloutWorker
from actors.roles.scoring import score
from jobs.command import main, read_stages, record_stage
from pipeline.config import FROZEN, Recipe
from pipeline.data.datasets import Datasets, RowRef
from pipeline.data.demo.tasks import MANNERS
from pipeline.data.ingest import card
from pipeline.data.table import PreferenceTable, Quarantine
from pipeline.evaluation import exported
from pipeline.evaluation.ablation import blankings, donors
from pipeline.evaluation.report import browser_rows, write_report
from pipeline.evaluation.results import Mode, ModelName, SampleResult, write_samples
from pipeline.evaluation.reward_parts import parts_of
from pipeline.evaluation.summary import summarise
from pipeline.evaluation.summary_json import summary_json
from pipeline.models.architectures import architecture_of
from pipeline.models.checkpoint import check_same_towers
from pipeline.records import Completion, MediaKind, Prompt, PromptInfo, Rollout
from pipeline.rewards.contains import contains
from pipeline.rewards.distance import distance_reward, is_integer
from pipeline.rewards.exact_match import exact_match
from pipeline.rewards.normalise import units
from pipeline.rewards.overlap import bleu, rouge_l
from pipeline.rewards.wer import wer
from pipeline.tracking import read_metrics

# Seeds of evaluation samples are those of a step that training never takes.
SAMPLING_STEP = -2
SHORTEST_OVERLAP_ANSWER = 3
SO_FAR = ("pairs_refused", "opinions_without_lesson", "rows_refused")
"""What a step counts from the beginning of its stage; all else is of the step alone."""
COUNTED_ELSEWHERE = ("quarantined", "decisions")
ROLES = {"encoder": "sft", "rollout": "sft", "reference": "sft", "reward": "reward_model"}
"""The roles of an evaluation, and the stage whose checkpoint each starts from. A run may have no reward model."""


def run(recipe: Recipe, *, crew: Crew | None = None) -> Path:
    """Writes `evaluation/samples.jsonl`, `summary.json` and `report.html`; returns the report's path."""
    started = time.monotonic()
    Datasets(recipe.datasets, recipe.evaluate.split).check("evaluate.split")
    compared = recipe.checkpoint(recipe.evaluate.checkpoint)
    if not (compared / "config.json").is_file():
        raise FileNotFoundError(f"evaluate.checkpoint={recipe.evaluate.checkpoint}: no checkpoint in {compared}")
    check_there(recipe, {"reference": recipe.checkpoint("sft")})
    check_towers(recipe, compared)
    with crew_of(recipe, crew) as workers:
        samples = workers.insist("evaluate", partial(all_samples, recipe, workers))
    write_samples(samples_file(recipe), samples)
    record_stage(recipe, "evaluate", time.monotonic() - started)
    return publish(recipe, samples)


def check_towers(recipe: Recipe, compared: Path) -> None:
    """Makes sure that the compared model is not shown what the SFT model's towers see where its own have learned.

    Raises:
        ConfigError: it would be.
    """
    sft = recipe.checkpoint("sft")
    architecture = architecture_of(sft, trust_remote_code=recipe.model.trust_remote_code)
    if not own_towers(recipe, recipe.rlhf.policy.parts, architecture):
        cure = "with rlhf.encoder.cache_mib=0 each model runs its own"
        check_same_towers({"sft": sft, recipe.evaluate.checkpoint: compared}, cure=cure)


def all_samples(recipe: Recipe, workers: Crew) -> list[SampleResult]:
    """What both models answer, in all modes and to all alterations, with its scores."""
    paths = {role: recipe.checkpoint(stage) for role, stage in ROLES.items()}
    if not paths["reward"].is_dir():
        print(f"no learned rewards: there is no reward model in {paths.pop('reward')}", flush=True)
    compared = {ModelName.SFT: recipe.checkpoint("sft"), ModelName.RLHF: recipe.checkpoint(recipe.evaluate.checkpoint)}
    roles = workers.roles(paths)
    needs = needs_of(recipe, paths["encoder"], recipe.rlhf.policy.parts, FROZEN)
    door = Door(roles, recipe, recipe.evaluate.split, stage="evaluate", needs=needs)
    prompts = door.admit([info.id for info in door.datasets.infos()])
    altered = alterations(door, prompts, seed=recipe.run.seed) if recipe.evaluate.blind else []
    samples: list[SampleResult] = []
    for model, path in compared.items():
        roles.rollout.publish(RolloutWorker.load, path)
        for mode in Mode:
            samples += sample(roles, recipe, prompts, model=model, mode=mode)
        samples += sample_altered(roles, recipe, altered, model=model)
    return samples


@dataclass(frozen=True)
class Altered:
    """A prompt with some kinds of its media blanked, or with the media of the row `swapped`."""

    prompt: PromptRef
    blanked: frozenset[MediaKind] = frozenset()
    swapped: str | None = None

    def concerns(self, model: ModelName) -> bool:
        """Whether a model sees it. Of single kinds of several only RLHF: what each adds is asked of the last model."""
        return (
            model is ModelName.RLHF
            or self.swapped is not None
            or self.blanked == frozenset(self.prompt.info.modalities)
        )


def alterations(door: Door, prompts: Sequence[PromptRef], *, seed: int) -> list[Altered]:
    """The prompts with media and an answer, shown in every other way."""
    answered = {prompt.id: prompt for prompt in prompts if prompt.info.answer is not None}
    infos = [prompt.info for prompt in answered.values()]
    altered: list[Altered] = []
    for kinds in blankings(infos):
        rows = {answered[info.id].row: Showing(blanked=kinds) for info in infos if kinds <= set(info.modalities)}
        altered += [Altered(prompt, blanked=kinds) for prompt in door.show(rows)]
    lent = donors(infos, seed=seed)
    rows = {answered[id].row: Showing(donor=answered[donor].row) for id, donor in lent.items()}
    return altered + [Altered(prompt, swapped=lent[prompt.id]) for prompt in door.show(rows)]


def sample(
    roles: Roles, recipe: Recipe, prompts: Sequence[PromptRef], *, model: ModelName, mode: Mode
) -> list[SampleResult]:
    """Completions of the loaded model with all their scores."""
    sampled = mode is Mode.SAMPLED
    settings = recipe.rlhf.sampling
    rollouts = completed(roles, recipe, prompts, mode)
    completions = [completion for rollout in rollouts for completion in rollout.completions]
    learned, token_kl = scores(roles, prompts, rollouts, temperature=settings.temperature if sampled else 0.0)
    ids = [completion.token_ids.tolist() for completion in completions]
    texts: list[list[str]] = roles.rollout.submit(RolloutWorker.token_texts, [ids]).result()[0]
    infos = [prompt.info for prompt, rollout in zip(prompts, rollouts, strict=True) for _ in rollout.completions]
    return [
        replace(result(info, completion, model, mode), learned_reward=score, token_kl=kl, token_texts=tuple(text))
        for info, completion, score, kl, text in zip(infos, completions, learned, token_kl, texts, strict=True)
    ]


def sample_altered(roles: Roles, recipe: Recipe, altered: Sequence[Altered], *, model: ModelName) -> list[SampleResult]:
    """Greedy completions of prompts shown in other ways, all in one pass, with the true rewards alone."""
    concerned = [each for each in altered if each.concerns(model)]
    rollouts = completed(roles, recipe, [each.prompt for each in concerned], Mode.GREEDY)
    return [
        replace(
            result(each.prompt.info, rollout.completions[0], model, Mode.GREEDY),
            blanked=tuple(sorted(each.blanked)),
            swapped=each.swapped,
        )
        for each, rollout in zip(concerned, rollouts, strict=True)
    ]


def completed(roles: Roles, recipe: Recipe, prompts: Sequence[PromptRef], mode: Mode) -> list[Rollout]:
    """The loaded model's completions, in the order of the prompts."""
    settings = recipe.rlhf.sampling
    answer = generate(
        roles,
        prompts,
        settings if mode is Mode.SAMPLED else settings.greedy,
        group_size=recipe.evaluate.samples_per_prompt if mode is Mode.SAMPLED else 1,
        seed=SAMPLING_STEP,
    )
    return [rollout for rollouts in answer.result() for rollout in rollouts]


def result(info: PromptInfo, completion: Completion, model: ModelName, mode: Mode) -> SampleResult:
    """A completion with its true rewards."""
    return SampleResult(
        prompt_id=info.id,
        task=info.task,
        modalities=info.modalities,
        model=model,
        mode=mode,
        blanked=(),
        answer=info.answer,
        text=completion.text,
        finish_reason=completion.finish_reason,
        num_tokens=len(completion.token_ids),
        token_texts=(),
        token_kl=(),
        rewards=true_rewards(completion, info),
        learned_reward=None,
        demonstration=info.demonstration if info.is_demonstrated else None,
        accepted=info.accepted,
    )


def scores(
    roles: Roles, prompts: Sequence[PromptRef], rollouts: Sequence[Rollout], *, temperature: float
) -> tuple[list[float | None], list[tuple[float, ...]]]:
    """Learned reward and per-token log ratio of the whole policy to the reference, one a completion."""
    groups = groups_of(prompts, rollouts)
    assert roles.reference is not None
    rewards = score(roles.reward, RewardWorker.scores, groups) if roles.reward else None
    references = score(roles.reference, ReferenceWorker.logprobs, groups, temperature=temperature)
    learned: list[float | None] = [None] * sum(len(rollout.completions) for rollout in rollouts)
    if rewards:
        learned = [float(value) for rows in rewards.in_order(rewards.answer.result()) for value in rows]
    token_kl = [
        tuple((completion.policy_logprobs - row[: len(completion.token_ids)]).tolist())
        for rollout, rows in zip(rollouts, references.in_order(references.answer.result()), strict=True)
        for completion, row in zip(rollout.completions, rows, strict=True)
    ]
    return learned, token_kl


def true_rewards(completion: Completion, info: PromptInfo) -> dict[str, float]:
    """The measures that fit a row: WER where something is heard, distance for whole numbers, overlap for long answers.

    Exact match and `contains` always fit. Where there is no answer, none does; of several the best
    comparison counts.
    """
    if info.answer is None:
        return {}
    text = completion.text
    rewards = {
        "exact_match": max(exact_match(text, answer) for answer in info.answers),
        "contains": max(contains(text, answer) for answer in info.answers),
    }
    if MediaKind.AUDIO in info.modalities:
        rewards["wer"] = min(wer(text, answer) for answer in info.answers)
    if whole := [answer for answer in info.answers if is_integer(answer)]:
        rewards["distance"] = max(distance_reward(text, answer) for answer in whole)
    if long := [answer for answer in info.answers if len(units(answer)) >= SHORTEST_OVERLAP_ANSWER]:
        rewards["bleu"] = max(bleu(text, answer) for answer in long)
        rewards["rouge_l"] = max(rouge_l(text, answer) for answer in long)
    return rewards


def read_prompts(recipe: Recipe, ids: Sequence[str]) -> list[Prompt]:
    """The rows themselves, for the sample browser: the one place where a driver reads media."""
    datasets = Datasets(recipe.datasets, recipe.evaluate.split)
    rows = datasets.read([RowRef(key) for key in datasets.keys(ids)])
    return [row for row in rows if isinstance(row, Prompt)]


def samples_file(recipe: Recipe) -> Path:
    """Where all completions of the evaluation lie, with their scores."""
    return recipe.run.directory / "evaluation" / "samples.jsonl"


def publish(
    recipe: Recipe, samples: Sequence[SampleResult], *, seeds_table: Sequence[Mapping[str, Any]] | None = None
) -> Path:
    """Writes what was found, `summary.json` and `report.html`, and returns the report's path.

    seeds_table: one row a seed, where the recipe was run with several (`benchmarks.seeds`).
    """
    directory = recipe.run.directory
    prompts = read_prompts(recipe, list({sample.prompt_id: None for sample in samples}))
    evaluation = summarise(samples)
    stage_s, counts = read_stages(recipe), read_counts(recipe)
    curves = read_metrics(directory / "metrics")
    rows = shared_rows(directory, "sft", "rlhf") if recipe.evaluate.checkpoint == ModelName.RLHF else None
    counts["rows_without_answer"] = len({sample.prompt_id for sample in samples if sample.answer is None})
    swapped = {sample.prompt_id for sample in samples if sample.swapped is not None}
    counts["rows_without_swap"] = len({sample.prompt_id for sample in samples if sample.blanked} - swapped)
    summary = summary_json(
        evaluation,
        stage_s=stage_s,
        total_s=sum(stage_s.values()),
        seed=recipe.run.seed,
        counts=counts,
        rows=rows,
        parts=parts_of(curves),
    )
    (directory / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    return write_report(
        directory,
        title=f"Polyphony: {recipe.run.name}",
        evaluation=evaluation,
        samples=browser_rows(prompts, samples, limit=recipe.evaluate.browser_rows),
        curves=curves,
        config_text=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        counts=counts,
        stage_s=stage_s,
        rows=rows,
        seeds_table=seeds_table,
        losses=read_losses(directory),
        notes=notes(recipe),
    )


def read_counts(recipe: Recipe) -> dict[str, int]:
    """Everything that was refused, failed or cut short in the stages of the run, by reason; zeros too."""
    totals = Counter({"truncated_completions": 0, "reward_failed": 0, "quarantined": 0})
    for rows in read_metrics(recipe.run.directory / "metrics").values():
        for reason, number in counted(rows).items():
            totals[reason] += number
            totals["reward_failed"] += number if reason.startswith("reward_failed") else 0
    refused = {
        (row.row_id, row.reason)
        for path in (recipe.run.directory / "quarantine").glob("*.parquet")
        for row in Quarantine.read(path)
    }
    totals["quarantined"] = len(refused)
    for dataset in recipe.datasets:
        prepared = card.read(dataset.path) or {"refused": {}, "left_out": {}}
        for reason, number in (*prepared["refused"].items(), *prepared["left_out"].items()):
            totals[f"prepare:{reason}"] += number
    for _, reason in refused:
        totals[f"quarantined:{reason}"] += 1
    return dict(totals)


def counted(rows: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """What a stage counted, by reason; not what lies in quarantine, where a row that several stages refused is one."""
    totals = Counter[str]()
    for row in rows:
        for name, value in row.items():
            reason = name.removeprefix("counts/")
            if reason == name or reason.startswith(COUNTED_ELSEWHERE):
                continue
            totals[reason] = max(totals[reason], int(value)) if reason in SO_FAR else totals[reason] + int(value)
    return totals


def notes(recipe: Recipe) -> list[str]:
    """What a reader must know to read the figures right."""
    table, lines = recipe.run.directory / "preferences.parquet", list[str]()
    if table.is_file():
        raters = ", ".join(PreferenceTable(table).raters())
        lines.append(f"Preferences come from: {raters}. A scripted rater is no person: it knows the reference answer.")
    lines += [
        "The true reward is the exact match of completions sampled at "
        f"temperature {recipe.rlhf.sampling.temperature:g}; greedy ones stand beside it.",
        "The learned reward is standardised: 0 is the mean and 1 the standard deviation over held-out preferences.",
        "The KL is the policy's to the SFT model, estimated on the policy's own samples.",
    ]
    if recipe.evaluate.checkpoint != ModelName.RLHF:
        lines.append(f"What is called RLHF here is the checkpoint `{recipe.evaluate.checkpoint}`.")
    elif end := read_end(recipe):
        lines.append(f"RLHF ended after step {end.step} of {recipe.rlhf.num_steps}: {end.detail}.")
    if recipe.data.path is None and not recipe.data.mixture and not recipe.prepare.sources:
        manners = ", ".join(manner.format(answer="7") for manner in MANNERS)
        lines.append(
            f"The built-in demonstrations have {len(MANNERS)} manners ({manners}), the references only the first. "
            "`Contains` is the share with the right answer in any: a gain that it does not share is one of manner."
        )
    judges = agreement.told(agreement.read(recipe.run.directory))
    return [*lines, *judges, *exported.told(exported.read(recipe.run.directory))]


if __name__ == "__main__":
    main(run, __doc__)
