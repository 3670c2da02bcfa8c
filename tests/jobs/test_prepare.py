"""`jobs.prepare` on files of every form: what comes in, what comes out, what is refused; and training on the result."""

from __future__ import annotations

import importlib
import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from actors.loop.crew import crew_of
from jobs import evaluate, prepare, reward_model, rlhf, sft
from pipeline.config import ConfigError, Dtype, Recipe, Source, load_recipe
from pipeline.data.held_out import HeldOut
from pipeline.data.ingest import shards
from pipeline.data.media import decode_image
from pipeline.data.table import PreferenceTable, PromptTable, Quarantine, TooManyBadRows, write_preferences
from pipeline.models import tiny
from pipeline.models.checkpoint import load_reward_model
from pipeline.records import Prompt, RaterKind
from tests.data.ingest import samples
from tests.jobs.dying import deaths_in, dying
from tests.jobs.small import curve, stages_done

pytestmark = pytest.mark.usefixtures("local_ray")


def recipe_of(directory: Path, checkpoint: Path, sources: list[Any], *overrides: str) -> Recipe:
    named = json.dumps([source.model_dump(mode="json") for source in sources])
    return load_recipe(
        None,
        [
            "cluster.device=cpu",
            "run.sinks=[jsonl]",
            "prepare.num_workers=2",
            "data.num_readers=1",
            f"run.directory={directory}",
            f"model.path={checkpoint}",
            f"prepare.sources={named}",
            *overrides,
        ],
    )


def rows_of(directory: Path, split: str = "train") -> list[dict[str, Any]]:
    return [row for file in sorted(directory.glob(f"{split}*.parquet")) for row in pq.read_table(file).to_pylist()]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, local_ray: None) -> Recipe:
    """All forms in one table."""
    directory = tmp_path_factory.mktemp("prepared")
    recipe = recipe_of(
        directory / "run",
        tiny_checkpoint,
        samples.every_form(directory),
        "prepare.split={by: hash, validation: 0.1, test: 0.1}",
        "prepare.steps=[{step: text.normalise}, {step: image.resize, max_side: 16}, {step: audio.mfcc}]",
    )
    prepare.run(recipe)
    return recipe


def test_every_row_of_every_form_is_in_the_table_once(prepared: Recipe) -> None:
    rows = [row for split in ("train", "validation", "test") for row in rows_of(prepared.data_path, split)]
    found = Counter(row["dataset"] for row in rows)
    expected = {make.__name__: samples.ROWS for make in samples.FORMS}
    assert found == {**expected, "judgements": samples.ROWS // 2}  # bad completions answer nothing
    assert len({row["id"] for row in rows}) == len(rows)
    assert len(Quarantine.read(prepared.data_path / "quarantine.parquet")) == 0
    of_swift = next(row for row in rows if row["dataset"] == "swift")
    assert of_swift["prompt"][0]["content"] == "<video>And <audio>what is this?"
    assert of_swift["num_tokens"] > 10
    assert [(each["name"], each["medium"], len(each["values"][0])) for each in of_swift["features"]] == [
        ("mfcc", 1, 13)
    ]
    picture = next(row for row in rows if row["dataset"] == "llava")
    assert decode_image(picture["images"][0]["bytes"], prepared.data.limits).pixels.shape == (16, 16, 3)


@pytest.fixture(scope="module")
def trained(prepared: Recipe) -> Recipe:
    """SFT and the reward model, a few steps each, on all forms in one table."""
    recipe = prepared.model_copy(
        update={
            "sft": prepared.sft.model_copy(update={"num_steps": 3, "batch_size": 8}),
            "reward_model": prepared.reward_model.model_copy(update={"num_steps": 2, "batch_size": 4}),
        }
    )
    with crew_of(recipe) as crew:
        sft.run(recipe, crew=crew)
        reward_model.run(recipe, crew=crew)
    return recipe


def test_training_reads_what_was_prepared(trained: Recipe) -> None:
    losses = [row["loss"] for row in curve(trained, "sft")]
    assert len(losses) == 3 and losses[-1] < losses[0]


def test_the_reward_model_learns_the_comparisons_that_came_with_the_data(trained: Recipe) -> None:
    given = PreferenceTable(trained.run.directory / "preferences.parquet").pairs()
    assert {(item.rater, item.rater_kind) for item in given} == {("preferences", RaterKind.DATASET)}
    assert all(item.rejected == f"{item.chosen} maybe" for item in given)
    assert {item.margin for item in given} == {0.0, 1.0, 2.0}
    *steps, last = curve(trained, "reward_model")
    assert len(steps) == 2 and not any("held_out" in name for row in steps for name in row)
    found = json.loads((trained.run.directory / "reward_model.json").read_text())
    held_out = HeldOut.of((item.prompt_id for item in given), fraction=0.1, most=512)
    assert last["held_out/num_pairs"] == found["overall"]["num_pairs"] == len(held_out.rows)
    assert last["held_out/accuracy"] == found["overall"]["accuracy"]
    assert found["raters"] == ["preferences"] and "reward_model.held_out_fraction" in found["warning"]
    assert set(found["tasks"]) == {"preferences"} and set(found["modalities"]) == {"image"}
    assert found["blind"]["image"]["num_pairs"] == len(held_out.rows) and found["blind"]["image"]["change"] > 0
    assert found["length"]["chosen_shorter"]["num_decided"] == len(held_out.rows)
    assert last["held_out/accuracy/chosen:shorter"] == found["overall"]["accuracy"]


def test_labels_alone_teach_a_reward_model_of_several_heads(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = samples.judgements(tmp_path, 0)
    shared = ["prepare.split={validation: 0, test: 0}", "prepare.count_tokens=false", "preferences.num_prompts=4"]
    learning = "reward_model={num_steps: 2, batch_size: 4, held_out_fraction: 0.3, ensemble: 3}"
    answered = recipe_of(tmp_path / "answered", tiny_checkpoint, [source], *shared, learning)
    prepare.run(answered)
    assert len(rows_of(answered.data_path)) == samples.ROWS // 2
    stages_done(answered.run.directory, tiny_checkpoint)
    with pytest.raises(ConfigError, match=r"6 of 12 ids are not in this table.*prepare\.answers=optional"):
        reward_model.run(answered)

    recipe = recipe_of(tmp_path / "run", tiny_checkpoint, [source], *shared, learning, "prepare.answers=optional")
    prepare.run(recipe)
    answers = [row["answer"] for row in rows_of(recipe.data_path)]
    assert answers[::2] == [str(number) for number in range(0, samples.ROWS, 2)] and not any(answers[1::2])
    stages_done(recipe.run.directory, tiny_checkpoint)
    shutil.rmtree(recipe.checkpoint("reward_model"))
    reward_model.run(recipe)

    given = PreferenceTable(recipe.run.directory / "preferences.parquet")
    assert (len(given), given.pairs(), given.criteria()) == (samples.ROWS, [], ["overall"])
    *steps, last = curve(recipe, "reward_model")
    assert all(row["loss"] > 0 and "accuracy" not in row and row["rating_error"] < 1 for row in steps)
    found = json.loads((recipe.run.directory / "reward_model.json").read_text())
    rated = found["criteria"]["overall"]
    assert last["held_out/brier/criterion:overall"] == rated["brier"]
    assert rated["num_ratings"] == rated["num_decided"] == found["length"]["num_completions"] > 1
    assert (found["overall"]["num_pairs"], found["overall"]["accuracy"], found["blind"]) == (0, None, {})
    assert f"{rated['num_ratings']} ratings are held out" in found["warning"]
    trained = load_reward_model(recipe.checkpoint("reward_model"), dtype=Dtype.FLOAT32, trust_remote_code=False)
    assert trained.head.num_members == 3
    assert (trained.mean.item(), trained.scale.item()) == pytest.approx((found["score"]["mean"], found["score"]["std"]))


def test_datasets_opens_the_directory_as_it_is(prepared: Recipe) -> None:
    opened: Any = datasets.load_dataset(str(prepared.data_path), cache_dir=str(prepared.run.directory / "cache"))
    assert set(opened) == {"train", "validation", "test"}
    row = next(row for row in opened["train"] if row["dataset"] == "llava")
    assert np.asarray(row["images"][0]).shape == (16, 16, 3)
    assert opened["train"].features["images"] == datasets.List(datasets.Image())


def test_the_card_counts_what_is_there_and_names_every_parameter(prepared: Recipe) -> None:
    card = (prepared.data_path / "README.md").read_text()
    assert "| image.resize |" in card and "max_side=16" in card
    assert "audio+video" in card and "| preferences |" in card
    summary = json.loads((prepared.data_path / "prepare.json").read_text())
    assert summary["rows_read"] == samples.ROWS * len(samples.FORMS)
    assert sum(summary["datasets"]["tar"].values()) == samples.ROWS
    assert sum(summary["tables"]["judgements"].values()) == samples.ROWS
    assert (prepared.data_path / "distributions.png").read_bytes().startswith(b"\x89PNG")


def test_trainers_of_trl_take_the_comparisons_and_the_judgements(prepared: Recipe, tiny_vl_checkpoint: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    trl: Any = importlib.import_module("trl")
    out = prepared.run.directory / "trl"
    settings: dict[str, Any] = {"output_dir": str(out), "max_steps": 1, "per_device_train_batch_size": 2}
    settings |= {"report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no", "disable_tqdm": True}
    processor: Any = AutoProcessor.from_pretrained(tiny_vl_checkpoint)

    pairs, thumbs = (
        cast(Any, datasets.load_dataset(str(prepared.data_path), table, cache_dir=str(out / "cache")))["train"]
        for table in ("preferences", "judgements")
    )
    assert [part["type"] for part in pairs[0]["prompt"][0]["content"]] == ["image", "text"]
    assert pairs[0]["margin"] in (0.0, 1.0, 2.0)
    trainers = (
        trl.DPOTrainer(
            model=AutoModelForImageTextToText.from_pretrained(tiny_vl_checkpoint),
            args=trl.DPOConfig(**settings, max_length=None),
            train_dataset=pairs,
            processing_class=processor,
        ),
        trl.KTOTrainer(
            model=AutoModelForImageTextToText.from_pretrained(tiny_vl_checkpoint),
            args=trl.KTOConfig(**settings),
            train_dataset=thumbs,
            processing_class=processor.tokenizer,
        ),
    )
    for trainer in trainers:
        assert np.isfinite(trainer.train().training_loss)


def repeated_pictures(directory: Path) -> Any:
    """Ten rows about three pictures, and among them a bad row and another with an id of theirs."""
    source = samples.llava(directory, 0)
    rows = json.loads((directory / "chat.json").read_text())
    chosen = [{**rows[index % 3], "id": f"row-{index}", "hard": (7 * index) % 10} for index in range(10)]
    more = [{**rows[0], "id": "bad-1", "image": "missing.png"}, {**rows[1], "id": "row-3"}]
    (directory / "chat.json").write_text(json.dumps([*chosen[:5], *more, *chosen[5:]]))
    return source


def test_a_medium_of_many_rows_is_stored_once_and_found_wherever_the_table_goes(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    source = repeated_pictures(tmp_path)
    recipe = recipe_of(
        tmp_path / "run",
        tiny_checkpoint,
        [source],
        "prepare.media=references",
        "prepare.count_tokens=false",
        "prepare.split={validation: 0, test: 0}",
        "prepare.rows_per_file=4",
        "data.max_bad_fraction=0.2",
    )
    counts = prepare.run(recipe)
    assert counts == {"train/llava": 11}
    assert len(list((recipe.data_path / "media").glob("*/*.png"))) == 3
    assert [file.name for file in sorted(recipe.data_path.glob("train*"))] == [
        f"train-0000{part}-of-00003.parquet" for part in range(3)
    ]
    refused = {row.row_id: row.reason for row in Quarantine.read(recipe.data_path / "quarantine.parquet")}
    assert refused == {"bad-1": "not_found"}
    opened: Any = datasets.load_dataset(str(recipe.data_path), cache_dir=str(tmp_path / "cache"))
    assert np.asarray(opened["train"][0]["images"][0]).shape == (16, 16, 3)
    moved = tmp_path / "moved"
    recipe.data_path.rename(moved)
    prompts = PromptTable(moved / "train.parquet").read([*(f"row-{index}" for index in range(10)), "row-3-2"])
    pictures = [prompt.media[0].data for prompt in prompts if isinstance(prompt, Prompt)]
    assert len(pictures) == 11 and pictures[10] == pictures[1] != pictures[3] and len(set(pictures)) == 3
    assert pictures[0] == (tmp_path / "0.png").read_bytes()


def test_neither_the_cut_into_shards_nor_the_workers_change_the_table(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = samples.swift(tmp_path, 0)
    steps = "prepare.steps=[{step: audio.noise, probability: 0.5}, {step: image.flip}, {step: dedup.exact}]"
    tables: list[list[dict[str, Any]]] = []
    for size in (10**9, 200):
        monkeypatch.setattr(shards, "JSON_BYTES", size)
        recipe = recipe_of(tmp_path / str(size), tiny_checkpoint, [source], "prepare.count_tokens=false", steps)
        prepare.run(recipe)
        tables.append([row for split in ("train", "validation", "test") for row in rows_of(recipe.data_path, split)])
    assert tables[0] == tables[1]
    assert len(tables[0]) == samples.ROWS
    plain = {row["id"]: (tmp_path / f"{index}.wav").read_bytes() for index, row in enumerate(sorted(tables[0], key=at))}
    changed = sum(row["audios"][0]["bytes"] != plain[row["id"]] for row in tables[0])
    assert 0 < changed < samples.ROWS


def at(row: dict[str, Any]) -> int:
    return int(row["answer"].split()[-1])


def test_too_many_bad_rows_stop_the_job_and_are_named(tmp_path: Path, tiny_checkpoint: Path) -> None:
    recipe = recipe_of(tmp_path / "run", tiny_checkpoint, [repeated_pictures(tmp_path)], "prepare.count_tokens=false")
    with pytest.raises(TooManyBadRows, match=r"1 of 12 rows were refused \(1 not_found\)"):
        prepare.run(recipe)
    assert len(Quarantine.read(recipe.data_path / "quarantine.parquet")) == 1
    assert not list(recipe.data_path.glob("train*"))
    assert not (recipe.data_path / ".staging").exists()


def test_a_curriculum_goes_from_easy_to_hard_and_duplicates_are_left_out_but_counted(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    recipe = recipe_of(
        tmp_path / "run",
        tiny_checkpoint,
        [repeated_pictures(tmp_path)],
        "prepare.count_tokens=false",
        "prepare.sort_by=hard",
        "prepare.steps=[{step: dedup.exact}]",
        "prepare.split={validation: 0, test: 0}",
        "data.max_bad_fraction=0.2",
    )
    prepare.run(recipe)
    assert [row["id"] for row in rows_of(recipe.data_path)] == ["row-0", "row-2", "row-1"]  # hard: 0, 4, 7
    summary = json.loads((recipe.data_path / "prepare.json").read_text())
    assert summary["left_out"] == {"duplicate": 8}
    assert summary["refused"] == {"not_found": 1}


def test_a_wrong_map_stops_before_anything_is_read(tmp_path: Path, tiny_checkpoint: Path) -> None:
    source = samples.table(tmp_path, 0).model_copy(update={"map": {"prompt": "asked"}})
    recipe = recipe_of(tmp_path / "run", tiny_checkpoint, [source])
    with pytest.raises(ConfigError, match="has no column 'asked'; found: ask, result"):
        prepare.run(recipe)
    good = source.model_copy(update={"map": {"prompt": "ask", "answer": "result"}})
    recipe = recipe_of(tmp_path / "run", tiny_checkpoint, [good], "prepare.sort_by=hardness")
    with pytest.raises(ConfigError, match=r"prepare.sort_by=hardness: no source has that column; found: ask, result"):
        prepare.run(recipe)


def test_nothing_is_overwritten_but_what_this_stage_wrote(tmp_path: Path, tiny_checkpoint: Path) -> None:
    source = samples.preferences(tmp_path, 0)
    inside = recipe_of(tmp_path / "run", tiny_checkpoint, [source], f"data.path={tmp_path}")
    with pytest.raises(ConfigError, match="lies where the table goes"):
        prepare.run(inside)
    assert Path(source.path).is_file()
    other = tmp_path / "run" / "data" / "train.parquet"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"mine")
    (tmp_path / "source").mkdir()
    apart = samples.table(tmp_path / "source", 0)
    with pytest.raises(ConfigError, match=r"holds train.parquet, which was not made of sources"):
        prepare.run(recipe_of(tmp_path / "run", tiny_checkpoint, [apart]))
    assert other.read_bytes() == b"mine"


def test_a_second_run_replaces_the_files_of_the_first_even_where_that_was_cut_off_and_no_others(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = ("prepare.count_tokens=false", "prepare.media=references", "prepare.split={validation: 0, test: 0}")
    few = recipe_of(
        tmp_path / "run", tiny_checkpoint, [samples.preferences(tmp_path, 0)], *shared, "prepare.rows_per_file=4"
    )

    def dies(*arguments: Any, **options: Any) -> None:
        write_tables(*arguments, **options)
        raise KeyboardInterrupt

    write_tables = prepare.write_tables
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(prepare, "write_tables", dies)
        prepare.run(few)
    assert len(list(few.data_path.glob("*/train-*.parquet"))) == len(list(few.data_path.glob("train-*.parquet"))) > 1
    others = [
        few.data_path / name for name in ("media/cats/1.png", "train_backup.parquet", "rlaif.parquet", "notes.md")
    ]
    for file in others:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="which the built-in data would replace"):
        prepare.run(few.model_copy(update={"prepare": few.prepare.model_copy(update={"sources": ()})}))

    (tmp_path / "plain").mkdir()
    prepare.run(recipe_of(tmp_path / "run", tiny_checkpoint, [samples.table(tmp_path / "plain", 0)], *shared))
    assert sorted(file.name for file in few.data_path.rglob("train*.parquet")) == [
        "train.parquet",
        "train_backup.parquet",
    ]
    assert all(file.read_bytes() == b"mine" for file in others)
    assert [file.name for file in (few.data_path / "media").rglob("*.*")] == ["1.png"]


def test_the_short_options_say_what_their_fields_say() -> None:
    flags = {flag.name: flag for flag in prepare.FLAGS}
    overrides = [
        *flags["--from"].overrides(["a b.jsonl", "s3://c/d"]),
        *flags["--map"].overrides(["answer=label", "id=key"]),
        *flags["--max-bad-fraction"].overrides(["0.2"]),
    ]
    recipe = load_recipe(None, overrides)
    assert [source.path for source in recipe.prepare.sources] == ["a b.jsonl", "s3://c/d"]
    assert recipe.prepare.map == {"answer": "label", "id": "key"}
    assert recipe.data.max_bad_fraction == 0.2


def test_prompts_that_nobody_answered_are_prepared_learned_from_and_evaluated(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    (tmp_path / "0.png").write_bytes(samples.digit(0)[0])
    rows: list[dict[str, Any]] = [
        {"id": f"{kind}-{number}", "prompt": [{"role": "user", "content": f"{number}: what is it?"}], "images": images}
        for number in range(4)
        for kind, images in (("text", []), ("image", ["0.png"]))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = recipe_of(
        tmp_path / "run",
        tiny_checkpoint,
        [Source(path=str(tmp_path / "rows.jsonl"), name="open")],
        "prepare.answers=optional",
        "prepare.num_workers=1",
        "prepare.count_tokens=false",
        "prepare.split={validation: 0, test: 0}",
        "rlhf={num_steps: 1, prompts_per_step: 4, group_size: 2, samples_every: 1, parity: {num_rows: 0}}",
        "rlhf.algorithm.advantage=rloo",
        "rlhf.rewards={learned: 1.0}",
        "rlhf.sampling.max_new_tokens=4",
        "evaluate={split: train, samples_per_prompt: 1}",
    )
    assert prepare.run(recipe) == {"train/open": 8}
    assert [row["answer"] for row in rows_of(recipe.data_path)] == [None] * 8
    stages_done(recipe.run.directory, tiny_checkpoint)
    write_preferences(recipe.run.directory / "preferences.parquet", [])
    with crew_of(recipe) as crew:
        rlhf.run(recipe, crew=crew)
        evaluate.run(recipe, crew=crew)

    (step,) = curve(recipe)
    assert np.isfinite(step["reward/learned"]) and not any("quarantined" in name for name in step)
    sampled = [json.loads(line) for line in (recipe.run.directory / "samples.jsonl").read_text().splitlines()]
    assert sampled and {row["answer"] for row in sampled} == {None}
    summary = json.loads((recipe.run.directory / "summary.json").read_text())
    found = summary["overall"]["rlhf"]
    assert (summary["counts"]["rows_without_answer"], summary["overall"]["num_prompts"]) == (8, 8)
    assert (found["true_reward"], found["num_unscored"], summary["overall"]["gain"]) == (None, 16, None)
    assert np.isfinite([found["learned_reward"], found["kl"]]).all() and "exact_match" not in found


def sums(directory: Path, monkeypatch: pytest.MonkeyPatch, *, deaths: int) -> list[str]:
    """Writes 900 rows and has them cut into three shards; a worker dies near the end of the second. Returns ids."""
    rows = [{"id": f"row-{n}", "question": f"How much is {n} and {n}?", "answer": str(2 * n)} for n in range(900)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(shards, "JSON_BYTES", (directory / "rows.jsonl").stat().st_size // 3 + 1)
    monkeypatch.setattr(prepare, "processor_alone", partial(dying, directory / "deaths", "row-590", deaths))
    return [str(row["id"]) for row in rows]


def test_a_worker_that_is_killed_half_way_through_a_shard_costs_no_row_and_doubles_none(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = sums(tmp_path, monkeypatch, deaths=1)
    source = Source(path=str(tmp_path / "rows.jsonl"), name="sums")
    recipe = recipe_of(tmp_path / "run", tiny_checkpoint, [source], "prepare.split={validation: 0, test: 0}")
    assert prepare.run(recipe) == {"train/sums": 900}
    assert deaths_in(tmp_path / "deaths") == 1
    assert [row["id"] for row in rows_of(recipe.data_path)] == ids
    assert len(Quarantine.read(recipe.data_path / "quarantine.parquet")) == 0


def test_a_shard_of_which_every_worker_dies_stops_the_job_and_is_named(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums(tmp_path, monkeypatch, deaths=100)
    recipe = recipe_of(tmp_path / "run", tiny_checkpoint, [Source(path=str(tmp_path / "rows.jsonl"))])
    with pytest.raises(RuntimeError, match=r"4 workers died, one after the other, .*rows\.jsonl, \d+ to \d+"):
        prepare.run(recipe)
    assert deaths_in(tmp_path / "deaths") == 4
    assert not list(recipe.data_path.glob("train*")) and not (recipe.data_path / ".staging").exists()


def test_a_source_that_is_not_there_is_told_before_a_model_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "build", lambda *_, **__: pytest.fail("a model was built"))
    recipe = load_recipe(None, [f"run.directory={tmp_path}", f"prepare.sources=[{{path: {tmp_path}/gone.json}}]"])
    with pytest.raises(FileNotFoundError, match="nothing is here; data sets on a hub"):
        prepare.run(recipe)
