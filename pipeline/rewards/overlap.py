"""Overlap with a reference text: BLEU for translations, ROUGE-L for summaries."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import sacrebleu


def bleu(completion: str, answer: str) -> float:
    """Sentence BLEU in [0, 1] (Papineni et al. 2002): sacrebleu's, with exponential smoothing and effective order.

    Case counts. 0 where either text is empty.
    """
    return min(sacrebleu.sentence_bleu(completion, [answer]).score / 100.0, 1.0)


def corpus_bleu(completions: Sequence[str], answers: Sequence[str]) -> float:
    """Corpus BLEU in [0, 1] (Papineni et al. 2002): sacrebleu's, n-gram counts and lengths summed over all pairs.

    With effective order, so that a corpus of completions of less than four words, which plain BLEU gives 0, is measured
    by the n-grams that it has; where one completion has four words, this is plain BLEU.
    """
    return min(sacrebleu.corpus_bleu(completions, [answers], use_effective_order=True).score / 100.0, 1.0)


def rouge_l(completion: str, answer: str) -> float:
    """ROUGE-L F1 in [0, 1] (Lin 2004): F1 over the longest common subsequence of words, no stemming.

    Case and punctuation do not count. 0 where either text is empty.
    """
    return float(_scorer().score(answer, completion)["rougeL"].fmeasure)


class _UnicodeWords:
    """rouge-score's own words on ASCII text; its default drops every letter outside a-z."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.casefold())


@functools.cache
def _scorer() -> Any:  # rouge-score has no types
    # Imported here because it brings all of NLTK: seconds that only those who use ROUGE should pay.
    from rouge_score.rouge_scorer import RougeScorer  # pyright: ignore[reportMissingTypeStubs]

    return RougeScorer(["rougeL"], tokenizer=_UnicodeWords())
