"""The answer within a completion."""

import pytest

from pipeline.rewards.contains import contains


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("seven", "seven", 1.0),
        ("Seven for sure", "seven", 1.0),
        ("it is two  words maybe", "two words", 1.0),
        ("seventeen", "seven", 0.0),
        ("two other words", "two words", 0.0),
        ("", "seven", 0.0),
        ("anything", " ", 1.0),
    ],
)
def test_whole_words_of_the_answer_count_wherever_they_stand(completion: str, answer: str, expected: float) -> None:
    assert contains(completion, answer) == expected
