"""Distance between numbers by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.rewards.distance import distance_reward, is_integer


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("7", "7", 1.0),
        ("8", "7", 0.8),  # one off costs a fifth, on either side
        ("6", "7", 0.8),
        ("4", "7", 0.4),
        ("12", "7", 0.0),  # five off, all
        ("100", "7", 0.0),
        ("Seven maybe", "7", 1.0),
        ("6 for sure", "seven", 0.8),
        ("there are TWENTY, not 3", "20", 1.0),  # the first number counts
        ("-1", "1", 0.6),
        ("6.5 or so", "7", 0.9),
        ("7.", "7", 1.0),
        ("seventeen", "7", 0.0),  # seventeen, not seven
        ("7th", "7", 0.0),  # no number of its own
        ("many", "7", 0.0),
        ("", "0", 0.0),
    ],
)
def test_each_one_that_a_count_is_off_costs_a_fifth(completion: str, answer: str, expected: float) -> None:
    assert distance_reward(completion, answer) == pytest.approx(expected)


def test_an_answer_without_a_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="no number in the answer 'red ring'"):
        distance_reward("7", "red ring")


def test_only_a_whole_number_in_digits_and_nothing_else_is_an_integer() -> None:
    assert [is_integer(text) for text in ("7", " -12 ", "seven", "7 plus 5", "7.5", "")] == [True, True] + [False] * 4


@settings(max_examples=50, deadline=None)
@given(completion=st.text(max_size=20), answer=st.integers())
def test_any_text_earns_between_zero_and_one_and_the_answer_itself_one(completion: str, answer: int) -> None:
    assert 0.0 <= distance_reward(completion, str(answer)) <= 1.0
    assert distance_reward(str(answer), str(answer)) == 1.0
