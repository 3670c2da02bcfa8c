"""Overlap with a reference text: BLEU for translations, ROUGE-L for summaries."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from typing import Any

import regex
import sacrebleu

from pipeline.rewards.conclusion import conclusion, of_conclusions
from pipeline.rewards.normalise import SPACELESS, units

_SCRIPTS = {
    # Without a dictionary, Japanese is measured by characters like the scripts of South East Asia.
    "char": regex.compile("[" + "".join(rf"\p{{{script}}}" for script in SPACELESS if script != "Han") + "ー]"),
    "zh": regex.compile(r"\p{Han}"),
    "13a": regex.compile(r"[\p{Latin}\p{Cyrillic}\p{Greek}]"),
    "intl": regex.compile(r"[\p{L}--[\p{Latin}\p{Cyrillic}\p{Greek}\p{Han}ー]]", regex.V1),
}
"""sacrebleu's tokenizers, and the letters that each is for."""


def tokenizer_of(answer: str) -> str:
    """sacrebleu's tokenizer for the script of a text: `zh` for Chinese, `char` for Japanese, Thai, Lao, Khmer and
    Burmese, `intl` (any punctuation) for Arabic, Devanagari and others, `13a`, its default, for Latin, Cyrillic, Greek.

    What most letters are decides; Chinese characters beside kana are Japanese.
    """
    if answer.isascii():
        return "13a"
    found = {name: len(letters.findall(answer)) for name, letters in _SCRIPTS.items()}
    found["intl"] -= found["char"]
    if found["char"]:
        found["char"] += found.pop("zh")
    return max(found, key=lambda name: found[name]) if any(found.values()) else "13a"


def bleu(completion: str, answer: str) -> float:
    """Sentence BLEU in [0, 1] (Papineni et al. 2002): sacrebleu's, with exponential smoothing and effective order.

    Case counts; of Unicode's forms of a character (NFC, NFD) each is as good. 0 where either text is empty.
    """
    said, wanted = _tokens(completion, answer)
    return min(_bleu("none").sentence_score(said, [wanted]).score / 100.0, 1.0)


def corpus_bleu(completions: Sequence[str], answers: Sequence[str]) -> float:
    """Corpus BLEU in [0, 1] (Papineni et al. 2002): sacrebleu's, n-gram counts and lengths summed over all pairs.

    With effective order, so that a corpus of completions of less than four words, which plain BLEU gives 0, is measured
    by the n-grams that it has; where one completion has four words, this is plain BLEU.
    """
    pairs = [_tokens(completion, answer) for completion, answer in zip(completions, answers, strict=True)]
    said, wanted = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return min(_bleu("none").corpus_score(said, [wanted]).score / 100.0, 1.0)


def _tokens(completion: str, answer: str) -> tuple[str, str]:
    """Both texts cut into tokens, a blank between two, as suits the answer's script."""
    tokenizer = _bleu(tokenizer_of(answer)).tokenizer
    said, wanted = (tokenizer(unicodedata.normalize("NFC", conclusion(text).rstrip())) for text in (completion, answer))
    return said, wanted


@functools.cache
def _bleu(tokenizer: str) -> Any:  # its metrics have no types
    # Forced: that a text is cut into tokens already is no mistake.
    return sacrebleu.BLEU(tokenize=tokenizer, effective_order=True, force=True)


@of_conclusions
def rouge_l(completion: str, answer: str) -> float:
    """ROUGE-L F1 in [0, 1] (Lin 2004): F1 over the longest common subsequence of words, no stemming.

    Case and punctuation do not count. In scripts without blanks between words, characters do. 0 where either text is
    empty.
    """
    return float(_scorer().score(answer, completion)["rougeL"].fmeasure)


_WORD = regex.compile(r"[\p{L}\p{N}\p{M}]+")


class _UnicodeWords:
    """rouge-score's own words on ASCII text (letters and digits); its default drops every letter outside a-z."""

    def tokenize(self, text: str) -> list[str]:
        return [part for unit in units(text) for part in _WORD.findall(unit)]


@functools.cache
def _scorer() -> Any:  # rouge-score has no types
    # Imported here because it brings all of NLTK: seconds that only those who use ROUGE should pay.
    from rouge_score.rouge_scorer import RougeScorer  # pyright: ignore[reportMissingTypeStubs]

    return RougeScorer(["rougeL"], tokenizer=_UnicodeWords())
