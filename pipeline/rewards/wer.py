"""Word error rate, for transcripts."""

from __future__ import annotations

import jiwer

from pipeline.rewards.exact_match import normalise


def wer(completion: str, answer: str) -> float:
    """Word error rate: (substitutions + deletions + insertions) / words of the answer, after `normalise`.

    0 is perfect, an empty completion has 1, and a long one more than 1. An empty answer counts as one word long, so
    each word beside it is one error.
    """
    hypothesis, reference = normalise(completion), normalise(answer)
    if not reference:
        return float(len(hypothesis.split()))
    return float(jiwer.wer(reference, hypothesis))


def wer_reward(completion: str, answer: str) -> float:
    """1 - min(wer, 1), in [0, 1]: 1 is perfect."""
    return 1.0 - min(wer(completion, answer), 1.0)
