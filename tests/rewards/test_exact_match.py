"""Exact match after normalisation."""

import pytest

from pipeline.rewards.exact_match import exact_match


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("seven", "seven", 1.0),
        ("  Seven\n", "seven", 1.0),
        ("two \t words", "Two words", 1.0),
        ("STRASSE", "straße", 1.0),
        ("seven.", "seven", 1.0),
        ("5kg", "5 kg", 1.0),
        ("7°C", "7 °C", 1.0),
        ("İSTANBUL", "istanbul", 1.0),
        ("ILIK", "ılık", 1.0),  # noqa: RUF001
        ("-7", "7", 0.0),
        ("7.5", "75", 0.0),
        ("?", "", 0.0),
        ("twowords", "two words", 0.0),
        ("", "seven", 0.0),
        (" ", "", 1.0),
    ],
)
def test_case_punctuation_and_whitespace_do_not_count(completion: str, answer: str, expected: float) -> None:
    assert exact_match(completion, answer) == expected
