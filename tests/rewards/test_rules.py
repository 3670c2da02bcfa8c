"""The registry of rules: complete, scored in order, and no failure lost."""

import math

import numpy as np
import pytest

from pipeline.config import RewardName
from pipeline.records import Completion, FinishReason
from pipeline.rewards import COMPARABLE, RULES, RuleFailure, can_compare, needs_answer, score_rules

TEXTUAL = (RewardName.EXACT_MATCH, RewardName.CONTAINS, RewardName.WER, RewardName.CER)
"""Rules that give 1 where text and answer are the same, whatever they are."""


def completion(text: str) -> Completion:
    return Completion(
        token_ids=np.array([1], dtype=np.int64),
        behaviour_logprobs=np.zeros(1, dtype=np.float32),
        finish_reason=FinishReason.STOP,
        weights_version=0,
        text=text,
    )


def _fails_on_seven(made: Completion, answer: str) -> float:
    if made.text == "seven":
        raise KeyError("seven")
    return math.nan if made.text == "nan" else 0.5


def test_every_reward_of_the_recipe_but_those_of_reward_model_and_people_has_a_rule() -> None:
    assert set(RULES) == set(RewardName) - {RewardName.LEARNED, RewardName.HUMAN}


def test_reward_model_and_people_alone_need_no_answer() -> None:
    assert [name for name in RewardName if not needs_answer(name)] == [RewardName.LEARNED, RewardName.HUMAN]


def test_where_there_is_no_answer_a_rule_fails_and_is_counted() -> None:
    names = [name for name in RewardName if needs_answer(name)]
    scores = score_rules(names=names, completions=[completion("six"), completion("six")], answers=[None, "six"])
    given = {name: scores.values[name].tolist() for name in names}
    assert given.pop(RewardName.NOISE)[0] == 0.0
    assert {name for name, values in given.items() if values == [0.0, 1.0]} == {*TEXTUAL, RewardName.DISTANCE}
    assert not any(any(values) for name, values in given.items() if name not in {*TEXTUAL, RewardName.DISTANCE})
    # Rules that compare something else than texts and numbers fail on the other answer, too.
    picky = {name for name in names if not can_compare(name, "six")}
    assert scores.num_failures == {f"reward_failed:{name}": 2 if name in picky else 1 for name in names}
    assert scores.failures[0].detail == "ValueError: no answer to compare with"


def test_rules_score_each_completion_against_its_answer() -> None:
    scores = score_rules(
        names=[RewardName.EXACT_MATCH, RewardName.WER, RewardName.LENGTH],
        completions=[completion("Seven"), completion("ten two")],
        answers=["seven", "ten 2"],
    )
    assert scores.values[RewardName.EXACT_MATCH].tolist() == [1.0, 0.0]
    assert scores.values[RewardName.WER].tolist() == [1.0, 0.5]
    assert scores.values[RewardName.LENGTH].tolist() == pytest.approx([0.0, -0.4])  # 7 and 5 characters
    assert scores.failures == ()


def test_a_rule_that_raises_or_gives_nan_is_zero_there_and_counted() -> None:
    scores = score_rules(
        names=[RewardName.WER],
        completions=[completion("seven"), completion("six"), completion("nan")],
        answers=["", "", ""],
        rules={RewardName.WER: _fails_on_seven},
    )
    assert scores.values[RewardName.WER].tolist() == [0.0, 0.5, 0.0]
    assert scores.num_failures == {"reward_failed:wer": 2}
    assert scores.failures[0] == RuleFailure(name=RewardName.WER, row=0, detail="KeyError: 'seven'")
    assert scores.failures[1].detail == "ValueError: the rule gave nan"


def test_a_rule_is_asked_where_it_applies_and_nowhere_else() -> None:
    scores = score_rules(
        names=[RewardName.DISTANCE, RewardName.WER],
        completions=[completion("six"), completion("6")],
        answers=["a cat", "4"],
        applies={RewardName.DISTANCE: [False, True], RewardName.WER: [True, False]},
    )
    assert scores.values[RewardName.DISTANCE].tolist() == pytest.approx([0.0, 0.6])
    assert scores.failures == ()


@pytest.mark.parametrize(
    ("name", "able", "unable"),
    [
        (RewardName.DISTANCE, "seven", "a cat"),
        (RewardName.MATHEMATICS, "1/2", "a cat"),
        (RewardName.CHOICE, "(B)", "a cat"),
        (RewardName.JSON_SCHEMA, '{"type": "object"}', '["a"]'),
        (RewardName.JSON_MATCH, '["a"]', "a cat"),
        (RewardName.IOU, "[1, 2, 3, 4]", "[1, 2]"),
        (RewardName.HIT, "[1, 2, 3, 4]", "[1, 2]"),
    ],
)
def test_some_rules_compare_with_some_answers_only(name: RewardName, able: str, unable: str) -> None:
    assert can_compare(name, able) and not can_compare(name, unable)
    assert can_compare(name, None)  # whether there must be an answer is for others to ask


def test_the_other_rules_take_any_answer() -> None:
    assert set(COMPARABLE) | set(TEXTUAL) | {RewardName.LENGTH, RewardName.NOISE} == set(RULES)
    assert all(can_compare(name, "a cat") for name in RULES if name not in COMPARABLE)


def test_the_learned_reward_is_no_rule() -> None:
    with pytest.raises(ValueError, match=r"no rule for rewards .*learned"):
        score_rules(names=[RewardName.LEARNED], completions=[], answers=[])


def test_each_completion_needs_an_answer() -> None:
    with pytest.raises(ValueError, match="1 completions but 0 answers"):
        score_rules(names=[RewardName.WER], completions=[completion("six")], answers=[])
