"""What an evaluation shows again, scores and reads, without a model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from actors.loop.checkpoints import LoopState
from actors.loop.validation import record_end
from actors.roles.encoder import PromptRef, Showing
from jobs import evaluate, reward_model, rlhf, sft
from jobs.evaluate import alterations, read_counts, result, true_rewards
from pipeline.config import ConfigError, load_recipe
from pipeline.data.datasets import RowKey
from pipeline.data.schema import to_row
from pipeline.data.table import write_preferences, write_prompts
from pipeline.evaluation.results import Mode, ModelName
from pipeline.evaluation.validation import Progress, end_of
from pipeline.models.checkpoint import FINGERPRINT_FILE
from pipeline.records import Completion, FinishReason, MediaKind, Message, Prompt, PromptInfo
from pipeline.tracking import append_lines

IMAGE, AUDIO = MediaKind.IMAGE, MediaKind.AUDIO


@pytest.mark.parametrize(
    ("stage", "override"),
    [
        (evaluate, "evaluate.split=rl"),
        (reward_model, "preferences.split=rl"),
        (rlhf, "rlhf.split=rl"),
        (rlhf, "rlhf={evaluate_every: 1, validation: {split: rl}}"),
        (sft, "data.mixture=[{path: DATA}, {path: EMPTY}]"),
    ],
    ids=["evaluate", "reward_model", "rlhf", "rlhf's validation", "sft"],
)
def test_a_stage_looks_for_its_split_before_it_loads_a_model(
    stage: Any, override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = to_row(Prompt("a", "sums", (Message("user", "2+2?"),), (), "4"), [])
    write_prompts(tmp_path / "train.parquet", [row])
    write_prompts(tmp_path / "empty" / "train.parquet", [])
    monkeypatch.setattr(stage, "crew_of", lambda *_: pytest.fail("models are loaded"))
    override = override.replace("DATA", str(tmp_path)).replace("EMPTY", str(tmp_path / "empty"))
    recipe = load_recipe(None, [f"run.directory={tmp_path}/run", f"data.path={tmp_path}", override])
    field = "the demonstrations' split=train: .*empty/train.parquet has no row"
    if stage is not sft:
        name = "rlhf.validation.split" if "validation" in override else override.split("=")[0]
        field = rf"{name}=rl: .* in the split rl, but in train; .*prepare\.split\.rl"
    with pytest.raises(ConfigError, match=field):
        stage.run(recipe)


def test_a_model_whose_towers_have_learned_is_not_shown_features_of_others(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    sft, student = tmp_path / "checkpoints" / "sft", tmp_path / "checkpoints" / "distilled"
    for directory, towers in ((sft, "one"), (student, "other")):
        shutil.copytree(tiny_checkpoint, directory)
        (directory / FINGERPRINT_FILE).write_text(towers)
    own = [f"run.directory={tmp_path}", "evaluate.checkpoint=distilled"]
    with pytest.raises(ConfigError, match=r"towers differ: sft .*, distilled .*; with rlhf\.encoder\.cache_mib=0"):
        evaluate.check_towers(load_recipe(None, own), student)
    for cure in ("rlhf.encoder.cache_mib=0", "rlhf.policy.parts.vision_tower.mode=train"):
        evaluate.check_towers(load_recipe(None, [*own, cure]), student)
    (student / FINGERPRINT_FILE).write_text("one")
    evaluate.check_towers(load_recipe(None, own), student)


def test_a_run_without_preferences_has_a_report_all_the_same(tmp_path: Path) -> None:
    lines = evaluate.notes(load_recipe(None, [f"run.directory={tmp_path}"]))
    assert not any("Preferences come from" in line for line in lines)
    assert any("temperature" in line for line in lines)


def test_counts_are_of_all_stages_and_those_so_far_are_not_added_up(tmp_path: Path) -> None:
    recipe = load_recipe(None, [f"run.directory={tmp_path}"])
    steps: dict[str, list[dict[str, float]]] = {
        "rlhf": [{"counts/truncated_completions": 1, "counts/reward_failed:mine:timeout": 2, "loss": 9}] * 2,
        "distill_samples": [{"counts/reward_failed:mine:timeout": 3, "counts/quarantined:corrupt_image": 5}],
        "preference": [{"counts/pairs_refused": 2}, {"counts/pairs_refused": 4}, {"held_out/loss": 1}],
        "reward_model": [{"counts/pairs_refused": 1}, {"counts/pairs_refused": 1}],
        "decide": [{"counts/decisions": 7}],
    }
    for stage, rows in steps.items():
        append_lines(tmp_path / "metrics" / f"{stage}.jsonl", [{"step": step, **row} for step, row in enumerate(rows)])
    assert read_counts(recipe) == {
        "truncated_completions": 2,
        "reward_failed": 7,
        "reward_failed:mine:timeout": 7,
        "pairs_refused": 5,
        "quarantined": 0,
    }


def info(id: str, answer: str | None, *kinds: MediaKind, **more: Any) -> PromptInfo:
    return PromptInfo(id, task="task", answer=answer, demonstration=more.pop("said", answer), modalities=kinds, **more)


def said(text: str) -> Completion:
    return Completion(np.array([1, 2]), np.zeros(2, np.float32), FinishReason.STOP, 0, text)


class ShowingDoor:
    """A door that shows every row but row 3."""

    def __init__(self, prompts: list[PromptRef]):
        self.by_row = {prompt.row: prompt for prompt in prompts}
        self.asked: list[Mapping[RowKey, Showing]] = []

    def show(self, shown: Mapping[RowKey, Showing]) -> list[PromptRef]:
        self.asked.append(shown)
        return [self.by_row[key] for key in shown if key.row != 3]


def test_answered_prompts_with_media_are_shown_blanked_and_swapped_and_sft_sees_each_whole_way_once() -> None:
    infos = [info("a", "7", IMAGE), info("b", "8", IMAGE), info("open", None, IMAGE), info("c", "9", IMAGE)]
    infos += [info("both", "1", AUDIO, IMAGE), info("both too", "2", AUDIO, IMAGE), info("text", "3")]
    door = ShowingDoor([PromptRef(each, RowKey(0, row), 1, cast(Any, None)) for row, each in enumerate(infos)])
    altered = alterations(cast(Any, door), list(door.by_row.values()), seed=0)
    pairs = {(each.prompt.id, tuple(sorted(each.blanked)), each.swapped) for each in altered}
    alone = {(id, (kind,), None) for id in ("both", "both too") for kind in (IMAGE, AUDIO)}
    whole = {("a", (IMAGE,), None), ("b", (IMAGE,), None)}
    whole |= {(id, (AUDIO, IMAGE), None) for id in ("both", "both too")}
    swapped = {("both", (), "both too"), ("both too", (), "both")}
    assert alone | whole | swapped <= pairs
    (rest,) = [{each.prompt.id: each.swapped for each in altered if each.swapped and each.prompt.id in "ab"}]
    assert rest.keys() == {"a", "b"} and all(id != donor and donor in "abc" for id, donor in rest.items())
    assert len(altered) == len(pairs) == len(alone | whole | swapped) + 2, "c does not go so, open has no answer"
    # The donor's row is whose media the door is asked to show.
    row_of = {prompt.id: row for row, prompt in door.by_row.items()}
    assert {row_of[id]: row_of[str(donor)] for id, donor in rest.items()}.items() <= {
        row: showing.donor for row, showing in door.asked[-1].items()
    }.items()
    for each in altered:
        parts = each.swapped is None and each.blanked != frozenset(each.prompt.info.modalities)
        assert each.concerns(ModelName.RLHF) and each.concerns(ModelName.SFT) == (not parts)


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        (info("a", "7", IMAGE), "8 maybe", {"exact_match": 0.0, "contains": 0.0, "distance": 0.8}),
        (info("a", "7", AUDIO), "7", {"exact_match": 1.0, "contains": 1.0, "distance": 1.0, "wer": 0.0}),
        (info("a", "two", IMAGE), "two for sure", {"exact_match": 0.0, "contains": 1.0}),
        (info("a", None), "7", {}),
    ],
)
def test_a_completion_has_the_measures_that_fit_its_row(
    prompt: PromptInfo, text: str, expected: dict[str, float]
) -> None:
    assert true_rewards(said(text), prompt) == pytest.approx(expected)
    assert true_rewards(said("red ring left"), info("a", "red ring left")).keys() >= {"bleu", "rouge_l"}


def test_a_result_holds_the_demonstration_only_where_it_is_the_rows_own() -> None:
    own = info("a", "7", IMAGE, said="7", is_demonstrated=True)
    found = [result(each, said("7"), ModelName.SFT, Mode.GREEDY) for each in (own, info("b", "7", IMAGE))]
    assert [each.demonstration for each in found] == ["7", None]
    assert found[0].is_shown and found[0].true_reward == 1.0


@pytest.mark.parametrize(
    ("settings", "value", "said"),
    [
        ("stop_at: 0.9", 1.0, "RLHF ended after step 4 of 9: {metric} is 1: rlhf.validation.stop_at=0.9 is reached."),
        (
            "patience: 2",
            0.5,
            "RLHF ended after step 4 of 9: {metric} is 0.5, and was 0.75 2 evaluations ago: "
            "rlhf.validation.patience=2 is at its end.",
        ),
    ],
)
def test_the_report_says_why_the_loop_ended(settings: str, value: float, said: str, tmp_path: Path) -> None:
    overrides = [f"run.directory={tmp_path}", "rlhf.num_steps=9", "rlhf.evaluate_every=2"]
    overrides.append(f"rlhf.validation={{{settings}}}")
    recipe = load_recipe(None, overrides)
    metric = recipe.rlhf.validation.stop_metric
    write_preferences(tmp_path / "preferences.parquet", [])
    progress = Progress(4, {metric: value}, metric, max(value, 0.75), num_without_gain=2)
    state = replace(LoopState.start(recipe.rlhf.algorithm.kl), step=4, progress=progress)
    assert not any(note.startswith("RLHF ended") for note in evaluate.notes(recipe))
    end = end_of(recipe.rlhf, step=4, progress=progress)
    assert end is not None
    record_end(recipe, end, state)
    assert said.format(metric=metric) in evaluate.notes(recipe)
    other = load_recipe(None, [*overrides, "evaluate.checkpoint=dpo"])
    assert not any(note.startswith("RLHF ended") for note in evaluate.notes(other))
