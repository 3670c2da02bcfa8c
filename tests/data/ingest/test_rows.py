"""One row on its way into the table: its media, its steps, its tokens, and what the driver learns of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.config import Recipe, Source, load_recipe
from pipeline.data.ingest.readers import RawRow, Unreadable
from pipeline.data.ingest.rows import Prepared, RowPreparer, dataset_name
from pipeline.data.media import decode_audio, decode_image
from pipeline.data.schema import Reason
from pipeline.models.processing import processor_alone
from pipeline.records import Quarantined
from tests.data import files
from tests.data.ingest import samples


def recipe_of(directory: Path, *overrides: str) -> Recipe:
    source = json.dumps([Source(path=str(directory), name="set").model_dump(mode="json")])
    return load_recipe(None, [f"prepare.sources={source}", *overrides])


def prepared(recipe: Recipe, values: dict[str, Any], path: str = "rows.jsonl", **options: Any) -> Prepared:
    row = asked(recipe, values, path, **options)
    assert isinstance(row, Prepared), row
    return row


def asked(recipe: Recipe, values: dict[str, Any], path: str, **options: Any) -> Prepared | Quarantined:
    root = Path(recipe.prepare.sources[0].path)
    prepare = RowPreparer(recipe, directory=root / "out", **{"processor": None, **options})
    return prepare(RawRow(f"{path}-0", values, str(root / path)), 0)


def test_media_are_looked_for_beside_the_table_of_rows_and_nowhere_above_the_source(tmp_path: Path) -> None:
    (tmp_path / "source" / "deep").mkdir(parents=True)
    (tmp_path / "source" / "deep" / "a.png").write_bytes(samples.digit(0)[0])
    (tmp_path / "above.png").write_bytes(samples.digit(1)[0])
    recipe = recipe_of(tmp_path / "source")
    good = prepared(recipe, {"question": "?", "answer": "x", "image": "a.png"}, "deep/rows.jsonl")
    assert good.row["images"] == [{"bytes": samples.digit(0)[0], "path": "a.png"}]
    assert good.index["id"] == "set/deep/rows.jsonl-0"
    assert prepared(recipe, {"question": "?", "answer": "x", "image": "deep/a.png"}, "deep/rows.jsonl")
    refused = asked(recipe, {"question": "?", "answer": "x", "image": str(tmp_path / "above.png")}, "deep/rows.jsonl")
    assert isinstance(refused, Quarantined) and refused.reason == Reason.OUTSIDE_ROOTS


def test_a_medium_keeps_its_bytes_unless_a_step_changes_it(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "prepare.steps=[{step: image.resize, max_side: 12}]")
    small, large = (files.image_file(Image.fromarray(files.pixels(*size)), "JPEG") for size in ((8, 12), (40, 20)))
    values = {"question": "?", "answer": "x", "images": [small, {"bytes": large, "path": "b/large.jpg"}]}
    row = prepared(recipe, values).row
    assert row["images"][0] == {"bytes": small, "path": None}
    assert row["images"][1]["path"] == "b/large.png"
    assert decode_image(row["images"][1]["bytes"], recipe.data.limits).pixels.shape == (12, 6, 3)
    assert row["sources"] == prepared(recipe_of(tmp_path), values).row["sources"]


def test_the_sound_of_a_video_comes_right_after_it_where_it_is_asked_for(tmp_path: Path) -> None:
    steps = "prepare.steps=[{step: video.keep_sound}, {step: audio.resample, sampling_rate: 8000}]"
    recipe = recipe_of(tmp_path, steps)
    media = {"videos": [files.video_file(sound="aac"), samples.clip(0)], "audio": samples.tone(1)}
    values = {"question": "<video>Now <video>and <audio>?", "answer": "x", **media}
    row = prepared(recipe, values).row
    assert row["prompt"][0]["content"] == "<video><audio>Now <video>and <audio>?"
    assert len(row["audios"]) == 2
    track = decode_audio(row["audios"][0]["bytes"], recipe.data.limits)
    assert track.sampling_rate == 8_000
    assert len(track.samples) / 8_000 == pytest.approx(1.2, abs=0.1)
    assert len(row["sources"]) == 4


def test_tokens_are_those_of_the_model_and_too_many_are_refused_now(tmp_path: Path, tiny_checkpoint: Path) -> None:
    values = {"question": "<image>What digit is this?", "answer": "7", "image": samples.digit(0)[0]}
    recipe = recipe_of(tmp_path)
    processor = processor_alone(recipe, tiny_checkpoint)
    row = prepared(recipe, values, processor=processor)
    tokenizer = processor.processor.tokenizer
    assert row.index["num_answer_tokens"] == len(tokenizer.encode("7")) + 1
    bare = prepared(recipe, {**values, "question": "What digit is this?", "image": None}, processor=processor)
    assert row.row["num_tokens"] > bare.row["num_tokens"] + 2
    strict = recipe_of(tmp_path, "data.max_prompt_tokens=10")
    refused = asked(strict, values, "x", processor=processor_alone(strict, tiny_checkpoint))
    assert isinstance(refused, Quarantined) and refused.reason == Reason.PROMPT_TOO_LONG
    forged = asked(recipe, {**values, "question": "<image><|im_end|>"}, "x", processor=processor)
    assert isinstance(forged, Quarantined) and forged.reason == Reason.SPECIAL_TOKEN


def test_ids_are_made_of_the_rows_places_where_the_recipe_or_the_source_says_so(tmp_path: Path) -> None:
    values = {"id": "033471", "question": "?", "answer": "x"}
    assert prepared(recipe_of(tmp_path), values).index["id"] == "033471"
    assert prepared(recipe_of(tmp_path, "prepare.ids=place"), values).index["id"] == "set/rows.jsonl-0"
    source = {"path": str(tmp_path), "name": "set", "ids": "place"}
    assert prepared(recipe_of(tmp_path, f"prepare.sources={json.dumps([source])}"), values).row["id"] != "033471"
    source["ids"] = "column"
    recipe = recipe_of(tmp_path, "prepare.ids=place", f"prepare.sources={json.dumps([source])}")
    assert prepared(recipe, values).row["id"] == "033471"


def test_columns_that_nobody_reads_come_with_the_row_and_with_the_refusal_of_one_without_an_answer(
    tmp_path: Path,
) -> None:
    values = {"question": "?", "gold": "x", "split": "test"}
    assert prepared(recipe_of(tmp_path), {**values, "answer": "y"}).index["unread"] == ("gold", "split")
    ignoring = recipe_of(tmp_path, "prepare.ignore=[gold]", "prepare.split.by=column")
    assert prepared(ignoring, {**values, "answer": "y"}).index["unread"] == ()
    without = asked(recipe_of(tmp_path), values, "rows.jsonl")
    assert isinstance(without, Quarantined) and "not read: gold, split (prepare.map" in without.detail


@pytest.mark.parametrize("column", ["answer", "demonstration", "chosen", "rejected", "label", "messages"])
def test_whatever_is_learned_is_checked_for_tokens_of_the_model_s_own(
    tmp_path: Path, tiny_checkpoint: Path, column: str
) -> None:
    recipe = recipe_of(tmp_path)
    processor = processor_alone(recipe, tiny_checkpoint)
    pair = {"chosen": "7", "rejected": "8"} if column in ("chosen", "rejected") else {}
    for text, reason in (("8<|im_end|>", Reason.SPECIAL_TOKEN), ("8<|AUDIO|>", Reason.PLACEHOLDER_MISMATCH)):
        turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}]
        values = {"question": "Q", **pair, column: turns if column == "messages" else text}
        answered = values if column != "demonstration" else {**values, "answer": "7"}
        refused = asked(recipe, answered, "x", processor=processor)
        assert isinstance(refused, Quarantined) and refused.reason == reason


def test_a_file_that_is_no_row_and_may_hold_many_is_lost(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    prepare = RowPreparer(recipe, directory=tmp_path / "out", processor=None)
    values = {"rows": [{"question": "Q"}] * 2}
    path = str(tmp_path / "t.json")
    lost, row = (prepare(RawRow("0", values, path, may_be_many=many), 0) for many in (True, False))
    assert isinstance(lost, Quarantined) and lost.reason == Reason.LOST_ROWS and '{"data": [rows]}' in lost.detail
    assert isinstance(row, Quarantined) and row.reason == Reason.NO_MESSAGES
    rest = prepare(Unreadable("t.csv", "cut off", path, is_rest=True), 0)
    assert isinstance(rest, Quarantined) and rest.reason == Reason.LOST_ROWS


NO_ANSWER: dict[str, Any] = {"question": "What is it?", "answer": None}
OPTIONAL = "prepare.answers=optional"


def test_a_row_without_an_answer_is_refused_with_the_cure_unless_answers_are_optional(tmp_path: Path) -> None:
    refused = asked(recipe_of(tmp_path), NO_ANSWER, "rows.jsonl")
    assert isinstance(refused, Quarantined) and refused.reason == Reason.EMPTY_ANSWER
    assert "prepare.answers=optional" in refused.detail
    kept = prepared(recipe_of(tmp_path, OPTIONAL), NO_ANSWER)
    assert (kept.row["answer"], kept.row["demonstration"], kept.index["has_answer"]) == (None, None, False)
    assert prepared(recipe_of(tmp_path, OPTIONAL), {**NO_ANSWER, "answer": "x"}).index["has_answer"] is True


@pytest.mark.parametrize("answer", ["", " ", "\t\n"])
def test_a_blank_answer_is_refused_even_so(tmp_path: Path, answer: str) -> None:
    refused = asked(recipe_of(tmp_path, OPTIONAL), {**NO_ANSWER, "answer": answer}, "rows.jsonl")
    assert isinstance(refused, Quarantined) and refused.reason == Reason.EMPTY_ANSWER
    assert "blank" in refused.detail


def test_an_answer_that_its_steps_leave_blank_is_refused_and_not_taken_for_unknown(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, OPTIONAL, "prepare.steps=[{step: text.remove_controls}]")
    refused = asked(recipe, {**NO_ANSWER, "answer": "\0"}, "rows.jsonl")
    assert isinstance(refused, Quarantined) and refused.reason == Reason.EMPTY_ANSWER
    assert prepared(recipe, NO_ANSWER).row["answer"] is None


def test_a_comparison_and_a_judgement_need_their_answers(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, OPTIONAL)
    question = {"question": "What is it?"}
    for values, reason in (
        ({"rejected": "b"}, Reason.BAD_PREFERENCE),
        ({"chosen": [{"role": "assistant", "content": ""}], "rejected": "b"}, Reason.EMPTY_ANSWER),
        ({"label": True}, Reason.WRONG_TYPE),
        ({"completion": "", "label": True}, Reason.WRONG_TYPE),
    ):
        refused = asked(recipe, {**question, **values}, "rows.jsonl")
        assert isinstance(refused, Quarantined) and refused.reason == reason, values


def test_prompts_without_an_answer_equal_each_other_and_none_that_has_one(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, OPTIONAL, "prepare.steps=[{step: dedup.exact}]")
    first, again = (prepared(recipe, NO_ANSWER, path).index["row_key"] for path in ("a.jsonl", "b.jsonl"))
    other = prepared(recipe, {**NO_ANSWER, "answer": "x"}).index["row_key"]
    assert first == again != other


def test_an_answer_that_is_not_there_has_no_number_of_tokens(tmp_path: Path, tiny_checkpoint: Path) -> None:
    recipe = recipe_of(tmp_path, OPTIONAL)
    index = prepared(recipe, NO_ANSWER, processor=processor_alone(recipe, tiny_checkpoint)).index
    assert index["num_tokens"] > 0 and index["num_answer_tokens"] is None


def test_augmentation_touches_the_training_split_alone_and_draws_by_the_row(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "prepare.split.by=column", "prepare.steps=[{step: audio.noise, probability: 1}]")
    sound = samples.tone(3)

    def heard(id: str, split: str) -> bytes:
        row = prepared(recipe, {"id": id, "question": "?", "answer": "x", "audio": sound, "split": split}).row
        return row["audios"][0]["bytes"]

    assert heard("a", "train") == heard("a", "train") != sound
    assert heard("a", "train") != heard("b", "train")
    assert heard("a", "test") == sound


def test_the_driver_learns_of_a_row_what_decides_about_it_and_no_medium(tmp_path: Path) -> None:
    steps = "prepare.steps=[{step: dedup.near_text, num_permutations: 16}, {step: dedup.near_image}]"
    values = {"question": "What is it?", "chosen": "a", "rejected": "b", "image": samples.digit(0)[0], "margin": 1}
    index = prepared(recipe_of(tmp_path, steps), values).index
    assert (index["is_pair"], index["has_margin"], index["label"]) == (True, True, None)
    assert index["modalities"] == ["image"]
    assert len(index["signature"]) == 8 * 16
    assert len(index["picture_hashes"]) == 1
    assert not any(isinstance(value, bytes) and len(value) > 200 for value in index.values())


def test_sources_of_one_name_are_told_apart(tmp_path: Path) -> None:
    sources = [Source(path=f"/{place}/train.jsonl").model_dump(mode="json") for place in ("a", "b")]
    recipe = load_recipe(None, [f"prepare.sources={json.dumps(sources)}"])
    assert [dataset_name(recipe, number) for number in range(2)] == ["train", "train-2"]


def test_columns_that_are_asked_for_are_kept_as_they_are_and_count_as_read(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "data.columns=[level, tags, absent]")
    values = {"question": "?", "answer": "x", "level": 3, "tags": ["a", {"b": 1.5}], "other": "unread"}
    row = prepared(recipe, values)
    assert json.loads(row.row["columns"]) == {"level": 3, "tags": ["a", {"b": 1.5}]}
    assert row.index["unread"] == ("other",)
    assert prepared(recipe_of(tmp_path), values).row["columns"] is None
