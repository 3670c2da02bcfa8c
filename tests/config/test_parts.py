"""Settings of parts: what does not go together is refused with its cure."""

from __future__ import annotations

import re

import pytest

from pipeline.config import FROZEN, TOWERS, ConfigError, PartMode, PartName, Parts, load_recipe


def _refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(None, overrides)
    return str(caught.value)


def test_the_roles_of_the_loop_share_their_towers_and_sft_trains_all() -> None:
    recipe = load_recipe(None)
    assert recipe.sft.parts.learning() == tuple(PartName)
    for learner in (recipe.rlhf.policy, recipe.rlhf.critic, recipe.reward_model):
        assert learner.parts.learning() == (PartName.LANGUAGE_MODEL, PartName.HEAD)
        assert all(learner.parts.of(name).mode is PartMode.FREEZE for name in TOWERS)


def test_of_a_role_that_does_not_learn_no_part_does() -> None:
    assert FROZEN.learning() == ()


def test_a_tower_learns_where_it_is_told_to() -> None:
    recipe = load_recipe(
        None,
        [
            "rlhf.policy.parts.vision_tower={mode: train, learning_rate: 1e-5, keep_frozen: ['*.blocks.0.*']}",
            "rlhf.policy.parts.language_model.mode=lora",
            "rlhf.policy.parts.lora={rank: 4, alpha: 8, targets: ['*q_proj', '*v_proj']}",
        ],
    )
    parts = recipe.rlhf.policy.parts
    assert parts.learning() == (PartName.VISION_TOWER, PartName.LANGUAGE_MODEL, PartName.HEAD)
    assert parts.vision_tower.learning_rate == 1e-5 and parts.vision_tower.keep_frozen == ("*.blocks.0.*",)
    assert (parts.lora.rank, parts.lora.alpha, parts.lora.targets) == (4, 8.0, ("*q_proj", "*v_proj"))
    assert recipe.rlhf.critic.parts.learning() == (PartName.LANGUAGE_MODEL, PartName.HEAD)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["rlhf.policy.parts.vision_tower.learning_rate=1e-5"],
            r"rlhf\.policy\.parts\.vision_tower: .*frozen unless mode=train or mode=lora is set beside it",
        ),
        (
            ["rlhf.critic.parts.projector.keep_frozen=['*']"],
            r"rlhf\.critic\.parts\.projector: .*frozen unless mode=train or mode=lora is set beside it",
        ),
        (
            ["rlhf.policy.parts.audio_tower={mode: freeze, learning_rate: 1e-5}"],
            r"rlhf\.policy\.parts\.audio_tower: .*mode=freeze: a frozen part takes no learning_rate and no keep_frozen",
        ),
        (
            ["sft.parts.language_model={mode: freeze, keep_frozen: ['*']}"],
            r"sft\.parts\.language_model: .*mode=freeze: a frozen part takes no learning_rate",
        ),
        (["rlhf.policy.parts.head.mode=lora"], r"rlhf\.policy\.parts: .*head\.mode=lora: .*use train or freeze"),
        (
            ["reward_model.parts.vision_tower.mode=train"],
            r"reward_model: .*parts\.vision_tower\.mode=train: .*shares tower features.*use freeze",
        ),
        (
            ["rlhf.policy.parts={language_model: {mode: freeze}, head: {mode: freeze}}"],
            r"rlhf\.policy: .*parts: every part has mode=freeze, so that nothing learns; use train or lora for one",
        ),
        (
            [f"sft.parts.{name}.mode=freeze" for name in PartName],
            r"sft: .*parts: every part has mode=freeze, so that nothing learns",
        ),
        (["rlhf.policy.parts.language_model.mode=half"], r"parts\.language_model\.mode: .*'train', 'freeze' or 'lora'"),
        (["rlhf.policy.parts.lora.rank=0"], r"parts\.lora\.rank: .*greater than or equal to 1.*got 0"),
        (["rlhf.policy.parts.tower.mode=train"], r"rlhf\.policy\.parts\.tower: unknown key"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], message: str) -> None:
    found = _refused(*overrides)
    assert re.search(message, found), found


def test_one_part_that_learns_is_enough() -> None:
    frozen = [f"rlhf.policy.parts.{name}.mode=freeze" for name in PartName]
    recipe = load_recipe(None, [*frozen, "rlhf.policy.parts.head.mode=train"])
    assert recipe.rlhf.policy.parts.learning() == (PartName.HEAD,)


def test_parts_can_be_asked_for_by_name() -> None:
    parts = Parts.model_validate({"audio_tower": {"learning_rate": 1e-3}})
    assert [parts.of(name).learning_rate for name in PartName] == [None, 1e-3, None, None, None]
