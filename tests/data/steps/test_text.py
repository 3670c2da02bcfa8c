"""Text: one form, nothing unseen, and what only looks superfluous stays."""

from __future__ import annotations

import re
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.schema import Reason, RowError
from pipeline.data.steps import text as steps

SEEN_FORMATS = {0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, *range(0x600, 0x606), *range(0x13430, 0x13440)}
"""Of category Cf, but drawn (the Arabic number sign), or building hieroglyphs."""

anything = st.text(st.characters(codec=None), max_size=40)
awkward = st.text(
    "ab \t\n\r\v\x00\x85\u2028\u200b\u200c\u200d\u061c\u180e\u202e\ufeff\ufe0f\u0301 नक्र\u0647م\u1820กက👩🚀🏴"
    "\U000e0067\U000e0062\U000e0065\U000e007f\ue000\ufdd0",
    max_size=14,
)


def plainly(text: str, form: str = "nfc") -> str:
    return steps.normalise(text, form=form, unify_line_ends=True, strip_line_ends=True)


def test_canonical_forms_join_or_part_a_letter_and_its_accent() -> None:
    assert plainly("e\u0301", "nfc") == "é"
    assert plainly("é", "nfd") == "e\u0301"
    assert plainly("ﬁ x² \uff21", "nfc") == "ﬁ x² \uff21"
    assert plainly("ﬁ x² \uff21", "nfkc") == "fi x2 A"


def test_all_line_ends_become_one_kind_and_blanks_before_them_go() -> None:
    assert plainly("a \r\nb\t\rc\x85d\u2028e\n\nf  ") == "a\nb\nc\nd\ne\n\nf"
    assert plainly("  a  b") == "  a  b", "only ends of lines are touched"
    assert steps.normalise("a \r\n", form="nfc", unify_line_ends=False, strip_line_ends=False) == "a \r\n"


def test_controls_overrides_tags_and_private_characters_go_but_tab_and_line_feed_stay() -> None:
    assert (
        steps.remove_controls("a\tb\nc\x00\x1b\x7f\u202ed\u2066e\ufeff\u200b\xad\ue000\ufdd0\U000e0041") == "a\tb\ncde"
    )
    assert steps.remove_controls("\ud800a") == "a", "a lone surrogate cannot be written to a file"


def test_a_page_or_line_end_that_is_a_control_keeps_words_apart() -> None:
    assert steps.remove_controls("one\r\ntwo\rthree\ffour\x85five") == "one\ntwo\nthree\nfour\nfive"


@pytest.mark.parametrize(
    "kept",
    [
        "می\u200cخو\u0627\u0647م",  # Persian: "I want" has a non-joiner
        "क्\u200dष",  # Devanagari: a half form
        "ශ්\u200dරී",  # Sinhala: Sri
        "\u0647\u200d",  # Persian: the Hijri year, an initial form that stands alone
        "👩\u200d🚀",  # an astronaut
        "👨🏽\u200d❤️\u200d👨🏻",  # skin tones and a variation selector between the joiners
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # the flag of England
        "ᠰᠠᠢᠢᠨ ᠪᠠᠶᠢᠨ\u180eᠠ",  # Mongolian
        "ภาษา\u200bไทย",  # Thai: where a line may break
        "❤️",
        "\u0661\u06dd",  # the end of an ayah is drawn
    ],
)
def test_unseen_characters_that_shape_their_neighbours_stay(kept: str) -> None:
    assert steps.remove_controls(kept) == kept


def test_joiners_go_where_nothing_joins() -> None:
    assert steps.remove_controls("pass\u200dword\u200c \u200d🚀") == "password 🚀"


def test_the_ranges_are_those_of_the_unicode_database() -> None:
    """Characters that Unicode has not given out yet may stay, but for noncharacters, which it never will."""
    characters = [chr(code) for code in range(sys.maxunicode + 1) if code != ord("\t")]
    found = steps.remove_controls("\t".join(characters)).split("\t")
    for character, left in zip(characters, found, strict=True):
        code, category = ord(character), unicodedata.category(character)
        if code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF:
            expected = ""
        elif category in ("Zl", "Zp") or character in "\n\r\v\f\x1c\x1d\x1e\x85":
            expected = "\n"
        elif category in ("Cc", "Cf", "Co", "Cs") and code not in SEEN_FORMATS:
            expected = ""
        elif category == "Cn" and (code == 0x2065 or 0xE0000 <= code <= 0xE007F):
            expected = ""  # reserved for formats
        else:
            expected = character
        assert left == expected, f"U+{code:04X} {category}"


@settings(deadline=None)
@given(anything | awkward)
def test_no_control_is_left_and_doing_it_twice_changes_nothing(text: str) -> None:
    once = steps.remove_controls(text)
    assert {each for each in once if unicodedata.category(each) in ("Cc", "Co", "Cs")} <= {"\t", "\n"}
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", once)
    assert steps.remove_controls(once) == once


@settings(deadline=None)
@given(anything | awkward, st.sampled_from(["nfc", "nfd", "nfkc", "nfkd"]))
def test_normalising_twice_changes_nothing_and_the_form_holds(text: str, form: str) -> None:
    once = plainly(text, form)
    assert plainly(once, form) == once
    assert unicodedata.is_normalized(form.upper(), once)  # pyright: ignore[reportArgumentType]
    assert not re.search(r"[^\S\n](\n|\Z)|[\r\v\f\x85\u2028\u2029]", once)


@settings(deadline=None)
@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=40))
def test_plain_english_stays_as_it_is(text: str) -> None:
    assert steps.remove_controls(text) == text
    assert plainly(text) == text.rstrip()


def test_length_counts_characters_without_tags_and_both_bounds_are_allowed() -> None:
    assert steps.length("<image>four", min_characters=4, max_characters=4) == "<image>four"
    for text, reason in (("<image>abc", Reason.TEXT_TOO_SHORT), ("abcde", Reason.TEXT_TOO_LONG)):
        with pytest.raises(RowError) as caught:
            steps.length(text, min_characters=4, max_characters=4)
        assert caught.value.reason is reason
        assert "characters is 4" in caught.value.detail
