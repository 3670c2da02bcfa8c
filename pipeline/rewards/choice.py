"""Choice: which of the lettered options does the completion take?"""

from __future__ import annotations

import re
import unicodedata

# Where a word follows a capital A, it is the article; these words alone may follow an option.
_AFTER_OPTION = "because|since|as|is|are|was|and|or|for|which|that|due|with|would|seems|fits|matches"
_ARTICLE = rf"(?:A[ \t]+(?!(?:{_AFTER_OPTION})\b)[^\W\d_]|I(?:[ \t]+[^\W\d_]|'))"
# Latin letters and digits alone count as neighbours: Chinese is written without blanks.
_EDGE_BEFORE, _EDGE_AFTER = r"(?<![A-Za-z0-9_'])", r"(?![A-Za-z0-9_]|['-][A-Za-z])"
_MARKS = r"[\s*_`\"“”「『(\[{<$:]*(?:\\(?:text|mathrm|mathbf|textbf)\{)?[\s(*]*"
_BOXED = re.compile(r"\\boxed\s*\{" + _MARKS + r"([A-Ja-j])(?![A-Za-z0-9_])")
_CUE = (
    r"(?i:\b(?:answer|choice|option|choose|chose|select|selected|pick)\b|答案|选项|選項|选择|選擇|应选|應選|故选|选|選)"
    r"(?i:\s*(?:would\s+be|should\s+be|must\s+be|is|are|was|be|option|choice|应该是|應該是|应为|應為|为|為|是|项|項))*"
)
_CUED = re.compile(
    rf"{_CUE}{_MARKS}(?!{_ARTICLE})(?:([A-J]){_EDGE_AFTER}|([a-j])(?=[\s*_`\"”」』)\]}}>$.,;:!]*(?:$|\n))|([a-j])\))"
)
_ALONE = re.compile(rf"{_EDGE_BEFORE}(?<!\bnot )(?!{_ARTICLE})([A-J]){_EDGE_AFTER}")
_WHOLE = re.compile(r"[\s*_`\"'“”(\[{<$]*([A-Ja-j])[\s*_`\"'“”)\]}>$.:,;!。]*")
_BEGINS = re.compile(r"[\s*_`\"“”(\[]*([A-Ja-j])[*_`]*[)\].:][*_`]*(?:\s|$)")
_HEDGE = re.compile(r"[\s*)\]]*(?:\b(?:or|and)\b|[/,&、或和])\s*(?:option\s+)?[(*\[]*([A-J])(?![A-Za-z0-9_])")


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
    the last letter after a cue (`the answer is B`, `Option (b)`, `选B`, `答案是B`); a letter that opens the text as a
    list does (`B. a cat`); the one capital letter that stands by itself. An article (`A dog`), a pronoun (`I think`)
    and what is ruled out (`not B`) are none; `A or B` leaves it open.
    """
    text = unicodedata.normalize("NFKC", text).strip()
    if whole := _WHOLE.fullmatch(text):
        return whole[1].upper()
    for pattern in (_BOXED, _CUED):
        if found := [match for match in pattern.finditer(text)]:
            last = found[-1]
            letter = next(group for group in last.groups() if group).upper()
            hedge = _HEDGE.match(text, last.end())
            return letter if hedge is None or hedge[1] == letter else None
    begins = _BEGINS.match(text)
    letters = {match[1] for match in _ALONE.finditer(text)} | ({begins[1].upper()} if begins else set[str]())
    return letters.pop() if len(letters) == 1 else None
