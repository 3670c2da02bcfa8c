"""Pretraining and retrieval as a user runs them: from nothing to a page, and what bad input does to them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from jobs import pretrain, retrieve
from pipeline.config import ConfigError, Recipe, load_recipe
from pipeline.data.table import PromptTable
from pipeline.models.dual_encoder import DualEncoder
from pipeline.records import Prompt
from pipeline.tracking import read_metrics

ENCODER = "{width: 16, num_layers: 1, num_heads: 2}"
SMALL = (
    "cluster.device=cpu",
    "run.sinks=[jsonl]",
    "prepare={tasks: [named], train_rows: 100, validation_rows: 2, test_rows: 60}",
    "pretrain.num_steps=3",
    "pretrain.batch_size=8",
    "pretrain.pairs=[[text, audio], [audio, image]]",
    "pretrain.embedding={size: 8, head_width: 16, num_heads: 2}",
    f"pretrain.embedding.encoders={{text: {ENCODER}, image: {{width: 16, kind: vit, num_layers: 1, num_heads: 2}}}}",
    "pretrain.embedding.sizes={text_length: 8, image_side: 16, sampling_rate: 8000, audio_s: 0.9}",
    "retrieve.num_rows=5",
    "retrieve.queries=[text, audio]",
    "retrieve.top=3",
    "retrieve.few_shot.classes=[three, seven]",
    "retrieve.few_shot.shots=[1, 2]",
    "retrieve.few_shot.num_draws=2",
)


def _recipe(directory: Path, *overrides: str) -> Recipe:
    own = {override.partition("=")[0] for override in overrides}
    others = [override for override in SMALL if override.partition("=")[0] not in own]
    return load_recipe(None, [*others, f"run.directory={directory}", *overrides])


def _ask(recipe_of: Path, monkeypatch: pytest.MonkeyPatch, command: str, *arguments: str) -> None:
    overrides = [*SMALL, f"run.directory={recipe_of}"]
    monkeypatch.setattr(sys, "argv", ["retrieve", command, *arguments, *overrides])
    retrieve.main()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose encoder two workers have trained, after a warm-up."""
    from jobs.command import connect

    directory = tmp_path_factory.mktemp("trained")
    if not ray.is_initialized():
        connect(address="local", num_cpus=8, include_dashboard=False)
    warm = "pretrain.warm_up={kind: masked, num_steps: 2, num_spans: 6}"
    pretrain.run(_recipe(directory, "pretrain.num_workers=2", warm))
    return directory


def test_the_stage_makes_its_data_warms_up_trains_and_logs(trained: Path) -> None:
    rows = read_metrics(trained / "metrics")["pretrain"]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert {"warm_up_loss/image", "warm_up_loss/audio"} <= set(rows[0]) and "loss" not in rows[0]
    assert {"loss", "loss/text_audio", "loss/audio_image", "accuracy/text_audio", "temperature"} <= set(rows[4])
    assert 0.06 < rows[4]["temperature"] < 0.08
    encoder = DualEncoder.load(trained / "checkpoints" / "pretrain")
    assert encoder.modalities == ("text", "image", "audio")


def test_an_evaluation_writes_a_summary_and_a_page(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _ask(trained, monkeypatch, "evaluate")
    summary: dict[str, Any] = json.loads((trained / "summary.json").read_text())
    found = summary["retrieval"]
    assert found["num_rows"] == 5 and set(found["by_query"]) == {"text", "audio"}
    assert found["recall@5"] == found["recall@10"] == 1.0 and 0 <= found["recall@1"] <= 1
    mean = sum(each["recall@1"] for each in found["by_query"].values()) / 2
    assert found["recall@1"] == pytest.approx(mean)
    low, high = found["intervals"]["recall@1"]
    assert low <= found["recall@1"] <= high
    assert {"zero_shot", "1", "2", "supervised_probe", "intervals"} <= set(summary["few_shot"])
    page = (trained / "report.html").read_text()
    for part in ("Retrieval", "Recall@5", "Zero- and few-shot", "Training", "<svg", "data:image/png", "data:audio/wav"):
        assert part in page


def test_an_index_answers_texts_pictures_and_sounds_with_pictures_on_a_page(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _ask(trained, monkeypatch, "index")
    assert "60 rows of test, 8 dimensions" in capsys.readouterr().out
    (row,) = PromptTable(trained / "data" / "test.parquet").read_rows([0])
    assert isinstance(row, Prompt)
    for medium in row.media:
        (tmp_path / medium.kind.value).write_bytes(medium.data)
    for arguments in (
        ["--text", "three"],
        ["--image", str(tmp_path / "image")],
        ["--audio", str(tmp_path / "audio")],
    ):
        _ask(trained, monkeypatch, "query", *arguments)
        said = capsys.readouterr().out.splitlines()
        assert len(said) == 4 and said[-1].endswith("query.html")
        page = (trained / "query.html").read_text()
        assert page.count("data:image/png") == 3 + (arguments[0] == "--image")
        if arguments[0] == "--image":
            assert said[0].startswith("1.000") and row.id in said[0]


def test_an_index_of_another_encoder_is_refused(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe(trained)
    _ask(trained, monkeypatch, "index")
    for size, message in ((8, "was made by the encoder"), (4, "has 8 dimensions, and the encoder has 4")):
        settings = recipe.pretrain.embedding.model_copy(update={"size": size})
        DualEncoder(settings, recipe.pretrain.modalities).save(tmp_path / str(size))
        with pytest.raises(SystemExit, match=message):
            _ask(trained, monkeypatch, "query", "--text", "three", f"retrieve.encoder={tmp_path / str(size)}")


def test_what_a_user_can_mend_is_said_in_one_line(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="no index here; make one with"):
        _ask(trained, monkeypatch, "query", "--text", "three", f"retrieve.index={tmp_path}")
    with pytest.raises(SystemExit, match="ask with one of --text WORDS"):
        _ask(trained, monkeypatch, "index")
        _ask(trained, monkeypatch, "query")
    with pytest.raises(SystemExit, match="no dual encoder here; train one with"):
        _ask(trained, monkeypatch, "index", f"retrieve.encoder={tmp_path / 'nowhere'}")
    with pytest.raises(ConfigError, match=r"retrieve\.num_rows=50: retrieve\.split=test has 10 rows with image, text"):
        retrieve.run(_recipe(trained, "retrieve.num_rows=50"))
    with pytest.raises(ConfigError, match="the class 'elf' has 0 rows in the split train"):
        retrieve.run(_recipe(trained, "retrieve.few_shot.classes=[three, elf]"))
    with pytest.raises(ConfigError, match="has 0 rows with image, video"):
        retrieve.run(_recipe(trained, "retrieve.queries=[video]"))


def test_pairs_that_no_row_has_are_refused(trained: Path) -> None:
    recipe = _recipe(trained, "pretrain.pairs=[[text, video]]")
    with pytest.raises(ConfigError, match="none has both of text and video; name pairs that rows have"):
        pretrain.run(recipe)
