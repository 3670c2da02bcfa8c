"""Distance between numbers by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import RewardName
from pipeline.rewards import can_compare
from pipeline.rewards.distance import distance_reward, first_number, is_integer


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
        ("twenty-one cats", "21", 1.0),
        ("Ninety nine", "99", 1.0),
        ("one hundred and five", "105", 1.0),
        ("a hundred", "99", 0.8),
        ("two thousand", "2", 0.0),  # too much to be read, and not two
        ("5kg", "5", 1.0),
        ("7°C", "7", 1.0),
        ("3,5", "3.5", 1.0),
        ("3,5 m", "3,5", 1.0),
        ("0,500", "0.5", 1.0),
        ("-3,5", "-3.5", 1.0),
        ("1,000", "1000", 1.0),
        ("1.000.000", "1000000", 1.0),
        ("1.234,5", "1234.5", 1.0),
        ("1,234.5", "1234.5", 1.0),
        ("1.000", "1", 1.0),  # a single point is one of decimals
        ("1,2,3", "1", 0.0),
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


def test_an_answer_with_a_counter_or_in_words_is_a_number() -> None:
    answers = ("3개", "两只", "3,5", "twenty-one", "十二", "5kg", "red", "7th")
    assert [first_number(answer) for answer in answers] == [3, 2, 3.5, 21, 12, 5, None, None]
    assert [can_compare(RewardName.DISTANCE, answer) for answer in answers] == [True] * 6 + [False] * 2
