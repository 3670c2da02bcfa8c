"""Formulas that are the same and formulas that are not; comparisons that would never end; other threads."""

import threading

import pytest

from pipeline.rewards.mathematics import is_mathematics, mathematics_reward


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("0.5", "1/2"),
        (r"\frac{1}{2}", "1/2"),
        (r"\frac12", "0.5"),
        ("The answer is $\\frac{1}{2}$.", "0.5"),
        ("50%", "0.5"),
        (r"First 3, so it is \boxed{\frac{2}{4}}", "1/2"),
        ("3 + 4 = 7, so there are 7 cats.", "7"),
        ("1,000", "1000"),
        ("0.333333", "1/3"),
        (r"\sqrt{4}", "2"),
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
        ("x = 3", "3"),
        ("x^2 + 2x + 1", "(x+1)^2"),
        (r"\{2, 1\}", r"$\{1, 2\}$"),
        ("The solutions are $\\{1, 2\\}$", r"\{2, 1\}"),
        ("the interval $(1, 2]$", "(1,2]"),
        (r"(-\infty, 3]", r"$(-\infty,3]$"),
        ("3 cm", "3"),
    ],
)
def test_these_are_the_same(completion: str, answer: str) -> None:
    assert mathematics_reward(completion, answer) == 1.0


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("0.51", "1/2"),
        ("-1/2", "1/2"),
        (r"\frac{2}{1}", "1/2"),
        (r"\{1, 3\}", r"\{1, 2\}"),
        ("(1, 2)", "[1, 2]"),
        ("(1, 2]", "(1, 2)"),
        ("2x + 1", "2"),  # no number that stands in a formula is its value
        ("2", "2x+1"),
        ("7, no: 8", "7"),
        ("no idea", "7"),
        ("", "7"),
    ],
)
def test_these_are_not(completion: str, answer: str) -> None:
    assert mathematics_reward(completion, answer) == 0.0


def test_an_answer_without_mathematics_is_an_error() -> None:
    with pytest.raises(ValueError, match="no mathematics in the answer 'a cat'"):
        mathematics_reward("7", "a cat")
    assert [is_mathematics(text) for text in ("7", "1/2", r"\{1, 2\}", "a cat", "seven")] == [True] * 3 + [False] * 2


@pytest.mark.parametrize("endless", ["$9^{9^{9^{9^9}}}$", "$10000000000000!$"])
def test_what_would_take_for_ever_is_given_up_and_the_next_comparison_works(endless: str) -> None:
    with pytest.raises(TimeoutError, match=r"'5' took longer than 0.5 s"):
        mathematics_reward(endless, "5", deadline_s=0.5)
    assert mathematics_reward("10/2", "5") == 1.0


def test_any_thread_may_ask() -> None:
    earned: list[float] = []
    asking = [threading.Thread(target=lambda: earned.append(mathematics_reward("4/8", "0.5"))) for _ in range(4)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(timeout=30)
    assert earned == [1.0] * 4
