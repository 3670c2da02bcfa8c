"""Learning from preferences without a loop, as a user runs it: pairs and labels, what is kept, and the evaluation."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from actors.loop.crew import crew_of
from jobs import evaluate, export, preference, prepare
from pipeline.config import ConfigError, Recipe, load_recipe
from pipeline.data.held_out import HeldOut
from pipeline.data.table import PreferenceTable, PromptTable, write_preferences
from pipeline.models.processing import load_processor
from pipeline.models.tokens import answer_ids
from pipeline.records import Opinion, Preference, RaterKind, Rating
from tests.jobs.small import SMALL, curve, small_recipe, stages_done

LEARNING = "num_steps: 3, batch_size: 8, held_out_fraction: 0.3, learning_rate: 1.0e-3, micro_batch_tokens: 300"


def _opinions(recipe: Recipe, checkpoint: Path, *, labels: bool) -> list[Opinion]:
    """Of every row the answer with what is not: as a pair, or each alone."""
    tokenizer = load_processor(checkpoint, trust_remote_code=False).tokenizer
    found: list[Opinion] = []
    for info in PromptTable(f"{recipe.data.path}/train.parquet").infos():
        assert info.answer is not None
        good, bad = (tuple(answer_ids(tokenizer, text)) for text in (info.answer, "none of it"))
        if labels:
            for ids, value in ((good, 1.0), (bad, 0.0)):
                found.append(Rating(info.id, ids, "", {"overall": value}, "anna", RaterKind.HUMAN))
        else:
            found.append(Preference(info.id, good, bad, "", "", "anna", RaterKind.HUMAN))
    return found


def _weights(recipe: Recipe, stage: str) -> dict[str, np.ndarray]:
    (file,) = recipe.checkpoint(stage).glob("*.safetensors")
    return load_file(file)


def _with(recipe: Recipe, settings: str) -> Recipe:
    changed = load_recipe(None, [f"preference={{{LEARNING}, {settings}}}"]).preference
    return recipe.model_copy(update={"preference": changed})


@pytest.mark.usefixtures("local_ray")
def test_a_policy_learns_from_pairs_on_any_media_and_what_the_reference_said_serves_again(
    tmp_path: Path, tiny_checkpoint: Path, demo_data: Path
) -> None:
    evaluated = ["evaluate={checkpoint: preference, samples_per_prompt: 1, browser_rows: 2, blind: false}"]
    evaluated += ["export.checkpoint=preference"]
    recipe = _with(
        small_recipe(tmp_path, tiny_checkpoint, demo_data, *evaluated), "loss: dpo, num_workers: 2, zero_stage: 3"
    )
    shutil.rmtree(recipe.checkpoint("reward_model"))
    table = tmp_path / "preferences.parquet"
    opinions = _opinions(recipe, tiny_checkpoint, labels=False)
    write_preferences(table, opinions)
    with crew_of(recipe) as crew:
        assert preference.run(recipe, crew=crew) == tmp_path / "checkpoints" / "preference"
        evaluate.run(recipe, crew=crew)
        assert export.run(recipe, crew=crew) == recipe.checkpoint("preference_int8")
    assert "Exported in int8: `preference`" in (tmp_path / "report.html").read_text()
    exported = json.loads((tmp_path / "export.json").read_text())
    assert exported["quality"]["num_prompts"] > 4 and exported["target_bytes"] < exported["source_bytes"]
    *steps, last = curve(recipe, "preference")
    assert len(steps) == 3 and steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert steps[-1]["loss"] < steps[0]["loss"] and steps[-1]["rewards/margin"] > 0.05
    held_out = HeldOut.of(PreferenceTable(table).prompt_ids(), fraction=0.3, most=512)
    assert last["held_out/num"] == len(held_out.rows) > 1
    assert last["held_out/rewards/accuracy"] > 0.9 and last["held_out/loss"] < math.log(2)
    assert {"rewards/chosen", "rewards/rejected", "rewards/accuracy", "logps/chosen", "logps/rejected"} <= set(steps[0])
    before, after = _weights(recipe, "sft"), _weights(recipe, "preference")
    moved = {name for name, array in before.items() if not np.array_equal(array, after[name])}
    assert moved and not any("visual" in name or "audio_tower" in name for name in moved)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["overall"]["rlhf"]["true_reward"] is not None
    assert summary["overall"]["rlhf"]["learned_reward"] is None

    # All are known now: another loss, with adapters, finds what was kept.
    (kept,) = (tmp_path / "reference_logprobs").iterdir()
    size = kept.stat().st_size
    assert 0 < size <= 24 * 2 * len(opinions)
    adapters = "parts: {language_model: {mode: lora}, head: {mode: freeze}}"
    again = _with(recipe, f"loss: ipo, num_steps: 2, {adapters}".replace("num_steps: 2, ", ""))
    preference.run(again)
    assert kept.stat().st_size <= 24 * 2 * len(opinions)
    assert curve(again, "preference")[0]["loss"] == pytest.approx((1 / (2 * 0.1)) ** 2, rel=1e-3)
    assert (recipe.checkpoint("preference") / "adapter").is_dir()


@pytest.mark.usefixtures("local_ray")
def test_a_policy_learns_from_labels_alone_and_a_loss_of_pairs_refuses_them(
    tmp_path: Path, tiny_checkpoint: Path, demo_data: Path
) -> None:
    recipe = _with(small_recipe(tmp_path, tiny_checkpoint, demo_data), "loss: kto")
    write_preferences(tmp_path / "preferences.parquet", _opinions(recipe, tiny_checkpoint, labels=True))
    with crew_of(recipe) as crew:
        preference.run(recipe, crew=crew)
        *steps, last = curve(recipe, "preference")
        assert steps[0]["loss"] == pytest.approx(0.5, abs=1e-4) and steps[-1]["loss"] < steps[0]["loss"]
        assert last["held_out/rewards/margin"] > 0 and last["held_out/num"] > 2
        with pytest.raises(ConfigError, match=r"no row prefers one of two completions.*loss=dpo.*use kto"):
            preference.run(_with(recipe, "loss: dpo"), crew=crew)


@pytest.mark.usefixtures("local_ray")
def test_kto_learns_the_labels_of_a_prepared_table(tmp_path: Path, tiny_checkpoint: Path) -> None:
    said = {True: "right", False: "wrong"}
    rows = [{"prompt": f"Say {n}.", "completion": said[n % 2 == 0], "label": n % 2 == 0} for n in range(16)]
    (tmp_path / "thumbs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = "prepare={answers: optional, split: {validation: 0, test: 0}, count_tokens: false, num_workers: 1}"
    source = f"prepare.sources=[{{path: {tmp_path / 'thumbs.jsonl'}, name: thumbs}}]"
    own = [f"run.directory={tmp_path}", f"model.path={tiny_checkpoint}", prepared, source]
    recipe = _with(load_recipe(None, [*SMALL, *own]), "loss: kto")
    prepare.run(recipe)
    stages_done(tmp_path, tiny_checkpoint)
    preference.run(recipe)
    given = PreferenceTable(tmp_path / "preferences.parquet").read()
    assert sorted((each.text, each.ratings["overall"]) for each in given if isinstance(each, Rating)) == [
        *[("right", 1.0)] * 8,
        *[("wrong", 0.0)] * 8,
    ]
    *steps, last = curve(recipe, "preference")
    assert steps[0]["loss"] == pytest.approx(0.5, abs=1e-4) and steps[-1]["loss"] < steps[0]["loss"]
    assert last["held_out/num"] > 0 and last["held_out/rewards/chosen"] > last["held_out/rewards/rejected"]
    # Rows that were only called bad have no answer; nobody refuses them for that.
    assert all(row["counts/pairs_refused"] == row["counts/opinions_without_lesson"] == 0 for row in steps)
