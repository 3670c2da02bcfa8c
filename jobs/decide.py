"""Decide: choose among K actions from what is seen, heard and read, and learn which one brings most.

    the simulated shop, or rows of the prompt table -> encoders -> features, kept -> decisions, one after the other:
      online (dqn, reinforce, a2c, ppo, sac on RLlib) | from the log (supervised, bc, marwil, cql) | random, linucb
    -> regret of each on the same decisions, metrics/decide_<algorithm>.jsonl, summary.json, report.html

With `run.resume=auto` each online algorithm goes on from its last checkpoint. Left out on purpose: a service that
decides.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from actors.loop.metrics import ray_sinks
from jobs.command import main, record_stage
from pipeline.config import Recipe, Resume
from pipeline.config.decide import DecisionAlgorithm, DecisionReward, DecisionSource
from pipeline.data.datasets import Datasets
from pipeline.decisions import decision_report as report
from pipeline.decisions.contest import Contest, Outcome
from pipeline.decisions.coverage import ope_coverage
from pipeline.decisions.material import TRAIN, Material, of_table, of_world
from pipeline.decisions.online import PROGRESS_FILE
from pipeline.feedback.database import Database
from pipeline.feedback.preferences import human_opinions
from pipeline.feedback.store import FeedbackStore
from pipeline.records import OVERALL, Rating
from pipeline.tracking import Tracker, finite

BC, MARWIL, CQL = DecisionAlgorithm.BC, DecisionAlgorithm.MARWIL, DecisionAlgorithm.CQL
SUMMARY_FILE, REPORT_FILE = "summary.json", "report.html"


def run(recipe: Recipe) -> dict[str, Any]:
    """Lets all algorithms of the recipe decide, and returns what `summary.json` holds."""
    started = time.monotonic()
    torch.set_num_threads(1)
    contest = Contest(material_of(recipe), recipe.decide, recipe.run.directory, seed=recipe.run.seed)
    for kind, count in contest.material.cut.items():
        print(f"{kind}: {count} were longer than the model takes, and were cut", flush=True)
    if contest.material.refused:
        print(f"{contest.material.refused} rows were refused", flush=True)
    outcomes = [decided(recipe, contest, name) for name in recipe.decide.algorithms]
    summary = write_results(recipe, contest, outcomes)
    record_stage(recipe, "decide", time.monotonic() - started)
    return summary


def material_of(recipe: Recipe) -> Material:
    """The decisions that the recipe is about."""
    settings, directory, seed = recipe.decide, recipe.run.directory, recipe.run.seed
    if settings.source is DecisionSource.WORLD:
        return of_world(settings, directory, seed=seed)
    splits = (TRAIN, settings.validation_split, settings.test_split)
    datasets = {split: Datasets(recipe.datasets, split).check("decide.source=table, split") for split in splits}
    ratings: list[Rating] = []
    if settings.reward is DecisionReward.RATINGS:
        store = FeedbackStore(Database(recipe.feedback_url), recipe.feedback_media)
        said = human_opinions(store, recipe.feedback, (OVERALL,))
        ratings = [each.opinion for each in said if isinstance(each.opinion, Rating)]
    return of_table(settings, recipe.data, datasets, directory, seed=seed, ratings=ratings)


def decided(recipe: Recipe, contest: Contest, name: DecisionAlgorithm) -> Outcome:
    """What one algorithm did."""
    started = time.process_time()
    if name is DecisionAlgorithm.RANDOM:
        outcome = contest.random()
    elif name is DecisionAlgorithm.LINUCB:
        outcome = contest.linucb()
    elif name.is_offline:
        outcome = contest.offline(name)
    else:
        outcome = online(recipe, contest, name)
    final = outcome.evaluations[recipe.decide.test_split].regrets.mean()
    seconds = time.process_time() - started
    print(f"{name}: regret {outcome.regrets.mean():.3f}, in the end {final:.3f}, {seconds:.0f} CPU-s", flush=True)
    return outcome


def online(recipe: Recipe, contest: Contest, name: DecisionAlgorithm) -> Outcome:
    """An algorithm of RLlib's, its numbers in the trackers."""
    stage, resumes = f"decide_{name}", recipe.run.resume is Resume.AUTO
    kept = sorted((recipe.run.directory / "checkpoints" / "decide" / name).glob(f"[0-9]*/{PROGRESS_FILE}"))
    first = json.loads(kept[-1].read_text(encoding="utf-8"))["iteration"] + 1 if kept and resumes else 0
    sinks = ray_sinks(recipe.run, stage)
    with Tracker(recipe.run, stage, resume_from_step=first, extra_sinks=sinks) as tracker:
        return contest.online(name, resume=resumes, watch=tracker.log)


def write_results(recipe: Recipe, contest: Contest, outcomes: list[Outcome]) -> dict[str, Any]:
    """summary.json and report.html."""
    settings = recipe.decide
    table = contest.tables[settings.test_split]
    summary: dict[str, Any] = {
        "seed": recipe.run.seed,
        "num_decisions": settings.num_decisions,
        "regret": {each.name.value: float(each.regrets.mean()) for each in outcomes},
        "last_regret": {each.name.value: float(each.regrets[-settings.report_every :].mean()) for each in outcomes},
        "validation_regret": {
            each.name.value: float(each.evaluations[settings.validation_split].regrets.mean()) for each in outcomes
        },
        "final_regret": {
            each.name.value: float(each.evaluations[settings.test_split].regrets.mean()) for each in outcomes
        },
    }
    sections = [report.regret_section(outcomes, test_split=settings.test_split, every=settings.report_every)]
    known = [each for each in outcomes if each.probabilities is not None]
    if known:
        best = min(known, key=lambda each: summary["validation_regret"][each.name.value])
        contributions = report.explained(contest, best)
        checked = report.check_protected(contest, best)
        fairness = report.fairness_of(contest, best.evaluations[settings.test_split])
        actions = contest.material.actions
        sections += [
            report.explanation_section(best, contributions, table, actions),
            report.fairness_section(best, fairness, checked),
        ]
        summary |= {"explained": best.name.value, "contributions": contributions.means(), "fairness": asdict(fairness)}
    sections += estimates(recipe, contest, outcomes, summary)
    directory: Path = recipe.run.directory
    (directory / SUMMARY_FILE).write_text(json.dumps(finite(summary), indent=1, allow_nan=False), encoding="utf-8")
    report.write_report(directory / REPORT_FILE, title=f"Decisions: {recipe.run.name}", sections=sections)
    print(f"{directory / REPORT_FILE}", flush=True)
    return summary


def estimates(recipe: Recipe, contest: Contest, outcomes: list[Outcome], summary: dict[str, Any]) -> list[Any]:
    """What half of the log says of policies that learned from the other half, beside the truth."""
    settings, world = recipe.decide, contest.material.world
    names = [each.name for each in outcomes if each.name in (BC, MARWIL, CQL)]
    if world is None or not (names or settings.estimate):
        return []
    study = contest.study(names) if names else {}
    coverage = ope_coverage(world, seed=recipe.run.seed) if settings.estimate else None
    summary["estimates"] = study
    if coverage is not None:
        summary["ope"], summary["ope_coverage"] = coverage, coverage["doubly_robust"]["coverage"]["value"]
    return [report.estimate_section(study, coverage)]


if __name__ == "__main__":
    main(run, __doc__)
