"""A grader worker: it reads rows itself, and sends every modality by every route."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from actors.engine.place import Place
from actors.roles.grader import Asked, GraderWorker, OutsidePart
from pipeline.config import FunctionReward, JudgeReward, Recipe, ServerReward, load_recipe
from pipeline.data.datasets import RowKey
from pipeline.data.table import PromptTable
from pipeline.grading import Failure, RewardCompletion
from pipeline.grading.child import Code
from pipeline.records import FinishReason, MediaKind, PromptInfo
from tests.grading.servers import Answer, served

KINDS = """
def names(prompts, completions):
    return [sum(map(ord, "".join(type(each).__name__ for each in prompt.media))) for prompt in prompts]

def sizes(prompts, completions):
    return [sum(len(each.data) for each in prompt.media) for prompt in prompts]

def tells(prompts, completions):
    return [float(prompt.answer == each.text and not prompt.media) for prompt, each in zip(prompts, completions)]
"""


@pytest.fixture
def worker(demo_data: Path) -> Iterator[GraderWorker]:
    recipe = load_recipe(None, [f"data.path={demo_data}"])
    made = GraderWorker(recipe, recipe.rlhf.grader)
    made.setup(Place(0, 1, "", 0, recipe.cluster.device, 1.0), demo_data)
    yield made
    made.setup(Place(0, 1, "", 0, recipe.cluster.device, 1.0), demo_data)  # which ends what it has started


@pytest.fixture(scope="module")
def asked(demo_data: Path) -> list[Asked]:
    """The first row of each modality, text alone too, with one completion: its answer."""
    found: dict[tuple[MediaKind, ...], Asked] = {}
    for row, info in enumerate(PromptTable(demo_data / "train.parquet").infos()):
        completion = RewardCompletion(info.answer or "", np.arange(3), FinishReason.STOP)
        found.setdefault(info.modalities, Asked(info, RowKey(0, row), (completion,)))
    assert set(found) >= {(), *((kind,) for kind in MediaKind)}
    return list(found.values())


def _function(name: str, **settings: Any) -> OutsidePart:
    given = FunctionReward.model_validate({"path": f"/x/mine.py:{name}", **settings})
    return OutsidePart(name, given, Code(given.path, KINDS, ()))


def test_a_function_takes_every_modality_as_arrays_as_bytes_or_not_at_all(
    worker: GraderWorker, asked: list[Asked], demo_data: Path
) -> None:
    arrays = worker.grade(asked, _function("names", media="decoded"), "train")
    for value, each in zip(arrays.values, asked, strict=True):
        kinds = {sum(map(ord, kind.value.title())) for kind in each.info.modalities}
        assert value == 0 if not kinds else any(value % kind == 0 for kind in kinds) or len(kinds) > 1
    sizes = worker.grade(asked, _function("sizes", media="encoded"), "train").values
    prompts = PromptTable(demo_data / "train.parquet").read_rows([each.row.row for each in asked])
    assert sizes.tolist() == [sum(len(medium.data) for medium in cast(Any, prompt).media) for prompt in prompts]
    assert worker.grade(asked, _function("tells"), "train").values.tolist() == [1.0] * len(asked)


@pytest.mark.parametrize("sending", ["inline", "by_hash"])
def test_a_server_is_sent_every_modality(worker: GraderWorker, asked: list[Asked], sending: str) -> None:
    kept: set[str] = set()
    seen: Counter[str] = Counter()

    def answer(method: str, path: str, body: Any) -> Answer:
        if method == "PUT":
            kept.add(path.rpartition("/")[2])
            return Answer({})
        media = [each for prompt in body["prompts"] for each in prompt["media"]]
        if missing := [each["sha256"] for each in media if "data" not in each and each["sha256"] not in kept]:
            return Answer({"missing": missing}, 409)
        seen.update({each["kind"] for prompt in body["prompts"] for each in prompt["media"]})
        return Answer({"rewards": [len(prompt["media"]) for prompt in body["prompts"]]})

    with served(answer) as told:
        given = ServerReward.model_validate({"url": told.address, "media": sending})
        found = worker.grade(asked, OutsidePart("mine", given), "train")
    assert found.failures == (None,) * len(asked) and set(seen) == set(MediaKind)
    assert [value > 0 for value in found.values] == [bool(each.info.modalities) for each in asked]


def test_a_judge_by_address_is_shown_every_modality(worker: GraderWorker, asked: list[Asked]) -> None:
    with served(lambda method, path, body: Answer({"choices": [{"message": {"content": "Score: 2"}}]})) as told:
        given = JudgeReward(url=told.address, model="m", rubric="good")
        found = worker.grade(asked, OutsidePart("mine", given), "train")
    assert found.values.tolist() == [0.25] * len(asked)
    types: Counter[str] = Counter()
    for _, _, body, _ in told.requests:
        content = body["messages"][1]["content"]
        types.update({part["type"] for part in content} if isinstance(content, list) else ())
        for part in content if isinstance(content, list) else ():
            if part["type"] == "input_audio":
                assert base64.b64decode(part["input_audio"]["data"]).startswith(b"RIFF")
    assert {"image_url", "input_audio", "video_url"} <= set(types)


def test_a_local_judge_sees_every_modality(worker: GraderWorker, asked: list[Asked], tiny_checkpoint: Path) -> None:
    given = JudgeReward.model_validate({"checkpoint": tiny_checkpoint, "rubric": "good", "reading": "choice"})
    part = OutsidePart("mine", given)
    assert worker.load(part) is None
    found = worker.grade(asked, part, "train")
    assert found.failures == (None,) * len(asked) and found.counts["prompt_tokens"] > 0


def test_a_row_that_cannot_be_read_fails_alone(tmp_path: Path, worker: GraderWorker, asked: list[Asked]) -> None:
    from pipeline.data.table import write_prompts

    row = {"prompt": [{"role": "user", "content": "<image>"}], "task": "", "answer": "1", "images": [{"bytes": b"GIF"}]}
    rows = [{**row, "id": "bad"}, {**row, "id": "good", "prompt": [{"role": "user", "content": "?"}], "images": []}]
    write_prompts(tmp_path / "train.parquet", rows)
    worker.recipe = load_recipe(None, [f"data.path={tmp_path}"])
    infos = [PromptInfo(name, "", "1", "1", ()) for name in ("bad", "good")]
    both = [Asked(info, RowKey(0, row), asked[0].completions * 2) for row, info in enumerate(infos)]
    found = worker.grade(both, _function("names", media="decoded"), "train")
    assert found.failures == (Failure.UNREADABLE_ROW, Failure.UNREADABLE_ROW, None, None)
    assert found.details[Failure.UNREADABLE_ROW].startswith("bad: ")


def test_what_cannot_be_loaded_is_said(worker: GraderWorker) -> None:
    assert "has no function nothing" in str(worker.load(_function("nothing")))


def test_further_columns_of_the_table_are_given_by_name(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = {"id": ["a", "b"], "prompt": [[{"role": "user", "content": "?"}]] * 2, "level": [3, None], "other": [1, 2]}
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    recipe: Recipe = load_recipe(None, [f"data.path={tmp_path}", "data.columns=[level, missing]"])
    worker = GraderWorker(recipe, recipe.rlhf.grader)
    source = "def levels(prompts, completions):\n    return [each.columns['level'] for each in prompts]\n"
    given = FunctionReward(path="/x/mine.py:levels")
    infos = [PromptInfo(name, "", None, None, ()) for name in ("a", "b")]
    completion = RewardCompletion("", np.arange(1), FinishReason.STOP)
    both = [Asked(info, RowKey(0, row), (completion,)) for row, info in enumerate(infos)]
    found = worker.grade(both, OutsidePart("levels", given, Code(given.path, source, ())), "train")
    assert found.values[0] == 3.0 and np.isnan(found.values[1]) and found.failures == (None, None)
