"""Word and character error rates, for transcripts; words are characters where a script has no blanks between them."""

from __future__ import annotations

from collections.abc import Sequence

import jiwer
import regex

from pipeline.rewards.conclusion import conclusion, of_conclusions
from pipeline.rewards.normalise import normalise, units


@of_conclusions
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
    references, hypotheses = ([" ".join(units(conclusion(text))) for text in texts] for texts in (answers, completions))
    found = jiwer.process_words(references, hypotheses)
    num_words = found.hits + found.substitutions + found.deletions
    if not num_words:
        raise ValueError(f"{len(answers)} answers without a word: a word error rate divides by their words")
    return (found.substitutions + found.deletions + found.insertions) / num_words


def wer_reward(completion: str, answer: str) -> float:
    """1 - min(wer, 1), in [0, 1]: 1 is perfect."""
    return 1.0 - min(wer(completion, answer), 1.0)


@of_conclusions
def cer(completion: str, answer: str) -> float:
    """Character error rate: (substitutions + deletions + insertions) / characters of the answer, after `normalise`.

    A character is what a reader takes for one (a grapheme: a letter with its marks). Blanks between words do not count,
    neither as characters nor as errors. An empty answer counts as one character long.
    """
    hypothesis, reference = (regex.findall(r"\X", normalise(text).replace(" ", "")) for text in (completion, answer))
    if not reference:
        return float(len(hypothesis))
    return float(jiwer.wer(" ".join(reference), " ".join(hypothesis)))


def cer_reward(completion: str, answer: str) -> float:
    """1 - min(cer, 1), in [0, 1]: 1 is perfect."""
    return 1.0 - min(cer(completion, answer), 1.0)
