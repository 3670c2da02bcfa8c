"""The page of a contest: regret curves, what decisions rest on, who is served how, and what the log foretold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import ConfigError
from pipeline.decisions.contest import Contest, Outcome, curve
from pipeline.decisions.explanation import Contributions, explain
from pipeline.decisions.fairness import FairnessTable, check_counterfactual, check_inputs, fairness_table
from pipeline.decisions.online import Evaluation
from pipeline.decisions.table import DecisionTable
from pipeline.evaluation.intervals import paired
from pipeline.evaluation.page import Section, Table, curves, write_page

NUM_EXPLAINED = 200
NUM_SHOWN = 12


def regret_section(outcomes: Sequence[Outcome], *, test_split: str, every: int) -> Section:
    """Regrets of all, as a table and as curves."""
    rows = [
        (
            outcome.name.value,
            f"{outcome.regrets.mean():.3f}",
            f"{outcome.regrets[-every:].mean():.3f}",
            _interval(outcome.evaluations[test_split].regrets.tolist()),
        )
        for outcome in outcomes
    ]
    lines = {outcome.name.value: list(curve(outcome.regrets, every)) for outcome in outcomes}
    summed = {
        outcome.name.value: [(x, float(outcome.regrets[: int(x)].sum())) for x, _ in lines[outcome.name.value]]
        for outcome in outcomes
    }
    return Section(
        title="Regret",
        text="What a decision lost against the best action. Online algorithms learn while they decide, so that the "
        "mean has their whole learning in it; supervised, bc, marwil and cql learned from the log before, and stay as "
        "they are.",
        table=Table(("algorithm", "mean while deciding", "at the end", f"on {test_split}, 95 % interval"), tuple(rows)),
        figures=(
            curves("Regret a decision", lines, unit="regret", along="decisions"),
            curves("Regret, summed up", summed, unit="regret", along="decisions"),
        ),
    )


def explained(contest: Contest, outcome: Outcome) -> Contributions:
    """What the first decisions of the test split rest on."""
    assert outcome.probabilities is not None
    table = contest.tables[contest.settings.test_split]
    states = {name: each[:NUM_EXPLAINED] for name, each in table.inputs.items()}
    return explain(outcome.probabilities, states, table.modalities)


def explanation_section(
    outcome: Outcome, found: Contributions, table: DecisionTable, actions: Sequence[str]
) -> Section:
    """Contributions of the modalities: means, and decision by decision."""
    head = ("decision", "action", "probability", *(f"{name}: Shapley (ablation)" for name in found.modalities))
    rows = [
        (
            table.ids[row],
            actions[int(found.actions[row])] if found.actions[row] < len(actions) else "a question",
            f"{found.probabilities[row]:.2f}",
            *(
                f"{found.shapley[row, place]:+.2f} ({found.ablation[row, place]:+.2f})"
                if found.present[row, place]
                else "absent"
                for place in range(len(found.modalities))
            ),
        )
        for row in range(min(NUM_SHOWN, len(found.actions)))
    ]
    means = "; ".join(
        f"{name} {each['shapley']:+.2f} ({each['ablation']:+.2f}) where it is there, in {each['share']:.0%} of the rows"
        for name, each in found.means().items()
    )
    return Section(
        title=f"What decisions of {outcome.name} rest on",
        text="How much each modality adds to the probability of the action chosen: exact Shapley values, and in "
        f"brackets what is lost without it.\n\nMeans: {means}.",
        table=Table(head, tuple(rows)),
    )


def fairness_of(contest: Contest, evaluation: Evaluation) -> FairnessTable:
    """Reward and error by group on the test split."""
    table = contest.tables[contest.settings.test_split]
    rewards = table.rewards[evaluation.rows, np.minimum(evaluation.actions, table.num_actions - 1)]
    best = table.rewards[evaluation.rows].max(1)
    groups = [table.groups[row] for row in evaluation.rows]
    return fairness_table(groups, rewards=rewards.astype(float), errors=rewards < best - 1e-6)


def fairness_section(outcome: Outcome, found: FairnessTable, checked: Sequence[str]) -> Section:
    """The table by group."""
    rows = tuple(
        (
            each.group or "all",
            str(each.num),
            f"{each.reward.value:.3f} [{each.reward.low:.3f}, {each.reward.high:.3f}]",
            f"{each.error.value:.3f} [{each.error.low:.3f}, {each.error.high:.3f}]",
        )
        for each in found.rows
    )
    gap = found.reward_gap
    said = f"No decision depends on {', '.join(checked)}. " if checked else ""
    return Section(
        title=f"Whom {outcome.name} serves how",
        text=f"{said}Reward gap {gap.value:.3f} [{gap.low:.3f}, {gap.high:.3f}]: "
        f"{gap.best or 'all'} is ahead of {gap.worst or 'all'}.",
        table=Table(("group", "decisions", "reward", "not the best action"), rows),
    )


def check_protected(contest: Contest, outcome: Outcome) -> tuple[str, ...]:
    """The protected columns, after it is sure that no decision depends on them.

    Raises:
        ConfigError: one does, or there is no such column.
    """
    protected, table = contest.settings.protected, contest.tables[contest.settings.test_split]
    if not protected:
        return ()
    unknown = [name for name in protected if name != "group" and name not in table.inputs]
    if unknown:
        raise ConfigError(f"decide.protected={list(protected)}: there is no column {unknown[0]!r}; there is `group`")
    check_inputs(protected, table.inputs)
    rows = [{"row": row, "group": table.groups[row]} for row in range(min(NUM_EXPLAINED, len(table)))]

    def decide(given: Sequence[Mapping[str, Any]]) -> Any:
        assert outcome.probabilities is not None
        chosen = table.rows([each["row"] for each in given])
        return outcome.probabilities(chosen.inputs).argmax(1)

    check_counterfactual(decide, rows, protected, names=table.ids)
    return protected


def estimate_section(study: Mapping[str, Any], coverage: Mapping[str, Any] | None) -> Section:
    """What half of the log foretold of policies that learned from the other half, and what they are truly worth."""
    rows = tuple(
        (
            name,
            "{value:.3f} [{low:.3f}, {high:.3f}]".format(**found["doubly_robust"]),
            f"{found['true_value']:.3f}",
            f"{found['doubly_robust']['effective_size']:.0f}",
        )
        for name, found in study.items()
    )
    said = ""
    if coverage is not None:
        covered = coverage["doubly_robust"]["coverage"]["value"]
        said = f"Of {coverage['num_logs']} simulated logs, {covered:.0%} have the true value in the interval."
    head = ("policy", "doubly robust by the log", "true value", "effective decisions")
    return Section(title="Before anything goes live", text=said, table=Table(head, rows))


def write_report(path: Path, *, title: str, sections: Sequence[Section]) -> None:
    """The page."""
    write_page(path, title=title, sections=sections)


def _interval(values: Sequence[float]) -> str:
    found = paired([float(np.clip(value, -1, 1)) for value in values])
    assert found is not None
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
