"""Rows put aside come back by their places, in any order, however large they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.data.ingest import parts, staging
from pipeline.data.ingest.staging import Staged, StagingFile
from pipeline.data.schema import STAGED_SCHEMA


def row(id: int, num_bytes: int) -> dict[str, Any]:
    picture = {"bytes": bytes(num_bytes), "path": None}
    return {**dict.fromkeys(STAGED_SCHEMA.names), "id": str(id), "images": [picture], "audios": [], "videos": []}


@pytest.mark.parametrize("num_bytes", [10, 300, 1000])
def test_any_row_is_found_by_the_place_that_it_was_given(
    num_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_BATCH_BYTES", 1000)
    places: list[tuple[int, int]] = []
    for shard in range(3):
        with StagingFile(tmp_path, shard) as file:
            places += [(shard, file.add(row(100 * shard + number, num_bytes))) for number in range(40)]
    assert len(set(places)) == 120
    wanted = [119, 0, 39, 40, 41, 40, 85]
    found = Staged(tmp_path).rows([places[each][0] for each in wanted], [places[each][1] for each in wanted])
    assert found["id"].to_pylist() == [str(100 * (each // 40) + each % 40) for each in wanted]


def test_a_place_with_another_row_than_was_decided_about_stops_the_writing(tmp_path: Path) -> None:
    with StagingFile(tmp_path, 0) as file:
        places = [(0, file.add(row(number, 1)), str(number)) for number in range(3)]
    parts.write_plan(tmp_path / "right.parquet", places)
    (table,) = parts.planned(tmp_path / "right.parquet", Staged(tmp_path))
    assert table["id"].to_pylist() == ["0", "1", "2"]
    parts.write_plan(tmp_path / "numbered.parquet", [(0, 1, "1-2")])
    (table,) = parts.planned(tmp_path / "numbered.parquet", Staged(tmp_path))
    assert table["id"].to_pylist() == ["1-2"], "the id that was decided on"
    parts.write_plan(tmp_path / "wrong.parquet", [(0, 0, "1")])
    with pytest.raises(RuntimeError, match=r"wrong\.parquet: a shard that was prepared twice gave other rows"):
        list(parts.planned(tmp_path / "wrong.parquet", Staged(tmp_path)))


def test_a_file_made_again_begins_anew(tmp_path: Path) -> None:
    for id in (1, 2):
        with StagingFile(tmp_path, 0) as file:
            place = file.add(row(id, 1))
    assert Staged(tmp_path).rows([0], [place])["id"].to_pylist() == ["2"]
