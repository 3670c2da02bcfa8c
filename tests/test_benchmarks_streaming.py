"""The streaming benchmark on a small table: every row is read, and every point is noted."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.streaming import NUM_POINTS, Point, markdown, rows_of, stream
from pipeline.data.schema import from_row
from pipeline.data.table import write_prompts


@pytest.mark.usefixtures("local_ray")
def test_all_rows_are_read_and_memory_is_noted_on_the_way(tmp_path: Path) -> None:
    write_prompts(tmp_path / "train.parquet", rows_of(600, seed=0))
    points = stream(tmp_path, num_rows=600, shuffle_rows=256, num_readers=2)
    assert [point.rows for point in points] == [60 * (part + 1) for part in range(NUM_POINTS)]
    assert all(point.driver_mib > 0 and point.rows_per_s > 0 for point in points)


def test_every_row_holds_a_picture_of_its_own() -> None:
    prompts = [from_row(row) for row in rows_of(20, seed=1)]
    assert len({prompt.media[0].data for prompt in prompts}) == len({prompt.id for prompt in prompts}) == 20


def test_the_table_has_a_line_a_point() -> None:
    assert markdown([Point(1000, 512.4, 7.81, 2500.0)]).splitlines()[-1] == "| 1,000 | 512 | 7.8 | 2500 |"
