"""Rewards by rule, one a file, each a pure function of two strings; `RULES` names them as the recipe does.

Two rewards are no rules: `learned` is the reward model's score and comes from its own workers, `human` is what people
said of the very completion.
To add a rule: write its function, name it in `RewardName`, add a line to `RULES`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config import RewardName
from pipeline.records import Completion
from pipeline.rewards.boxes import has_box, hit_reward, iou_reward
from pipeline.rewards.choice import choice_reward, chosen
from pipeline.rewards.conclusion import conclusion
from pipeline.rewards.contains import contains
from pipeline.rewards.distance import distance_reward, first_number
from pipeline.rewards.exact_match import exact_match
from pipeline.rewards.json_schema import is_json, is_schema, json_match_reward, json_schema_reward
from pipeline.rewards.length import length_reward
from pipeline.rewards.mathematics import is_mathematics, mathematics_reward
from pipeline.rewards.noise import noise
from pipeline.rewards.normalise import fold
from pipeline.rewards.wer import cer_reward, wer_reward

Rule = Callable[[Completion, str], float]
"""(completion, reference answer) -> finite reward. Every rule compares: where there is no answer it says nothing."""


def _length_rule(completion: Completion, answer: str) -> float:
    return length_reward(length=len(fold(completion.text)), target=len(fold(answer)))


RULES: dict[RewardName, Rule] = {
    RewardName.EXACT_MATCH: lambda completion, answer: exact_match(completion.text, answer),
    RewardName.CONTAINS: lambda completion, answer: contains(completion.text, answer),
    RewardName.WER: lambda completion, answer: wer_reward(completion.text, answer),
    RewardName.LENGTH: _length_rule,
    RewardName.DISTANCE: lambda completion, answer: distance_reward(completion.text, answer),
    RewardName.CER: lambda completion, answer: cer_reward(completion.text, answer),
    RewardName.MATHEMATICS: lambda completion, answer: mathematics_reward(completion.text, answer),
    RewardName.CHOICE: lambda completion, answer: choice_reward(completion.text, answer),
    RewardName.JSON_SCHEMA: lambda completion, answer: json_schema_reward(completion.text, answer),
    RewardName.JSON_MATCH: lambda completion, answer: json_match_reward(completion.text, answer),
    RewardName.IOU: lambda completion, answer: iou_reward(completion.text, answer),
    RewardName.HIT: lambda completion, answer: hit_reward(completion.text, answer),
    RewardName.NOISE: lambda completion, answer: noise(completion),
}

COMPARABLE: dict[RewardName, Callable[[str], bool]] = {
    RewardName.DISTANCE: lambda answer: first_number(answer) is not None,
    RewardName.MATHEMATICS: is_mathematics,
    RewardName.CHOICE: lambda answer: chosen(answer) is not None,
    RewardName.JSON_SCHEMA: is_schema,
    RewardName.JSON_MATCH: is_json,
    RewardName.IOU: has_box,
    RewardName.HIT: has_box,
}
"""Rules that compare with some answers only, and with which; the others take any text."""


def needs_answer(name: RewardName) -> bool:
    """Whether a reward compares with the reference answer: all rules do (to `length` it is the longest that is free).

    The reward model and people judge completions of prompts that have none, too.
    """
    return name in RULES


def can_compare(name: RewardName, answer: str | None) -> bool:
    """Whether a reward has what it compares with in this answer: `distance` a number, `iou` a box; see `COMPARABLE`.

    That there is an answer at all is for the door to ask (`needs_answer`).
    """
    return answer is None or name not in COMPARABLE or COMPARABLE[name](conclusion(answer))


@dataclass(frozen=True)
class RuleFailure:
    """One reward that could not be given: which rule, on which row of the batch, and why."""

    name: RewardName
    row: int
    detail: str

    @property
    def reason(self) -> str:
        """Reason code under which reports count it."""
        return f"reward_failed:{self.name}"


@dataclass(frozen=True)
class RuleScores:
    """What the rules gave for a batch.

    values: rule -> float32 [B], 0 where the rule failed or was not asked.
    failures: each failed reward, in the order of rules, then rows.
    """

    values: dict[RewardName, Float[Tensor, " B"]]
    failures: tuple[RuleFailure, ...]

    @property
    def num_failures(self) -> Counter[str]:
        """Number of failures by reason code, for the metrics of a step."""
        return Counter(failure.reason for failure in self.failures)


def score_rules(
    *,
    names: Sequence[RewardName],
    completions: Sequence[Completion],
    answers: Sequence[str | Sequence[str] | None],
    applies: Mapping[RewardName, Sequence[bool]] | None = None,
    rules: Mapping[RewardName, Rule] = RULES,
) -> RuleScores:
    """Scores B completions by the named rules.

    A rule that raises, or gives NaN or infinity, stops nothing: that reward is 0.0 (NaN would spread over the whole
    step through whitening and running scales) and becomes a `RuleFailure`, for the caller to count and report. So does
    that of a prompt without an answer.

    Args:
        names: which rules; `learned` is not one.
        completions: B.
        answers: B reference answers, one a completion, or several of which the best counts; None where there is none.
        applies: for each rule B times whether it is asked; None asks all of all.
        rules: where the names are looked up.

    Raises:
        ValueError: a name has no rule, or `completions` and `answers` differ in length.
    """
    unknown = sorted(set(names) - set(rules))
    if unknown:
        raise ValueError(f"no rule for rewards {unknown}; there are {sorted(rules)}")
    if len(completions) != len(answers):
        raise ValueError(f"{len(completions)} completions but {len(answers)} answers")
    values: dict[RewardName, Tensor] = {}
    failures: list[RuleFailure] = []
    for name in names:
        given = [0.0] * len(completions)
        for row, (completion, answer) in enumerate(zip(completions, answers, strict=True)):
            if applies and not applies[name][row]:
                continue
            try:
                answers_of_row = (answer,) if isinstance(answer, str) else answer or ()
                if not answers_of_row:
                    raise ValueError("no answer to compare with")
                # Of several, those that the rule can compare with; of one, its error says why it cannot.
                able = answers_of_row[:1]
                if len(answers_of_row) > 1:
                    able = [each for each in answers_of_row if can_compare(name, each)] or able
                value = max(rules[name](completion, each) for each in able)
                if not math.isfinite(value):
                    raise ValueError(f"the rule gave {value}")
            except Exception as error:  # a rule is user code: whatever it raises is counted, never passed over
                failures.append(RuleFailure(name=name, row=row, detail=f"{type(error).__name__}: {error}"))
            else:
                given[row] = value
        values[name] = torch.tensor(given)
    return RuleScores(values=values, failures=tuple(failures))
