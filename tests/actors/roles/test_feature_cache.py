"""The feature cache: everything once, within its bound, and honest counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.roles.feature_cache import CacheCounts, FeatureCache

Cache = FeatureCache[str, str, str]


def _never() -> tuple[str, int]:
    raise AssertionError("computed again")


def _gives(value: str, num_bytes: int) -> Callable[[], tuple[str, int]]:
    return lambda: (value, num_bytes)


def _add(cache: Cache, key: str, *media: str, num_bytes: int = 1, feature_bytes: int = 10) -> None:
    """A prompt of one byte whose media take ten each."""
    for medium in media:
        cache.features(medium, _gives(f"features of {medium}", feature_bytes))
    cache.put(key, f"prompt {key}", num_bytes=num_bytes, media=media)


def test_what_was_put_comes_back_and_what_was_not_does_not() -> None:
    cache: Cache = FeatureCache(100)
    _add(cache, "a", "cat")
    assert cache.get("a") == "prompt a"
    assert cache.get("b") is None
    assert cache.features("cat", _never) == "features of cat"


def test_features_are_computed_once_for_all_prompts_that_hold_them() -> None:
    cache: Cache = FeatureCache(100)
    _add(cache, "a", "cat", "dog")
    _add(cache, "b", "cat", "cat")
    # Two computed; the second prompt asked twice for what was there. Their bytes count once.
    assert cache.counts == CacheCounts(hits=2, misses=2, evicted=0, kept_bytes=2 * 10 + 2)


def test_a_prompt_that_is_there_counts_each_of_its_media_as_found() -> None:
    cache: Cache = FeatureCache(100)
    _add(cache, "a", "cat", "dog")
    cache.get("a")
    cache.get("missing")
    assert (cache.counts.hits, cache.counts.misses) == (2, 2)


def test_the_prompt_used_longest_ago_goes_first() -> None:
    cache: Cache = FeatureCache(33)
    for key in "abc":
        _add(cache, key, f"medium {key}")
    cache.get("a")
    _add(cache, "d", "medium d")
    assert [cache.get(key) is not None for key in "abcd"] == [True, False, True, True]
    assert cache.counts.evicted == 1
    assert cache.counts.kept_bytes == 33


def test_a_shared_medium_goes_with_the_last_prompt_that_holds_it() -> None:
    cache: Cache = FeatureCache(22)
    _add(cache, "a", "cat")
    _add(cache, "b", "cat")
    _add(cache, "c", "dog")  # a goes, b keeps the cat
    assert cache.get("a") is None
    assert (cache.counts.kept_bytes, cache.counts.evicted) == (22, 0)
    assert cache.features("cat", _never) == "features of cat"
    _add(cache, "d", "dog")  # b goes, and the cat with it
    assert (cache.counts.kept_bytes, cache.counts.evicted) == (12, 1)
    with pytest.raises(AssertionError, match="computed again"):
        cache.features("cat", _never)


def test_a_prompt_larger_than_the_bound_stays_until_the_next_comes() -> None:
    cache: Cache = FeatureCache(5)
    _add(cache, "huge", "film", feature_bytes=1000)
    assert cache.get("huge") == "prompt huge"
    _add(cache, "text")
    assert cache.get("huge") is None
    assert cache.counts.kept_bytes == 1


def test_a_prompt_that_is_put_again_replaces_the_former() -> None:
    cache: Cache = FeatureCache(100)
    _add(cache, "a", "cat", "dog")
    _add(cache, "a", "cat", num_bytes=3)
    assert (cache.counts.kept_bytes, cache.counts.evicted) == (13, 1)
    _add(cache, "b", num_bytes=100)
    assert cache.counts.kept_bytes == 100


@given(
    max_bytes=st.integers(0, 80),
    prompts=st.lists(
        st.tuples(st.sampled_from("abcdef"), st.lists(st.sampled_from("uvwxyz"), max_size=3)), max_size=30
    ),
)
def test_kept_bytes_are_those_of_what_is_kept_and_within_the_bound(
    max_bytes: int, prompts: list[tuple[str, list[str]]]
) -> None:
    cache: Cache = FeatureCache(max_bytes)
    newest: dict[str, list[str]] = {}
    for key, media in prompts:
        if cache.get(key) is None:
            _add(cache, key, *media)
            newest[key] = media
    kept = {key: media for key, media in newest.items() if cache.get(key) is not None}
    features = {medium for media in kept.values() for medium in media}
    assert cache.counts.kept_bytes == len(kept) + 10 * len(features)
    assert cache.counts.kept_bytes <= max_bytes or len(kept) == 1
    assert cache.counts.misses - cache.counts.evicted == len(features)


def test_what_is_lost_is_computed_again_and_once_for_all_prompts_that_hold_it() -> None:
    cache: Cache = FeatureCache(100)
    _add(cache, "a", "cat", "dog")
    _add(cache, "b", "cat")
    cache.lose("a")
    assert cache.get("a") is None and cache.get("b") == "prompt b"
    assert cache.features("cat", _gives("anew", 12)) == "anew"
    assert cache.features("cat", _never) == "anew"
    cache.put("a", "prompt a", num_bytes=1, media=["cat"])
    assert cache.counts.kept_bytes == 12 + 2  # the dog went with the prompt that held it
    cache.lose("never there")
