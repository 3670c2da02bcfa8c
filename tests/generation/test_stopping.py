"""Stop strings, against a search of the whole text at every token."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.generation.stopping import StopStrings, before_stop

PIECES = [b"", b"a", b"b", b"ab", b"ba", b"aab", b" ", "é".encode(), *(bytes([byte]) for byte in "é€😀".encode())]
"""What each token id is worth: one is a special token without text, some are a part of a character."""


def _text(token_ids: Sequence[int]) -> str:
    return b"".join(PIECES[token] for token in token_ids).decode(errors="replace")


def _first_stop(token_ids: Sequence[int], stop: Sequence[str]) -> int | None:
    """How many tokens a completion has when its text first contains a stop string."""
    lengths = range(1, len(token_ids) + 1)
    return next((length for length in lengths if any(text in _text(token_ids[:length]) for text in stop)), None)


def _found(token_ids: Sequence[int], stop: Sequence[str], longest: list[int]) -> int | None:
    def decode(tail: Sequence[int]) -> str:
        longest.append(len(tail))
        return _text(tail)

    stops = StopStrings(stop, decode, 1)
    for length, token in enumerate(token_ids, start=1):
        if stops.reached(torch.tensor([0]), torch.tensor([token])).item():
            return length
    return None


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, len(PIECES) - 1), max_size=40),
    st.lists(st.text("ab é€😀", min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_a_bounded_tail_finds_what_the_whole_text_holds(token_ids: list[int], stop: list[str]) -> None:
    longest: list[int] = [0]
    assert _found(token_ids, stop, longest) == _first_stop(token_ids, stop)
    assert max(longest) <= max(2, max(len(text.encode()) for text in stop) + 1)


@pytest.mark.parametrize(
    ("token_ids", "stop", "length"),
    [
        ([1, 2, 1, 2], ["bab"], 4),  # over three tokens
        ([1, 5], ["a", "zz"], 1),
        ([2, 5, 2], ["a"], 2),  # `aab` holds more than the stop string
        ([1, 0, 0, 0, 0, 0, 2], ["ab"], 7),  # tokens without text lie between
        ([1, 8, 9], ["aé"], 3),  # a character in two tokens
        ([1, 8, 1], ["aé"], None),
    ],
)
def test_stop_strings_lie_anywhere_in_the_tokens(token_ids: list[int], stop: list[str], length: int | None) -> None:
    assert _first_stop(token_ids, stop) == length
    assert _found(token_ids, stop, []) == length


def test_a_tokenizer_that_drops_leading_spaces_changes_nothing() -> None:
    stops = StopStrings(["a b"], lambda token_ids: _text(token_ids).removeprefix(" "), 1)
    found = [stops.reached(torch.tensor([0]), torch.tensor([token])).item() for token in (2, 1, 6, 2)]
    assert found == [False, False, False, True]


def test_completions_are_watched_each_on_its_own() -> None:
    stops = StopStrings(["ab"], _text, 3)
    assert stops.reached(torch.tensor([0, 1, 2]), torch.tensor([1, 2, 1])).tolist() == [False, False, False]
    assert stops.reached(torch.tensor([0, 1]), torch.tensor([2, 2])).tolist() == [True, False]
    assert stops.reached(torch.tensor([2]), torch.tensor([2])).tolist() == [True]


def test_stop_strings_need_a_way_to_decode() -> None:
    with pytest.raises(ValueError, match=r"stop=\['x'\] needs `decode`"):
        StopStrings(["x"], None, 1)


def test_a_text_ends_before_its_first_stop_string() -> None:
    assert before_stop("one two three", ["three", "two"]) == "one "
    assert before_stop("one two", ["x"]) == before_stop("one two", []) == "one two"
    assert before_stop("aab", ["b", "ab"]) == "a"
    assert before_stop("x", ["x"]) == ""
