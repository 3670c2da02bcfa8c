"""Recipes: the defaults hold, and every mistake is an error that names field, value and cure."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_origin

import pytest
from pydantic import ValidationError

from pipeline.config import (
    AdvantageEstimator,
    ConfigError,
    Kl,
    KlEstimator,
    KlPlace,
    Recipe,
    RewardName,
    RewardWeight,
    Section,
    Sink,
    describe,
    load_recipe,
    meanings,
    section_of,
)


def _refused(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def _written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_the_defaults_are_a_valid_recipe() -> None:
    recipe = load_recipe(None)
    assert recipe == Recipe() == Recipe.model_validate(recipe.model_dump())
    assert (recipe.rlhf.algorithm.kl.place, recipe.rlhf.algorithm.kl.estimator) == (KlPlace.REWARD, KlEstimator.K1)


def test_an_empty_mapping_means_the_defaults(tmp_path: Path) -> None:
    assert load_recipe(_written(tmp_path, "{}")) == Recipe()


def test_a_recipe_is_read_section_by_section(tmp_path: Path) -> None:
    path = _written(tmp_path, "run:\n  seed: 3\nrlhf:\n  algorithm:\n    advantage: grpo\n    kl: {weight: 0}\n")
    recipe = load_recipe(path)
    assert recipe.run.seed == 3
    assert recipe.rlhf.algorithm.advantage is AdvantageEstimator.GRPO
    assert recipe.rlhf.algorithm.kl.weight == 0
    assert recipe.sft == Recipe().sft


def test_overrides_win_over_the_file_and_the_last_one_wins(tmp_path: Path) -> None:
    path = _written(tmp_path, "run: {seed: 3, name: file}\n")
    recipe = load_recipe(path, ["run.seed=4", "rlhf.algorithm.kl.weight=0.5", "run.seed=5"])
    assert (recipe.run.seed, recipe.run.name, recipe.rlhf.algorithm.kl.weight) == (5, "file", 0.5)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.sinks=[console, wandb]", (Sink.CONSOLE, Sink.WANDB)),
        ("rlhf.algorithm.clip_reward=null", None),
        ("sft.learning_rate=1e-4", 1e-4),
        ("sft.betas=[0.8, 0.9]", (0.8, 0.9)),
        ("rlhf.rewards={exact_match: 2}", {RewardName.EXACT_MATCH: RewardWeight(weight=2)}),
        ("rlhf.rewards.wer=0.5", {RewardName.WER: RewardWeight(weight=0.5)}),
        (
            "rlhf.rewards={wer: {weight: 0.5, tasks: [speech]}}",
            {RewardName.WER: RewardWeight(weight=0.5, tasks=("speech",))},
        ),
        ("model.path=/models/a=b", Path("/models/a=b")),
        ("model.trust_remote_code=true", True),
        ("run.name='7'", "7"),
        ("data.limits.max_frames=8", 8),
    ],
)
def test_an_overrides_value_is_yaml(override: str, expected: object) -> None:
    value: object = load_recipe(None, [override])
    for name in override.partition("=")[0].removesuffix(".wer").split("."):
        value = getattr(value, name)
    assert value == expected


@pytest.mark.parametrize("override", ["run.seed", "=3", "seed 3", ""])
def test_an_override_without_name_or_value_is_shown(override: str) -> None:
    assert _refused(override) == f"override {override!r}: write section.field=value"


def test_an_override_below_a_value_says_which_part_is_no_section() -> None:
    assert _refused("run.seed=1", "run.seed.deep=2") == "override 'run.seed.deep=2': seed is a value, not a section"


def test_an_override_that_is_no_yaml_is_shown() -> None:
    assert _refused("run.sinks=[console").startswith("override 'run.sinks=[console': not YAML")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rlhf.num_step=3", "rlhf.num_step: unknown key; did you mean 'num_steps'?"),
        ("rlfh.num_steps=3", "rlfh: unknown key; did you mean 'rlhf'?"),
        ("rlhf.algorithm.kl.weigth=1", "rlhf.algorithm.kl.weigth: unknown key; did you mean 'weight'?"),
        ("rlhf.policy.zero_sage=1", "rlhf.policy.zero_sage: unknown key; did you mean 'zero_stage'?"),
        (
            "rlhf.rewards={wer: {wieght: 1, weight: 1}}",
            "rlhf.rewards.wer.wieght: unknown key; did you mean 'weight'?",
        ),
        ("data.limits.max_pixel=1", "data.limits.max_pixel: unknown key; did you mean 'max_pixels'?"),
    ],
)
def test_an_unknown_key_suggests_the_closest_one(override: str, message: str) -> None:
    assert _refused(override) == message


def test_an_unknown_key_like_no_other_lists_those_of_its_section() -> None:
    known = "temperature, top_k, top_p, min_p, max_new_tokens, stop"
    assert _refused("rlhf.sampling.qqq=1") == f"rlhf.sampling.qqq: unknown key; known here: {known}"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("sft.learning_rate=-1", ("sft.learning_rate:", "greater than 0", "got -1")),
        ("rlhf.algorithm.lam=1.5", ("rlhf.algorithm.lam:", "less than or equal to 1", "got 1.5")),
        ("rlhf.policy.zero_stage=4", ("rlhf.policy.zero_stage:", "less than or equal to 3", "got 4")),
        ("preferences.error_rate=0.5", ("preferences.error_rate:", "less than 0.5", "got 0.5")),
        ("run.seed=many", ("run.seed:", "valid integer", "got 'many'")),
        ("run.seed=99999999999999999999", ("run.seed:", "less than 9223372036854775808", "got 99999999999999999999")),
        ("data.limits.min_seconds=40", ("data.limits:", "min_seconds=40 is above max_seconds=30; lower it")),
        ("rlhf.num_steps=1.5", ("rlhf.num_steps:", "valid integer", "got 1.5")),
        ("cluster.device=tpu", ("cluster.device:", "'auto', 'cpu' or 'cuda'", "got 'tpu'")),
        ("run.sinks=[console, fax]", ("run.sinks.1:", "'wandb'", "got 'fax'")),
        ("rlhf.rewards={blue: 1}", ("rlhf.rewards.blue", "'exact_match'", "got 'blue'")),
        ("rlhf.rewards={wer: x}", ("rlhf.rewards.wer.weight:", "valid number", "got 'x'")),
        ("rlhf.rewards={wer: {weight: 1, tasks: []}}", ("rlhf.rewards.wer.tasks:", "at least 1", "got []")),
        ("rlhf.rewards={wer: {tasks: [speech]}}", ("rlhf.rewards.wer.weight:", "required")),
        ("rlhf=3", ("rlhf:", "got 3")),
        ("run.seed=null", ("run.seed:", "valid integer", "got None")),
        ("rlhf.rollout.gpus_per_worker=1.5", ("rlhf.rollout.gpus_per_worker:", "gpus_per_worker=1.5", "use 1 or 2")),
        ("sft.resources.GPU=1", ("sft.resources:", "resources.GPU=1", "num_workers", "custom resource")),
        ("sft.resources={on_demand: 0}", ("sft.resources:", "resources.on_demand=0", "above 0; use 0.001")),
    ],
)
def test_a_wrong_value_is_named_with_its_field_and_its_bound(override: str, parts: tuple[str, ...]) -> None:
    message = _refused(override)
    assert all(part in message for part in parts), message


def test_all_mistakes_are_told_at_once() -> None:
    message = _refused("run.seeed=1", "sft.learning_rate=0", "rlhf.num_steps=0")
    assert [line.partition(":")[0] for line in message.splitlines()] == [
        "run.seeed",
        "sft.learning_rate",
        "rlhf.num_steps",
    ]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing.yaml"
    assert _refused(path=path) == f"--config {path}: no such file; recipes lie in jobs/recipes/"


@pytest.mark.parametrize(("text", "kind"), [("- run\n- sft\n", "list"), ("just words", "str")])
def test_a_recipe_that_is_no_mapping_is_refused(tmp_path: Path, text: str, kind: str) -> None:
    assert _refused(path=_written(tmp_path, text)).endswith(f"a recipe is a mapping of sections, not {kind}")


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "null"])
def test_a_recipe_that_says_nothing_is_refused_with_what_to_write(tmp_path: Path, text: str) -> None:
    path = _written(tmp_path, text)
    assert _refused(path=path) == f"--config {path}: says nothing; write {{}} where all defaults are meant"


def test_a_directory_is_no_recipe(tmp_path: Path) -> None:
    told = f"--config {tmp_path}: a directory; name a recipe in it, such as {tmp_path}/recipe.yaml"
    assert _refused(path=tmp_path) == told


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    path = _written(tmp_path, "run: [1,\n")
    assert _refused(path=path).startswith(f"--config {path}: not YAML")


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    path = _written(tmp_path, "run: !!python/object/apply:os.getcwd []\n")
    assert "not YAML" in _refused(path=path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["rlhf.algorithm.advantage=grpo", "rlhf.group_size=1"],
            r"rlhf: .*group_size=1: grpo compares the completions of a group; use 2 or more",
        ),
        (["rlhf.reference.zero_stage=1"], r"rlhf: .*reference\.zero_stage=1: no optimizer to shard; use 0 or 3"),
        (["rlhf.reward.zero_stage=2"], r"rlhf: .*reward\.zero_stage=2: no optimizer to shard; use 0 or 3"),
        (
            ["rlhf.prompts_per_step=3", "rlhf.algorithm.num_minibatches=4"],
            r"rlhf: .*prompts_per_step=3 cannot be split into num_minibatches=4",
        ),
        (
            ["rlhf.algorithm.kl.place=loss"],
            r"rlhf\.algorithm\.kl: .*place=loss with estimator=k1: its gradient is zero on average.*use k2 or k3",
        ),
        (
            ["rlhf.algorithm.kl={control: adaptive, weight: 0}"],
            r"rlhf\.algorithm\.kl: .*control=adaptive with weight=0: .* would stay 0; start from a weight above 0",
        ),
        (["rlhf.rewards={}"], r"rlhf: .*rewards=\{\}: without a part .* nothing is learned; name one"),
        (
            ["rlhf.rewards={exact_match: 0, learned: 0.0}"],
            r"rlhf: .*rewards=\{'exact_match': 0\.0, 'learned': 0\.0\}: .*worth the same.*name one",
        ),
        (
            ["rlhf.sampling.temperature=0", "rlhf.algorithm.advantage=rloo"],
            r"rlhf: .*sampling\.temperature=0 with algorithm\.advantage=rloo: all completions of a group.*above 0",
        ),
        (
            ["rlhf.staleness=2", "rlhf.algorithm.policy_loss=policy_gradient"],
            r"rlhf: .*staleness=2 with algorithm\.policy_loss=policy_gradient and off_policy\.correction=none: .*"
            r"use correction=token, sequence or icepop, policy_loss=ppo, or samples of the policy itself",
        ),
        (
            ["rlhf.sampling.top_p=0.9", "rlhf.algorithm.policy_loss=policy_gradient"],
            r"sampling\.top_k=None, top_p=0\.9, min_p=0 with algorithm\.policy_loss=policy_gradient .*use correction=",
        ),
    ],
)
def test_fields_that_do_not_go_together_are_refused(overrides: list[str], message: str) -> None:
    assert re.search(message, _refused(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["rlhf.algorithm.advantage=grpo", "rlhf.group_size=2"],
        ["rlhf.group_size=1"],
        ["rlhf.reference.zero_stage=3", "rlhf.reward.zero_stage=0"],
        ["rlhf.policy.zero_stage=1", "rlhf.critic.zero_stage=2"],
        ["rlhf.prompts_per_step=4", "rlhf.algorithm.num_minibatches=4"],
        ["rlhf.algorithm.kl.place=loss", "rlhf.algorithm.kl.estimator=k2"],
        ["rlhf.algorithm.kl.place=loss", "rlhf.algorithm.kl.estimator=k3"],
        ["rlhf.algorithm.kl.estimator=k3"],
        ["rlhf.algorithm.kl={control: adaptive, weight: 0.05}"],
        ["rlhf.algorithm.kl={control: fixed, weight: 0}"],
        ["rlhf.rewards={exact_match: 0, length: -0.5}"],
        ["rlhf.sampling.temperature=1.0e-6", "rlhf.algorithm.advantage=rloo"],
        ["rlhf.algorithm.policy_loss=policy_gradient"],
        ["rlhf.algorithm={policy_loss: policy_gradient, off_policy: {correction: token}}", "rlhf.staleness=2"],
        ["rlhf.algorithm={policy_loss: policy_gradient, off_policy: {correction: icepop}}", "rlhf.sampling.top_k=9"],
        ["rlhf.staleness=2", "rlhf.sampling.top_p=0.9"],
        ["sft.betas=[0.0, 0.0]"],
        ["rlhf.algorithm.process_rewards=true"],
        ["rlhf.rewards={}", "rlhf.reference.checkpoint=/models/teacher"],
    ],
)
def test_their_neighbours_are_taken(overrides: list[str]) -> None:
    assert load_recipe(None, overrides) == load_recipe(None, list(reversed(overrides)))


@pytest.mark.parametrize("estimator", list(AdvantageEstimator))
def test_no_estimator_learns_from_the_likeliest_completion_alone(estimator: AdvantageEstimator) -> None:
    loss = "dpo" if estimator is AdvantageEstimator.BEST_WORST else "ppo"
    message = _refused(
        "rlhf.sampling.temperature=0", f"rlhf.algorithm.advantage={estimator}", f"rlhf.algorithm.policy_loss={loss}"
    )
    assert f"sampling.temperature=0 with algorithm.advantage={estimator}: " in message
    assert "use a temperature above 0" in message


@pytest.mark.parametrize("betas", ["[1.0, 0.95]", "[0.9, 1.0]", "[-0.1, 0.95]", "[0.9, 2]"])
@pytest.mark.parametrize("section", ["sft", "reward_model", "rlhf.policy", "rlhf.critic"])
def test_betas_are_shares_below_one(section: str, betas: str) -> None:
    message = _refused(f"{section}.betas={betas}")
    assert f"{section}.betas: " in message and "at least 0 and below 1; use [0.9, 0.95]" in message


def _floats(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Overrides for every number of a section, with NAN where the number belongs."""
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        place = f"{prefix}{name}"
        if inner is not None and get_origin(field.annotation) is not tuple:
            yield from _floats(inner, f"{place}.")
        elif inner is None and "float" in str(field.annotation):
            kind: object = get_origin(field.annotation)
            in_mapping = "{exact_match: NAN, validation: NAN}" if kind is dict else "NAN"
            yield f"{place}={'[NAN, NAN]' if kind is tuple else in_mapping}"


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf"])
def test_no_number_of_the_recipe_may_be_nan_or_infinite(number: str) -> None:
    overrides = list(_floats(Recipe))
    assert len(overrides) > 30
    assert {"rlhf.algorithm.kl.weight=NAN", "sft.betas=[NAN, NAN]"} <= set(overrides)
    for override in overrides:
        message = _refused(override.replace("NAN", number))
        # A frozen part takes no rate of its own, whatever it is.
        assert "finite number" in message or "this part is frozen" in message, override


def test_a_number_that_is_not_finite_is_named_with_its_field() -> None:
    expected = "rlhf.rewards.exact_match.weight: Input should be a finite number (got nan)"
    assert _refused("rlhf.rewards={exact_match: .nan}") == expected
    assert _refused("data.mixture=[{path: a, weight: .inf}]").startswith("data.mixture.0.weight: Input should be a fin")
    step = _refused("prepare.steps=[{step: audio.noise, min_snr_db: .nan}]")
    assert step.startswith("prepare.steps.0.audio.noise.min_snr_db: Input should be a finite number")


def test_the_penalty_may_not_be_k1_in_the_loss_however_it_is_built() -> None:
    with pytest.raises(ValidationError, match="use k2 or k3, or place=reward"):
        Kl(place=KlPlace.LOSS)


def _leaves(section: type[Section], prefix: str = "") -> Iterator[tuple[str, str]]:
    said = meanings(section)
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        place = f"{prefix}{name}" + "[]" * (get_origin(field.annotation) is tuple and inner is not None)
        yield place, said[name]
        if inner is not None:
            yield from _leaves(inner, f"{place}.")


def test_every_field_has_its_documentation() -> None:
    undocumented = [name for name, description in _leaves(Recipe) if not description.strip()]
    assert undocumented == []


def test_describe_lists_every_field_with_type_default_and_documentation() -> None:
    lines = list(describe())
    for name, description in _leaves(Recipe):
        place = next(index for index, line in enumerate(lines) if line.startswith((f"  {name}: ", f"\n[{name}]")))
        assert description and any(description in line for line in lines[place : place + 2]), name
    assert "  rlhf.algorithm.kl.place: reward | loss = reward" in lines
    assert "  rlhf.algorithm.clip_reward: float | null = 10.0" in lines
    assert "  rlhf.policy.num_workers: int = 1" in lines
    assert "  sft.betas: [float, float] = [0.9, 0.95]" in lines
    assert "  model.path: Path | null = null" in lines
    sinks = next(line for line in lines if line.startswith("  run.sinks: "))
    assert sinks.startswith("  run.sinks: list of (console | jsonl | ")
    assert sinks.endswith(" = [console, jsonl, tensorboard, ray]")
    assert not any("pipeline.config" in line or "<class" in line or "<Sink" in line for line in lines)


def test_every_default_that_describe_shows_is_an_override_that_changes_nothing() -> None:
    shown = [line.strip() for line in describe() if line.startswith("  ") and not line.startswith("   ")]
    # A field of a list's or a mapping's entries has no place of its own.
    own = [line for line in shown if "[]" not in line and "<name>" not in line]
    overrides = [f"{line.partition(':')[0]}={line.partition(' = ')[2]}" for line in own]
    assert len(overrides) > 100
    assert load_recipe(None, overrides) == Recipe()


def test_a_recipe_cannot_be_changed_after_it_is_checked() -> None:
    recipe = Recipe()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.run.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        recipe.rlhf.algorithm.kl.weight = 3.0


def test_paths_follow_the_run_unless_they_are_given() -> None:
    recipe = load_recipe(None, ["run.directory=/runs/a"])
    assert recipe.data_path == Path("/runs/a/data")
    assert recipe.checkpoint("base") == Path("/runs/a/checkpoints/base")
    given = load_recipe(None, ["run.directory=/runs/a", "data.path=/data", "model.path=/model"])
    assert given.data_path == Path("/data")
    assert (given.checkpoint("base"), given.checkpoint("sft")) == (Path("/model"), Path("/runs/a/checkpoints/sft"))


def test_a_step_with_a_wrong_name_or_field_is_told_what_there_is() -> None:
    with pytest.raises(
        ConfigError, match=r"prepare.steps.0: .*image.rezise: no such step; did you mean 'image.resize'"
    ):
        load_recipe(None, ["prepare.steps=[{step: image.rezise}]"])
    with pytest.raises(
        ConfigError, match=r"prepare.steps.0.image.resize.max_sise: unknown key; did you mean 'max_side'"
    ):
        load_recipe(None, ["prepare.steps=[{step: image.resize, max_sise: 4}]"])
    with pytest.raises(ConfigError, match=r"prepare.steps.1.text.length.min_characters: .*\(got -1\)"):
        load_recipe(None, ["prepare.steps=[{step: text.normalise}, {step: text.length, min_characters: -1}]"])


def test_a_source_with_an_unknown_field_is_told_which_there_are() -> None:
    with pytest.raises(ConfigError, match=r"prepare.sources.0.paht: unknown key; did you mean 'path'"):
        load_recipe(None, ["prepare.sources=[{paht: x, path: y}]"])


def test_the_prompt_table_may_lie_at_an_address_or_be_a_mixture_of_several() -> None:
    given = load_recipe(None, ["data.path=s3://bucket/data"])
    assert [each.path for each in given.datasets] == ["s3://bucket/data"]
    assert [each.path for each in load_recipe(None, ["run.directory=runs/a"]).datasets] == ["runs/a/data"]
    mixed = load_recipe(None, ["data.mixture=[{path: gs://b/cats/, weight: 3}, {path: data/dogs, name: hounds}]"])
    assert [(each.label, each.weight) for each in mixed.datasets] == [("cats", 3.0), ("hounds", 1.0)]
    for mixture, told in (
        ("[{path: a/cats}, {path: b/cats}]", "two datasets have the name 'cats'; give each a `name` of its own"),
        ("[{path: a, weight: 0}]", r"data\.mixture\.0\.weight: .*greater than 0"),
        ("[{path: a, name: x/y}]", r"data\.mixture\.0\.name"),
    ):
        with pytest.raises(ConfigError, match=told):
            load_recipe(None, [f"data.mixture={mixture}"])


def test_what_cannot_be_prepared_is_refused_with_its_cure() -> None:
    with pytest.raises(ConfigError, match=r"sort_by=num_tokens needs the tokens counted: set count_tokens=true"):
        load_recipe(None, ["prepare.sort_by=num_tokens", "prepare.count_tokens=false"])
    with pytest.raises(ConfigError, match=r"prepare.split: .*leave no rows to train on"):
        load_recipe(None, ["prepare.split={validation: 0.5, test: 0.5}"])
    with pytest.raises(ConfigError, match=r"sources: a names two of them"):
        load_recipe(None, ["prepare.sources=[{path: x, name: a}, {path: y, name: a}]"])
