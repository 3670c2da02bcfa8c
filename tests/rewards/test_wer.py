"""Word error rate by hand, empty texts included."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.rewards.wer import cer, cer_reward, corpus_wer, wer, wer_reward


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("the cat sat", "The  cat sat", 0.0),
        ("the bat sat", "the cat sat", 1 / 3),  # one substitution in three words
        ("the sat", "the cat sat", 1 / 3),  # one deletion
        ("the big cat sat", "the cat sat", 1 / 3),  # one insertion
        ("a b c d e", "x", 5.0),  # one substitution and four insertions in one word
        ("", "the cat", 1.0),  # two deletions in two words
        ("", "", 0.0),
        ("two words", " ", 2.0),  # two insertions; an empty answer counts as one word
    ],
)
def test_errors_a_word_of_the_answer(completion: str, answer: str, expected: float) -> None:
    assert wer(completion, answer) == pytest.approx(expected)
    assert wer_reward(completion, answer) == pytest.approx(max(0.0, 1.0 - expected))


def test_the_rate_of_a_corpus_is_all_errors_over_all_words() -> None:
    # One error in one word, one (an insertion) in four: 2/5, where the mean of the rates is (1 + 1/4) / 2.
    assert corpus_wer(["bat", "The dog  sat down here"], ["cat", "the dog sat down"]) == pytest.approx(2 / 5)
    assert corpus_wer(["", "a b"], ["x y", "a b"]) == pytest.approx(2 / 4)
    assert corpus_wer(["b"], ["a b c d"]) == pytest.approx(3 / 4)  # words of the answer, not of the completion
    with pytest.raises(ValueError, match="1 answers without a word"):
        corpus_wer(["a"], [" "])


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("The Cat.", "the cat", 0.0),
        ("the bat", "the cat", 1 / 6),  # one of six letters; the blank is none
        ("thecat", "the cat", 0.0),
        ("the at", "the cat", 1 / 6),  # one deletion
        ("the coat", "the cat", 1 / 6),  # one insertion
        ("kitten", "sitting", 3 / 7),  # Levenshtein's own
        ("你好吗", "你好嘛", 1 / 3),
        ("नमस्ते", "नमस्ते", 0.0),
        ("नमस्त", "नमस्ते", 1 / 3),  # न म स्ते: one of three graphemes
        ("", "cat", 1.0),
        ("", "", 0.0),
        ("cat", " ", 3.0),
    ],
)
def test_errors_a_character_of_the_answer(completion: str, answer: str, expected: float) -> None:
    assert cer(completion, answer) == pytest.approx(expected)
    assert cer_reward(completion, answer) == pytest.approx(max(0.0, 1.0 - expected))


@settings(max_examples=50, deadline=None)
@given(completion=st.text(max_size=20), answer=st.text(max_size=20))
def test_any_two_texts_have_a_reward_between_zero_and_one(completion: str, answer: str) -> None:
    assert 0.0 <= wer_reward(completion, answer) <= 1.0
    assert wer_reward(answer, answer) == 1.0
    assert 0.0 <= cer_reward(completion, answer) <= 1.0
    assert cer_reward(answer, answer) == 1.0
