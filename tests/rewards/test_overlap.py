"""BLEU and ROUGE-L by hand."""

import math
from collections.abc import Callable

import pytest

from pipeline.rewards.overlap import bleu, corpus_bleu, rouge_l


def test_bleu_by_hand() -> None:
    # "a b c d" against "a b c e": 3/4 unigrams, 2/3 bigrams, 1/2 trigrams, 0/1 fourgrams, smoothed to (1/2)/1;
    # equal lengths, no brevity penalty: (3/4 * 2/3 * 1/2 * 1/2) ^ (1/4) = (1/8) ^ (1/4).
    assert bleu("a b c d", "a b c e") == pytest.approx((1 / 8) ** 0.25)


def test_a_short_completion_pays_the_brevity_penalty() -> None:
    # Two of four words, all right: unigrams 2/2, bigrams 1/1, exp(1 - 4/2).
    assert bleu("a b", "a b c d") == pytest.approx(math.exp(-1))


def test_corpus_bleu_sums_counts_and_lengths_over_pairs() -> None:
    # Unigrams 4/4 + 2/2 less the wrong d: 5/6; bigrams ab, bc, xy of four; trigrams abc of two; fourgrams 0/1, smoothed
    # to 1/2. Six words against seven: exp(1 - 7/6).
    by_hand = (5 / 6 * 3 / 4 * 1 / 2 * 1 / 2) ** 0.25 * math.exp(1 - 7 / 6)
    assert corpus_bleu(["a b c d", "x y"], ["a b c e", "x y z"]) == pytest.approx(by_hand)
    assert corpus_bleu(["a b c d", "x y"], ["a b c e", "x y z"]) != pytest.approx(
        (bleu("a b c d", "a b c e") + bleu("x y", "x y z")) / 2, abs=0.02
    )


def test_a_corpus_of_short_texts_is_measured_by_the_n_grams_it_has() -> None:
    # Unigrams 5/6, bigrams 3/4, trigrams 1/2, no fourgram.
    assert corpus_bleu(["a b c", "x y z"], ["a b c", "x y q"]) == pytest.approx((5 / 6 * 3 / 4 * 1 / 2) ** (1 / 3))


def test_rouge_l_by_hand() -> None:
    # Longest common subsequence "the cat mat": recall 3/6, precision 3/4, F1 = 2 * 3/8 / (5/4) = 0.6.
    assert rouge_l("the cat, a mat", "The cat sat on the mat.") == pytest.approx(0.6)


def test_words_in_any_script_count() -> None:
    assert rouge_l("der süße Käse", "Der süße Käse") == 1.0
    assert rouge_l("красный мяч", "синий мяч") == pytest.approx(0.5)


@pytest.mark.parametrize("overlap", [bleu, rouge_l])
def test_overlap_is_one_for_the_answer_itself_and_zero_for_empty_texts(overlap: Callable[[str, str], float]) -> None:
    assert overlap("a b c d", "a b c d") == 1.0
    assert overlap("", "a b") == overlap("a b", "") == overlap("", "") == overlap("x y", "a b") == 0.0
