"""Choice: which of the lettered options does the completion take?

Each letter that stands by itself is looked at with what is said right before it and right after it.
"""
# ruff: noqa: RUF001, RUF002  Letters of other scripts are what is read.

from __future__ import annotations

from enum import IntEnum

import regex

from pipeline.rewards.conclusion import of_conclusions
from pipeline.rewards.normalise import plain


class Rank(IntEnum):
    """How plainly a text takes the option that a letter names."""

    ALONE = 0
    OPTION = 1
    ANSWER = 2
    BOXED = 3


REACH = 80
"""So many characters before and after a letter are looked at."""

ALIKE = "АВСЕНΑΒΕ"
"""Cyrillic and Greek letters that look as A, B, C, E and H do, and lie on the same keys."""
_TO_LATIN = str.maketrans(ALIKE, "ABCEHABE")

_NO_NEIGHBOUR = r"\p{Latin}\p{Cyrillic}\p{Greek}\p{N}_"  # others have no blanks between words, or glue endings
_LETTER = regex.compile(rf"(?<![{_NO_NEIGHBOUR}'])[A-Ja-j{ALIKE}](?![{_NO_NEIGHBOUR}\p{{M}}])")
_PART_OF_WORD = regex.compile(r"['-]\p{Latin}")
# Where a word follows a capital A, it is the English article; these words alone may follow an option.
_AFTER_OPTION = (
    "because|since|as|is|are|was|and|or|for|which|that|due|with|would|seems|fits|matches|"
    r"weil|da|denn|ist|oder|und|porque|pues|es|car|parce|est|et|ou|perché|è|é|omdat|want|fordi|bo|çünkü|şık\w*|seçene\w*|karena|vì"
)
_ARTICLE = regex.compile(rf"(?<=A)[ \t]+(?!(?:{_AFTER_OPTION})\b)\p{{Latin}}|(?<=I)(?:[ \t]+\p{{Latin}}|')")
# In Russian and its neighbours, "and", "in" and "with" are letters that look like options.
_PREPOSITION = regex.compile(r"(?<=[АВС])[ \t]+(?!потому|так\b|поскольку|это\b|верн|правильн)\p{Cyrillic}")
_LOWER_CASE_MAY_STAND = regex.compile(
    r"[\s*_`\"”」』】)\]}>$.,;:!。]*(?:$|\n)|\)|\p{Hangul}|\p{Han}|\p{Hiragana}|\p{Katakana}"
)

_MARKS = r"[\s*_`\"“”「『【(\[{<$:—]*(?:\\(?:text|mathrm|mathbf|textbf)\{)?[\s(*]*$"
_CHAIN = (
    r"(?i:\s*(?:would\s+be|should\s+be|must\s+be|is|are|was|be|option|choice|应该是|應該是|应为|應為|为|為|是|项|項))*"
)
# An ending, then a few words without a stop between them: "Antwort lautet", "respuesta correcta es la letra".
_WORDS = r"[\p{L}\p{M}]{0,6}?(?:[\s:—]+(?:[\p{L}\p{M}']{2,}|\p{Ll})){0,5}?"


def _cue(words: str, between: str) -> regex.Pattern[str]:
    return regex.compile(rf"(?i:{words}){between}{_MARKS}")


_CUES = (
    (Rank.BOXED, False, _cue(r"\\boxed\s*\{", "")),
    (
        Rank.ANSWER,
        True,
        _cue(
            r"\b(?:answer|choose|chose|select|selected|pick)\b|答案|选择|選擇|应选|應選|选(?!项)|選(?![項択])", _CHAIN
        ),
    ),
    (
        Rank.ANSWER,
        False,
        _cue(
            r"\b(?:antwort|antwoord|lösung|réponse|respuesta|risposta|resposta|răspuns|svar|vastaus|odpowied|odpověď|"
            r"odgovor|válasz|cevap|cevab|yanıt|jawaban|đáp\ án|ответ|відповід|отговор|απάντηση)|"
            r"תשובה|إجابة|جواب|پاسخ|उत्तर|คำตอบ|正解|解答|回答|答え|答案|답",
            _WORDS,
        ),
    ),
    (Rank.OPTION, True, _cue(r"\b(?:option|choice)\b|选项|選項", _CHAIN)),
    (Rank.OPTION, False, _cue(r"\b(?:opción|opção|opzione|optie|opsi|alternativa|вариант)|선택지|選択肢", _WORDS)),
)
"""Rank, whether the words are English (so that an article may follow), and what stands before a letter of that rank."""

_RIGHT = regex.compile(
    r"[*_`)\]]*(?:\s*(?:is|ist|est|es|è|é)\s+(?:(?:the|die|la|a)\s+)?(?:correct|right|best|answer|richtig|bonne|vrai|"
    r"corret|respuesta|risposta|resposta|réponse)|\s*[是がは가이]?\s*(?:正确|正確|正解|正しい|答案|정답|맞)|"
    r"\s+(?:правильн|верн))",
    regex.IGNORECASE,
)
_IS_OPTION = regex.compile(r"\s+(?:şık|seçene)|选项|選項", regex.IGNORECASE)

_NOT = r"(?:not|never|nicht|kein|keine|pas|no|não|non|niet|inte|ikke|bukan|không|не|n't)\b"
_BUT = r"but|sondern|sino|mais|mas|ma|но"
_RULED_OUT_BEFORE = regex.compile(
    rf"(?:\b{_NOT}|(?<=n't))\s+(?:(?!(?:{_BUT})\b)\p{{L}}{{2,}}\s+){{0,2}}[*_`\"(\[]*$", regex.IGNORECASE
)
_RULED_OUT_AFTER = regex.compile(
    rf"[\s*_`\"')\]]*(?:(?:is|are|was|ist|est|es|è|é)(?:\s+{_NOT}|n't\b)|(?:no\s+es|n'est|não\s+é|non\s+è|не)\b|"
    r"(?:(?:is|are|was|ist|est|es|è|é|是|は|은|는|이|가)\s*)?(?:wrong|incorrect|false|falsch|faux|fausse|falsa|"
    r"sbagliat|errad|yanlış|değil|неверн|неправильн|错|錯|不|誤|間違|ではな|じゃな|아니|틀))",
    regex.IGNORECASE,
)

_WHOLE = regex.compile(rf"[\s*_`\"'“”「『【(\[{{<$]*([A-Ja-j{ALIKE}])[\s*_`\"'“”」』】)\]}}>$.:,;!。、]*")
_BEGINS = regex.compile(rf"[\s*_`\"“”「『【(\[]*([A-Ja-j{ALIKE}])[*_`]*(?:[)\].:][*_`]*(?:\s|$|(?=\p{{Han}}))|[、】])")
_HEDGE = regex.compile(
    rf"[\s*)\]]*(?:\b(?:or|and|oder|und|ou|et|o|u|y|e|of|en|или|и|veya|ve)\b|[/,&、或和]|또는|または)"
    rf"\s*(?:option\s+)?[(*\[]*([A-J{ALIKE}])(?![{_NO_NEIGHBOUR}])"
)


@of_conclusions
def choice_reward(completion: str, answer: str) -> float:
    """1.0 where the completion takes the answer's option, else 0.0.

    Raises:
        ValueError: the answer names no option.
    """
    wanted = chosen(answer)
    if wanted is None:
        raise ValueError(f"no option in the answer {answer!r}: choice compares letters from A to J, such as B or (B)")
    return float(chosen(completion) == wanted)


def chosen(text: str) -> str | None:
    r"""The letter from A to J that a text settles on, in upper case; None where it names none, or leaves several open.

    What counts, the first that is there: a text that is the letter alone (`b`, `(B)`, `**B**`); the last `\boxed{B}`;
    the last letter that is said to be the answer (`the answer is B`, `B is correct`, `答案是B`, `Die Antwort ist B`);
    the last that is called an option (`Option (b)`, `B şıkkı`); a letter that opens the text as a list does (`B. a
    cat`); the one capital letter that stands by itself. What is ruled out (`not B`, `B is wrong`), an article (`A dog`)
    and a pronoun (`I think`) are none; `A or B` leaves it open. Cyrillic and Greek letters that look Latin count where
    they cannot be words: alone, in a list, or after such words.
    """
    text = plain(text).strip()
    if whole := _WHOLE.fullmatch(text):
        return _latin(whole[1])
    ranked = [(rank, match) for match in _LETTER.finditer(text) if (rank := _rank(text, match)) is not None]
    top = max((rank for rank, _ in ranked), default=Rank.ALONE)
    found = [match for rank, match in ranked if rank is top]
    if top > Rank.ALONE:
        letter, hedge = _latin(found[-1][0]), _HEDGE.match(text, found[-1].end())
        return letter if hedge is None or _latin(hedge[1]) == letter else None
    begins = _BEGINS.match(text)
    letters = {match[0] for match in found} | ({_latin(begins[1])} if begins else set[str]())
    return letters.pop() if len(letters) == 1 else None


def _rank(text: str, letter: regex.Match[str]) -> Rank | None:
    """How plainly a text takes a letter; None where it does not, or where it is a word."""
    before = text[max(0, letter.start() - REACH) : letter.start()]
    if _RULED_OUT_BEFORE.search(before) or _RULED_OUT_AFTER.match(text, letter.end()):
        return None
    if letter[0].islower() and not _LOWER_CASE_MAY_STAND.match(text, letter.end()):
        return None
    if _PREPOSITION.match(text, letter.end()):
        return None
    is_word = bool(_ARTICLE.match(text, letter.end()) or _PART_OF_WORD.match(text, letter.end()))
    for rank, is_english, cue in _CUES:
        if not (is_english and is_word) and cue.search(before):
            return rank
    if letter[0] in "ABCDEFGHIJ" and not is_word:
        after = ((Rank.ANSWER, _RIGHT), (Rank.OPTION, _IS_OPTION))
        return next((rank for rank, cue in after if cue.match(text, letter.end())), Rank.ALONE)
    return None


def _latin(letter: str) -> str:
    return letter.translate(_TO_LATIN).upper()
