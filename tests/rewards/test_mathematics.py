"""Formulas that are the same and formulas that are not; comparisons that would never end; other threads."""
# ruff: noqa: RUF001  Digits of other scripts are what is tested.

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


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("答案是7", "7"),
        ("答案：7", "7"),
        ("解：x+1=8\n所以答案是7。", "7"),
        ("答案是1/2，因为", "1/2"),
        ("答案是-7。", "-7"),
        ("答えは7です", "7"),
        ("คำตอบคือ7", "7"),
        ("정답은 7입니다", "7"),
        ("الجواب هو ٧", "7"),
        ("الجواب هو 7", "٧"),
        ("答案是 7", "７"),
        ("７", "٧"),
        ("Ответ 7", "7"),
        ("Η απάντηση είναι 7", "7"),
        ("Result:7", "7"),
        ("So 7", "7"),
        ("so it is -7", "-7"),
        ("½", "1/2"),
        ("It is 1½", "3/2"),
        ("x²", "x^2"),
        ("$x²+1$", "x^{2}+1"),
        ("10⁻²", "0.01"),
        ("x₁", "x_1"),
    ],
)
def test_a_number_is_read_in_any_script_and_beside_letters(completion: str, answer: str) -> None:
    assert is_mathematics(answer)
    assert mathematics_reward(completion, answer) == 1.0


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("答案是8", "7"),
        ("答案是17", "7"),
        ("答案是7", "17"),
        ("So 8", "7"),
        ("3²", "32"),
        ("x²", "x2"),
        ("1½", "11/2"),
        ("ln 7", "7"),
        ("xy + 1", "1"),
        ("答案是3，5", "3.5"),  # a full-width comma makes a list
    ],
)
def test_other_numbers_are_others_in_any_script(completion: str, answer: str) -> None:
    assert mathematics_reward(completion, answer) == 0.0


@pytest.mark.parametrize(
    "number", ["3,5", "3.5", "$3,5$", "$3{,}5$", r"\boxed{3,5}", "Die Antwort ist 3,5", "It is 3.5."]
)
def test_a_comma_of_decimals_is_read_alike_on_both_sides(number: str) -> None:
    for answer in ("3,5", "3.5", "$3{,}5$"):
        assert mathematics_reward(number, answer) == 1.0
    assert mathematics_reward(number, "35") == 0.0


def test_a_comma_between_brackets_separates_and_one_without_may() -> None:
    for listed in ("(3,5)", r"\{3,5\}", "{3,5}", "[3,5]", "f(3,5)"):
        assert mathematics_reward(listed, "3.5") == mathematics_reward("3.5", listed) == 0.0
        assert mathematics_reward(listed, listed) == 1.0
    assert mathematics_reward("(3, 5)", "(3,5)") == mathematics_reward("3,5", r"\{5, 3\}") == 1.0
    assert mathematics_reward("1,000", "1") == mathematics_reward("1,000", "1,000,000") == 0.0
    assert mathematics_reward("1.234,50", "1234.5") == 1.0
