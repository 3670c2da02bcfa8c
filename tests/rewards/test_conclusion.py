"""What of a completion that thinks is compared, by every reward that has an answer to compare with."""

import numpy as np
import pytest

from pipeline.config import RewardName
from pipeline.records import Completion, FinishReason
from pipeline.rewards import RULES, can_compare, score_rules
from pipeline.rewards.boxes import iou_reward
from pipeline.rewards.choice import choice_reward
from pipeline.rewards.conclusion import conclusion
from pipeline.rewards.contains import contains
from pipeline.rewards.distance import is_integer
from pipeline.rewards.mathematics import is_mathematics, mathematics_reward
from pipeline.rewards.overlap import bleu, corpus_bleu, rouge_l
from pipeline.rewards.python_tests import program_of
from pipeline.rewards.wer import corpus_wer, wer

FORM = {RewardName.LENGTH, RewardName.NOISE}
"""Rules that judge how a completion is written, and not what it comes to."""

RIGHT_AND_WRONG = {
    RewardName.EXACT_MATCH: ("a red cat", "a dog"),
    RewardName.CONTAINS: ("a red cat", "a dog"),
    RewardName.WER: ("a red cat", "some other dog"),
    RewardName.CER: ("a red cat", "fox"),
    RewardName.DISTANCE: ("7", "20"),
    RewardName.MATHEMATICS: ("7", "8"),
    RewardName.CHOICE: ("B", "C"),
    RewardName.JSON_SCHEMA: ('{"type": "object"}', "[1]"),
    RewardName.JSON_MATCH: ('{"a": 1}', '{"a": 2}'),
    RewardName.IOU: ("[10, 20, 30, 40]", "[50, 50, 60, 60]"),
    RewardName.HIT: ("[10, 20, 30, 40]", "[50, 50, 60, 60]"),
}


def completion(text: str) -> Completion:
    return Completion(np.array([1]), np.zeros(1, np.float32), FinishReason.STOP, 0, text)


@pytest.mark.parametrize(
    ("text", "compared"),
    [
        ("7", "7"),
        ("<answer>7</answer>", "7"),
        ("<think>3 + 4</think>\n<answer>7</answer>", "7"),
        ("<think>3 + 4</think>7", "7"),
        ("<THINK>3 + 4</THINK><Answer>\n7\n</Answer>.", "\n7\n"),
        ("3 + 4</think>7", "7"),  # the prompt opened it
        ("<think>a</think>6, no: <think>b</think>7", "7"),
        ("<answer>6</answer> no: <answer>7</answer>", "7"),
        ("It goes between <answer> and </answer>: <answer> in <answer>7</answer>", "7"),
        ("<think>It goes in <answer></answer>.</think>It is 7", "It is 7"),
        ("<think>3 + 4<answer>7</answer>", "7"),
        ("<think>3 + 4<answer>7</answer></think>\n", "7"),
        ("<think>3 + 4</think><answer>7", "7"),  # a stop string is cut off
        ("<answer>6</answer> no: <answer>7", "6"),
        ("<think>3 + 4 = 7", ""),
        ("<think>a</think>6 <think>or 7", ""),
        ("<think>3 + 4 = 7</think>", ""),
        ("<reasoning>3 + 4</reasoning>7", "7"),
        ("48 / 2 = <<48/2=24>>24, 48 + 24 = 72\n#### 72\n", "72"),
        ("#### 72", "72"),
        ("#### Reasons\nIt is 7.", "#### Reasons\nIt is 7."),
        ("1 < 7, a <b> c", "1 < 7, a <b> c"),
        ("", ""),
    ],
)
def test_the_part_of_a_text_that_is_compared(text: str, compared: str) -> None:
    assert conclusion(text) == compared


@pytest.mark.parametrize("name", sorted(set(RULES) - FORM))
def test_every_rule_that_compares_sees_the_answer_and_not_the_thinking(name: RewardName) -> None:
    answer, wrong = RIGHT_AND_WRONG[name]
    right = "{}" if name is RewardName.JSON_SCHEMA else "[11, 21, 29, 39]" if name is RewardName.HIT else answer
    texts = (f"<think>{wrong}</think>\n<answer>{right}</answer>", f"<think>{right}</think>\n<answer>{wrong}</answer>")
    for reference in (answer, f"<answer> {answer} </answer>", f"<think>{wrong}</think><answer>{answer}</answer>"):
        assert can_compare(name, reference)
        scores = score_rules(names=[name], completions=[*map(completion, texts)], answers=[reference] * 2)
        assert scores.failures == ()
        assert scores.values[name].tolist() == [1.0, 0.0], reference


def test_what_was_only_thought_is_not_compared_with_a_reference_either() -> None:
    assert not can_compare(RewardName.DISTANCE, "<think>7</think><answer>a cat</answer>")
    assert not is_mathematics("<think>It is 7 .</think><answer>a cat</answer>")
    assert is_integer("<answer> 7 </answer>") and not is_integer("<think>7</think> seven")


def test_thinking_that_never_ends_has_said_nothing() -> None:
    assert mathematics_reward("<think>3 + 4 = 7", "7") == contains("<think>7", "7") == 0.0
    assert choice_reward("<think>B", "B") == iou_reward("<think>[1, 2, 3, 4]", "[1, 2, 3, 4]") == 0.0


def test_error_rates_overlap_and_programs_see_the_answer_alone() -> None:
    text = "<think>a b c d e</think><answer>it is a cat</answer>"
    assert wer(text, "it is a cat") == corpus_wer([text], ["it is a cat"]) == 0.0
    assert bleu(text, "it is a cat") == corpus_bleu([text], ["it is a cat"]) == rouge_l(text, "it is a cat") == 1.0
    assert program_of("<think>```python\n1\n```</think><answer>print(2)</answer>") == "print(2)"


def test_a_reward_on_form_sees_all_of_it() -> None:
    text, answer = "<think>a</think><answer>b</answer>", "<answer>b</answer>"
    (penalty,) = score_rules(
        names=[RewardName.LENGTH], completions=[completion(text)], answers=[answer]
    ).values.values()
    assert penalty.tolist() == pytest.approx([-(len(text) - len(answer)) / len(answer)])
