"""A recipe that stands on another: values are overridden section by section, and every mistake names its file."""

from pathlib import Path

import pytest

from pipeline.config import ConfigError, PartMode, Recipe, RewardName, load_recipe


def written(directory: Path, **files: str) -> Path:
    """Writes a recipe a keyword, and returns the path of the first."""
    for name, text in files.items():
        (directory / f"{name}.yaml").write_text(text)
    return directory / f"{next(iter(files))}.yaml"


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_own_values_lie_over_those_of_the_base_section_by_section(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        own="base: other.yaml\nrun: {name: own}\nrlhf: {policy: {learning_rate: 1.0e-4}, num_steps: 7}\n",
        other="run: {name: other, seed: 3}\nrlhf: {policy: {learning_rate: 1.0e-3, warmup_steps: 5}}\nsft: {rows: 9}\n",
    )
    recipe = load_recipe(path)
    assert (recipe.run.name, recipe.run.seed) == ("own", 3)
    assert (recipe.rlhf.policy.learning_rate, recipe.rlhf.policy.warmup_steps, recipe.rlhf.num_steps) == (1e-4, 5, 7)
    assert recipe.sft.rows == 9
    assert recipe.data == Recipe().data


def test_sections_merge_however_deep_they_lie(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        own="base: other.yaml\nrlhf: {policy: {parts: {vision_tower: {mode: train}}}}\n",
        other="rlhf: {policy: {parts: {projector: {mode: train, learning_rate: 0.1}}}}\n",
    )
    parts = load_recipe(path).rlhf.policy.parts
    assert (parts.vision_tower.mode, parts.projector.mode) == (PartMode.TRAIN, PartMode.TRAIN)
    assert (parts.projector.learning_rate, parts.audio_tower.mode) == (0.1, PartMode.FREEZE)


def test_a_mapping_or_a_list_is_a_value_and_replaced_whole(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        own="base: other.yaml\nrlhf: {rewards: {wer: 1.0}}\nprepare: {tasks: [text], steps: []}\n",
        other="rlhf: {rewards: {learned: 2.0, exact_match: 1.0}}\n"
        "prepare: {tasks: [digit, scene], steps: [{step: text.normalise}]}\n",
    )
    recipe = load_recipe(path)
    assert recipe.rlhf.reward_weights == {RewardName.WER: 1.0}
    assert (recipe.prepare.tasks, recipe.prepare.steps) == (("text",), ())


def test_a_base_may_have_a_base_each_relative_to_its_own_directory(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    written(tmp_path / "deep", middle="base: ../low.yaml\nrun: {seed: 2, name: middle}\n")
    path = written(
        tmp_path, own="base: deep/middle.yaml\nrun: {name: own}\n", low="run: {seed: 1, name: low}\nsft: {rows: 4}\n"
    )
    recipe = load_recipe(path)
    assert (recipe.run.name, recipe.run.seed, recipe.sft.rows) == ("own", 2, 4)


def test_overrides_win_over_the_recipe_and_its_base(tmp_path: Path) -> None:
    path = written(tmp_path, own="base: other.yaml\nsft: {rows: 4}\n", other="run: {seed: 1}\nsft: {rows: 2}\n")
    recipe = load_recipe(path, ["run.seed=7", "sft.rows=8"])
    assert (recipe.run.seed, recipe.sft.rows) == (7, 8)


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("rlhf.algorithm.kl={weight: 0.01}", ("loss", "k3", 0.01, "grpo", "lora", None)),
        ("rlhf.algorithm={kl: {weight: 0.01}, dual_clip: 3}", ("loss", "k3", 0.01, "grpo", "lora", 3.0)),
        ("rlhf={policy: {learning_rate: 1e-5}}", ("loss", "k3", 0.001, "grpo", "lora", None)),
        ("rlhf.policy.parts.language_model={mode: train}", ("loss", "k3", 0.001, "grpo", "train", None)),
        ("rlhf.algorithm.kl={}", ("loss", "k3", 0.001, "grpo", "lora", None)),
    ],
)
def test_an_override_changes_of_a_section_what_it_names_as_a_recipe_does_of_its_base(
    tmp_path: Path, override: str, changed: tuple[object, ...]
) -> None:
    low = "rlhf: {algorithm: {advantage: grpo, kl: {place: loss, estimator: k3, weight: 0.001}}, "
    low += "policy: {parts: {language_model: {mode: lora}}}}\n"
    rlhf = load_recipe(written(tmp_path, low=low), [override]).rlhf
    kl, mode = rlhf.algorithm.kl, rlhf.policy.parts.language_model.mode
    assert (kl.place, kl.estimator, kl.weight, rlhf.algorithm.advantage, mode, rlhf.algorithm.dual_clip) == changed
    section, _, value = override.partition("=")
    own = f"{': {'.join(section.split('.'))}: {value}{'}' * section.count('.')}"
    assert load_recipe(written(tmp_path, own=f"base: low.yaml\n{own}\n", low=low)).rlhf == rlhf


def test_an_override_replaces_a_list_or_a_mapping_and_null_a_section_and_merges_a_section_in_a_mapping(
    tmp_path: Path,
) -> None:
    low = "rlhf: {rewards: {wer: {weight: 1.0, tasks: [speech]}, mine: {weight: 2.0, function: {path: 'a.py:f'}}}}\n"
    low += "prepare: {map: {answer: a}, sources: [{path: x, task: t}]}\n"
    path = written(tmp_path, low=low)
    assert load_recipe(path, ["rlhf.rewards={learned: 2.0}"]).rlhf.reward_weights == {RewardName.LEARNED: 2.0}
    prepare = load_recipe(path, ["prepare={map: {prompt: q}, sources: [{path: y}]}"]).prepare
    assert (prepare.map, [(each.path, each.task) for each in prepare.sources]) == ({"prompt": "q"}, [("y", None)])
    wer = load_recipe(path, ["rlhf.rewards.wer={weight: 3.0}"]).rlhf.rewards[RewardName.WER]
    assert (wer.weight, wer.tasks) == (3.0, ("speech",))
    server = "server: {url: 'http://h/r'}"
    assert "function and server: a part is given by one" in refused(path, f"rlhf.rewards.mine={{{server}}}")
    rewards = load_recipe(path, [f"rlhf.rewards.mine={{function: null, {server}}}"]).rlhf.rewards
    assert [(each.function, each.server is None) for name, each in rewards.items() if name == "mine"] == [(None, False)]


def test_a_base_may_lie_below_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    written(tmp_path / "home", low="run: {seed: 3}\n")
    assert load_recipe(written(tmp_path, own="base: ~/low.yaml\n")).run.seed == 3


def test_two_recipes_may_stand_on_one(tmp_path: Path) -> None:
    path = written(
        tmp_path, own="base: other.yaml\n", other="base: low.yaml\nrun: {seed: 1}\n", low="run: {seed: 2, name: low}\n"
    )
    assert load_recipe(path).run == load_recipe(tmp_path / "other.yaml").run


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"own": "base: own.yaml\n"}, "base: own.yaml: bases go round in a circle (own.yaml -> own.yaml)"),
        (
            {"own": "base: two.yaml\n", "two": "base: ./own.yaml\n"},
            "base: two.yaml: base: ./own.yaml: bases go round in a circle (own.yaml -> two.yaml -> own.yaml)",
        ),
        ({"own": "base: none.yaml\n"}, "base: none.yaml: no such file; it is looked for in {directory}"),
        ({"own": "base: ../\n"}, "base: ../: a directory; name a recipe in it"),
        ({"own": "base: two.yaml\n", "two": "- a\n"}, "base: two.yaml: a recipe is a mapping of sections, not list"),
        ({"own": "base: two.yaml\n", "two": "a: [\n"}, "base: two.yaml: not YAML"),
        ({"own": "base: 3\n"}, "base is the path of a recipe, relative to this one, not 3"),
        ({"own": "base: null\n"}, "base is the path of a recipe, relative to this one, not None"),
        ({"own": "base: two.yaml\n", "two": "run: {seed: 1, seed: 2}\n"}, "base: two.yaml: run.seed: stands twice"),
    ],
)
def test_a_base_that_cannot_be_used_is_named_with_the_way_to_it(
    tmp_path: Path, files: dict[str, str], told: str
) -> None:
    path = written(tmp_path, **files)
    message = refused(path)
    assert message.startswith(f"--config {path}: ")
    assert told.format(directory=tmp_path) in message


def test_a_mistake_in_a_base_is_a_mistake_of_the_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, own="base: other.yaml\n", other="run: {seeed: 3}\n")
    assert refused(path) == "run.seeed: unknown key; did you mean 'seed'?"


def test_a_section_that_is_no_mapping_is_refused_as_it_is_without_a_base(tmp_path: Path) -> None:
    path = written(tmp_path, own="base: other.yaml\nrun: 3\n", other="run: {seed: 3}\n")
    assert refused(path).startswith("run: ")


def test_a_misspelt_base_is_suggested_and_an_override_is_no_place_for_one(tmp_path: Path) -> None:
    assert refused(written(tmp_path, own="bas: other.yaml\n")) == "bas: unknown key; did you mean 'base'?"
    message = refused(written(tmp_path, own="run: {seed: 1}\n"), "base=other.yaml")
    assert message.startswith("override base=other.yaml: a recipe's file names its base")
