"""Word error rate, for transcripts; of characters where a script has no blanks between words."""

from __future__ import annotations

from collections.abc import Sequence

import jiwer

from pipeline.rewards.normalise import units


def wer(completion: str, answer: str) -> float:
    """Word error rate: (substitutions + deletions + insertions) / words of the answer, after `normalise`.

    In Chinese, Japanese, Thai and other scripts without blanks each character is a word: this is then the character
    error rate, and in mixed text the mixed one (words of the one script, characters of the other).

    0 is perfect, an empty completion has 1, and a long one more than 1. An empty answer counts as one word long, so
    each word beside it is one error.
    """
    hypothesis, reference = units(completion), units(answer)
    if not reference:
        return float(len(hypothesis))
    return float(jiwer.wer(" ".join(reference), " ".join(hypothesis)))


def corpus_wer(completions: Sequence[str], answers: Sequence[str]) -> float:
    """Word error rate of a corpus: all errors / all words of the answers, each pair after `normalise`.

    This is the rate that speech recognition reports: long answers weigh more than in the mean of `wer` over pairs.

    Raises:
        ValueError: there is no pair, or the answers have no word.
    """
    references, hypotheses = ([" ".join(units(text)) for text in texts] for texts in (answers, completions))
    found = jiwer.process_words(references, hypotheses)
    num_words = found.hits + found.substitutions + found.deletions
    if not num_words:
        raise ValueError(f"{len(answers)} answers without a word: a word error rate divides by their words")
    return (found.substitutions + found.deletions + found.insertions) / num_words


def wer_reward(completion: str, answer: str) -> float:
    """1 - min(wer, 1), in [0, 1]: 1 is perfect."""
    return 1.0 - min(wer(completion, answer), 1.0)
