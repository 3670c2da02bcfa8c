"""JSON by schema and by its leaves, in fences and in prose."""

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.rewards.json_schema import NoJson, is_json, is_schema, json_match_reward, json_of, json_schema_reward

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"count": {"type": "integer", "minimum": 0}, "what": {"type": "string"}},
        "required": ["count"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ('{"count": 3, "what": "cats"}', 1.0),
        ('  {"count": 3}\n', 1.0),
        ('```json\n{"count": 3}\n```', 1.0),
        ('Here you are:\n```\n{"count": 3}\n```\nAnything else?', 1.0),
        ('I see {"count": 3} in the picture.', 1.0),
        ('First {"count": -1}, no: {"count": 3}', 1.0),  # the last word counts
        ('First {"count": 3}, no: {"count": -1}', 0.0),
        ('{"count": "3"}', 0.0),
        ('{"count": 3.5}', 0.0),
        ('{"count": true}', 0.0),
        ('{"count": -1}', 0.0),
        ('{"what": "cats"}', 0.0),
        ('{"count": 3, "where": "here"}', 0.0),
        ("[3]", 0.0),
        ("{'count': 3}", 0.0),
        ('{"count": 3', 0.0),
        ('{"count": NaN}', 0.0),
        ("three cats", 0.0),
        ("", 0.0),
    ],
)
def test_a_completion_is_valid_or_not(completion: str, expected: float) -> None:
    assert json_schema_reward(completion, SCHEMA) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ('{"a": 1, "b": [2, 3]}', 1.0),
        ('{"b": [2, 3.0], "a": 1}', 1.0),
        ('```json\n{"a": 1, "b": [2, 3]}\n```', 1.0),
        ('{"a": 1, "b": [3, 2]}', 1 / 3),  # one leaf of three on either side
        ('{"a": 1}', 2 * 1 / (1 + 3)),
        ('{"a": 1, "b": [2, 3], "c": 4}', 2 * 3 / (4 + 3)),
        ('{"a": true, "b": [2, 3]}', 2 / 3),  # true is not 1
        ('{"a": "1", "b": [2, 3]}', 2 / 3),
        ("{}", 0.0),
        ("none", 0.0),
    ],
)
def test_leaves_that_agree(completion: str, expected: float) -> None:
    assert json_match_reward(completion, '{"a": 1, "b": [2, 3]}') == pytest.approx(expected)


def test_an_answer_that_is_no_schema_or_no_json_is_an_error() -> None:
    for answer in ("a cat", "[1]", '{"type": "cat"}'):
        with pytest.raises(ValueError, match="JSON"):
            json_schema_reward("{}", answer)
        assert not is_schema(answer)
    with pytest.raises(ValueError, match="no JSON: 'a cat'"):
        json_match_reward("{}", "a cat")
    assert is_schema(SCHEMA) and is_json("[1]") and not is_json("a cat")


def test_composed_and_decomposed_letters_are_the_same() -> None:
    nfc, nfd = (unicodedata.normalize(form, '{"é": "café"}') for form in ("NFC", "NFD"))
    for said, wanted in ((nfc, nfd), (nfd, nfc), (f"It is {nfd}.", nfc), (json.dumps(json.loads(nfd)), nfc)):
        assert json_match_reward(said, wanted) == 1.0
    assert json_match_reward('{"e": "cafe"}', nfc) == 0.0
    assert json_schema_reward(f"It is {nfd}.", '{"properties": {"é": {"const": "café"}}, "required": ["é"]}') == 1.0


def test_a_reference_is_never_fetched() -> None:
    with pytest.raises(Exception, match="Unresolvable"):
        json_schema_reward("{}", '{"$ref": "http://127.0.0.1:9/schema.json"}')


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 100_000, '{"a":' * 100_000, "```json\n" * 10_000])
def test_deep_or_broken_nesting_is_no_json_and_takes_no_time(text: str) -> None:
    with pytest.raises(NoJson):
        json_of(text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def _composed(value: object) -> str:
    written = unicodedata.normalize("NFC", json.dumps(value, ensure_ascii=False))
    return json.dumps(json.loads(written), sort_keys=True)


@settings(max_examples=100, deadline=None)
@given(one=_JSON, other=_JSON)
def test_any_two_values_earn_between_zero_and_one_and_all_by_being_equal(one: object, other: object) -> None:
    earned = json_match_reward(json.dumps(one), json.dumps(other))
    assert 0.0 <= earned <= 1.0
    assert (earned == 1.0) == (_composed(one) == _composed(other))
