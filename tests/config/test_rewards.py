"""Rewards from outside in a recipe: names, places of functions, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import Base, ConfigError, FunctionReward, Recipe, RewardName, absolute, load_recipe


def _rewards(text: str, *overrides: str) -> Recipe:
    return load_recipe(None, [f"rlhf.rewards={text}", *overrides])


def test_the_place_of_a_function_as_a_key_makes_a_part_called_like_the_function() -> None:
    recipe = _rewards("{taste/mine.py:brevity: 0.5, our.rewards:kind: {weight: 2, tasks: [a]}, exact_match: 1}")
    assert recipe.rlhf.reward_weights == {"brevity": 0.5, "kind": 2.0, "exact_match": 1.0}
    assert set(recipe.rlhf.own_rewards) == {RewardName.EXACT_MATCH}
    outside = recipe.rlhf.outside_rewards
    assert [each.path for each in outside.values() if isinstance(each, FunctionReward)] == [
        "taste/mine.py:brevity",
        "our.rewards:kind",
    ]
    assert recipe.rlhf.rewards["kind"].tasks == ("a",)


def test_settings_may_stand_beside_the_place_and_a_text_alone_is_the_place() -> None:
    recipe = _rewards("{a.py:f: {weight: 1, function: {timeout_s: 5}}, g: {weight: 1, function: b.py:h}}")
    first, second = recipe.rlhf.outside_rewards.values()
    assert isinstance(first, FunctionReward) and (first.path, first.timeout_s) == ("a.py:f", 5)
    assert isinstance(second, FunctionReward) and second.path == "b.py:h"
    server = _rewards("{s: {weight: 1, server: 'http://host:1/r/'}}").rlhf.outside_rewards["s"]
    assert getattr(server, "url", None) == "http://host:1/r"


def test_files_are_absolute_once_it_is_known_where_the_user_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _rewards("{taste/mine.py:f: 1, our.rewards:g: 1, /abs/mine.py:h: 1}", f"run.directory={tmp_path}")

    def paths(base: Base) -> list[str]:
        found = absolute(recipe, base).rlhf.outside_rewards.values()
        return [each.path for each in found if isinstance(each, FunctionReward)]

    assert paths(Base(Path("/home/me"))) == ["/home/me/taste/mine.py:f", "our.rewards:g", "/abs/mine.py:h"]
    # A submitted job stands in Ray's copy of the working directory, in which the file has travelled.
    monkeypatch.chdir(tmp_path)
    assert paths(Base(None, "this job was submitted"))[0] == f"{tmp_path}/taste/mine.py:f"


def test_what_is_written_out_is_read_the_same() -> None:
    recipe = _rewards("{a.py:f: 1, s: {weight: 1, tasks: [x], server: 'http://h/r'}, wer: 2}")
    assert Recipe.model_validate(recipe.model_dump()) == recipe == Recipe.model_validate_json(recipe.model_dump_json())


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ("{mine: 1}", r"rlhf\.rewards\.mine: no reward has this name .*'exact_match'.* or give it a function"),
        ("{length: {weight: 1, server: 'http://h/r'}}", r"rlhf\.rewards\.length: this is a built-in reward"),
        ("{a.py:f: 1, b.py:f: 1}", "two parts are called f; give one a name of its own"),
        ("{a.py:f: {weight: 1, function: b.py:g}}", "this is the function already"),
        ("{x: {weight: 1, function: a.txt}}", "'a.txt' is no function; write path/to/file.py:function"),
        ("{x: {weight: 1, function: 'a.py:no name'}}", "is no function"),
        ("{x: {weight: 1, server: 'ftp://h'}}", "url='ftp://h': write an address"),
        ("{x: {weight: 1, server: 'http://me:secret@h/r'}}", "no password"),
        ("{'a b': {weight: 1, server: 'http://h/r'}}", "'a b' in names of metrics"),
        ("{x: {weight: 1, server: 'http://h/r', function: a.py:f}}", "function and server: a part is given by one"),
        ("{x: {weight: 1, judge: {rubric: r}}}", "either a url, with a model, or a checkpoint"),
        ("{x: {weight: 1, judge: {rubric: r, url: 'http://h'}}}", "name the model there"),
        ("{x: {weight: 1, judge: {rubric: r, url: 'http://h', model: m, reading: choice}}}", "of a local checkpoint"),
        (
            "{x: {weight: 1, judge: {rubric: r, url: 'http://h', model: m, scale: [5, 1]}}}",
            "the worst score comes first",
        ),
        ("{x: {weight: 1, judge: {rubric: r, url: 'http://h', model: m, samples: 3}}}", "all would be the same"),
        ("{x: {weight: 1, server: {url: 'http://h', timeout_s: 60}}}", r"no less than cluster\.deadlines\.least_s=120"),
        ("{x: {weight: 1, function: {path: a.py:f, timout_s: 1}}}", "unknown key; did you mean 'timeout_s'"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_cure(rewards: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _rewards(rewards)
