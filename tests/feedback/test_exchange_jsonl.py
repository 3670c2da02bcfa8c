"""Our own lines of JSON: nothing is lost, and what is not ours is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.schema import RowError
from pipeline.feedback.exchange import jsonl
from pipeline.feedback.records import Candidate, Judged, Task
from tests.feedback.test_exchange import KIND, item, judged, pair, ranking, rating, with_media


def _all() -> list[Judged]:
    """Every field of the records holds something that is not its default, somewhere."""
    full = replace(
        with_media(Task.RANKING, "a", "b\u2028c"),
        candidates=(Candidate("a", (1, 2), 7, -0.1), Candidate("b\u2028c")),
        run="run",
        step=3,
        gold={"ranks": [1, 1]},
        uncertainty=1 / 3,
        num_raters=2,
    )
    ranked = judged(full, ranking(1, 2), (KIND.SKIP, {"reason": "Nein 🎈"}), (KIND.WITHDRAWAL, {}))
    first, second, third = ranked.judgements
    marked = replace(first, order=(1, 0), is_gold=True, is_repeat=True, page_version="1.2", rater=None, latency_s=None)
    return [
        Judged(full, (marked, second, replace(third, withdraws="key-a-0"))),
        judged(item(Task.RATING), rating({"größe": 5}, {"größe": 1})),
        judged(item(), pair(None), (KIND.REWARD, {"place": 0, "value": 0.1 + 0.2})),
        Judged(item(Task.PAIR, "never", "judged")),
    ]


def test_what_is_written_is_read_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "judged.jsonl"
    assert jsonl.write(path, _all()) == 4
    assert list(jsonl.read(path)) == _all()
    assert len(path.read_bytes().splitlines()) == 4
    assert "🎈" in path.read_text(encoding="utf-8"), "people can read it"


def _broken(tmp_path: Path, change: Any) -> RowError:
    path = tmp_path / "judged.jsonl"
    jsonl.write(path, _all())
    lines = path.read_text(encoding="utf-8").split("\n")
    row = json.loads(lines[1])
    change(row)
    path.write_text("\n".join([lines[0], json.dumps(row)]), encoding="utf-8")
    with pytest.raises(RowError) as caught:
        list(jsonl.read(path))
    return caught.value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row["item"].pop("messages"), "item.messages="),
        (lambda row: row["item"].update(task="essay"), "item.task='essay'"),
        (lambda row: row["item"].update(num_raters="3"), "item.num_raters='3'"),
        (lambda row: row["judgements"][0].update(mood=1), "judgements.0.mood='1': no such field"),
        (lambda row: row["item"]["candidates"][1].update(name="b"), "item.candidates.1.name='b': no such field"),
    ],
    ids=["missing", "unknown word", "wrong type", "unknown field", "unknown field inside"],
)
def test_a_line_that_is_not_ours_is_refused_with_file_line_field_and_value(
    tmp_path: Path, change: Any, message: str
) -> None:
    error = _broken(tmp_path, change)
    assert message in str(error)
    assert f"{tmp_path / 'judged.jsonl'}, line 2" in str(error)


def test_a_line_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "judged.jsonl"
    path.write_text('{"item": ', encoding="utf-8")
    with pytest.raises(RowError, match="line 1: the line="):
        list(jsonl.read(path))


def test_a_number_that_json_does_not_have_is_refused_and_not_written_as_null(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finite"):
        jsonl.write(tmp_path / "judged.jsonl", [Judged(replace(item(), uncertainty=float("nan")))])
