"""Sections of joint embedding: what they refuse, with field, value and cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import ConfigError, load_recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretrain.pairs=[[image, image]]", "pairs=.image, image.: of one modality; two views of it are warm_up.kind"),
        ("pretrain.pairs=[[text, numbers]]", "text, image, audio and video are embedded; numbers are not"),
        ("pretrain.pairs=[[text, image], [image, text]]", "stands there twice; name each pair once"),
        (
            "pretrain.warm_up={kind: masked, patch_side: 5}",
            "patch_side=5 does not divide embedding.sizes.image_side=24",
        ),
        ("pretrain.warm_up.modalities=[text]", "modalities=text: image and audio warm up, others do not"),
        ("pretrain.embedding.head_width=30", "num_heads=4 does not divide head_width=30"),
        ("pretrain.embedding.temperature=0.01", "temperature"),
        ("retrieve.queries=[image]", "queries=image: what is searched for cannot be searched with"),
        ("retrieve.few_shot={classes: [a, a]}", "name at least two, each once"),
        ("retrieve.few_shot.prompts=[a digit]", "has no {} where the name of the class goes"),
        ("retrieve.few_shot.shots=[0]", "at least 1 each; the prompts alone are zero-shot"),
    ],
)
def test_what_has_no_meaning_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(None, [override])


def test_modalities_are_those_of_the_pairs_in_one_order() -> None:
    recipe = load_recipe(None, ["pretrain.pairs=[[audio, image], [video, audio]]"])
    assert recipe.pretrain.modalities == ("image", "audio", "video")
    assert recipe.pretrain.num_warm_steps == 0
    assert load_recipe(None, ["pretrain.warm_up={kind: views, num_steps: 7}"]).pretrain.num_warm_steps == 7


@pytest.mark.parametrize("name", ["retrieval", "few_shot"])
def test_the_recipes_are_of_built_in_tasks_and_of_towers_that_they_pair(name: str) -> None:
    from pipeline.data import demo

    recipe = load_recipe(Path(f"jobs/recipes/{name}.yaml"))
    assert set(recipe.prepare.tasks) <= set(demo.pairs.TASKS)
    assert {recipe.retrieve.target, *recipe.retrieve.queries} <= set(recipe.pretrain.modalities)
    assert recipe.pretrain.decay_steps == recipe.pretrain.num_steps
