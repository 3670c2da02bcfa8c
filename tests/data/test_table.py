"""Reading and writing tables, the order of prompts, and the quarantine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.schema import PROMPT_SCHEMA, to_row
from pipeline.data.table import (
    ROWS_PER_GROUP,
    PreferenceTable,
    PromptTable,
    Quarantine,
    TooManyBadRows,
    check_bad_rows,
    info_of,
    write_preferences,
    write_prompts,
)
from pipeline.records import (
    MediaKind,
    Medium,
    Message,
    Opinion,
    Preference,
    Prompt,
    PromptInfo,
    Quarantined,
    Ranking,
    RaterKind,
    Rating,
)


def prompt(number: int) -> Prompt:
    kinds = [(), (MediaKind.IMAGE,), (MediaKind.VIDEO, MediaKind.AUDIO, MediaKind.VIDEO)][number % 3]
    return Prompt(
        id=f"row-{number}",
        task="task",
        messages=(Message("user", "".join(kind.tag for kind in kinds) + f"Question {number}?"),),
        media=tuple(Medium(kind, f"{number}/{place}".encode()) for place, kind in enumerate(kinds)),
        answer=str(number),
    )


PROMPTS = [prompt(number) for number in range(5 * ROWS_PER_GROUP + 3)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "train.parquet"
    rows: list[dict[str, Any]] = [to_row(prompt, [f"source of {prompt.id}"]) for prompt in PROMPTS]
    rows[4]["images"] = []
    assert write_prompts(path, iter(rows)) == len(PROMPTS)
    return path


def test_the_file_keeps_schema_and_metadata_and_has_small_row_groups(path: Path) -> None:
    file = pq.ParquetFile(path)
    assert file.schema_arrow.equals(PROMPT_SCHEMA)
    assert file.schema_arrow.metadata == PROMPT_SCHEMA.metadata
    assert file.num_row_groups == 6
    assert not list(path.parent.glob("*.partial"))


def test_infos_come_in_file_order_and_read_no_media(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = PromptTable(path)
    columns_read: list[str] = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, columns, **rest: columns_read.extend(columns) or read(self, group, columns, **rest),
    )
    infos = table.infos()
    assert len(table) == len(infos) == len(PROMPTS)
    assert [info.id for info in infos] == [prompt.id for prompt in PROMPTS]
    assert infos[0] == PromptInfo("row-0", "task", "0", "0", ())
    assert infos[5].modalities == (MediaKind.AUDIO, MediaKind.VIDEO)
    assert not {"images", "audios", "videos"} & set(columns_read)
    assert table.infos(40) == infos[:40]


def test_prompts_are_read_in_the_order_asked_for_from_the_groups_they_lie_in(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = PromptTable(path)
    groups: list[int] = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        # What has columns looks for ids.
        lambda self, group, columns, **rest: (
            (columns is None and groups.append(group)) or read(self, group, columns=columns, **rest)
        ),
    )
    assert table.read(["row-161", "row-2", "row-160", "row-2"]) == [PROMPTS[n] for n in (161, 2, 160, 2)]
    assert groups == [0, 5]


def test_a_bad_row_comes_back_as_quarantined_among_the_good_ones(path: Path) -> None:
    good, bad = PromptTable(path).read(["row-3", "row-4"])
    assert good == PROMPTS[3]
    assert bad == Quarantined("row-4", "placeholder_mismatch", "1 <image> in the messages, 0 files in images")


def test_the_tasks_of_a_table_are_known_without_its_rows(path: Path, tmp_path: Path) -> None:
    assert PromptTable(path).tasks() == {"task"}
    bare = pq.read_table(path).drop_columns(["task"])
    pq.write_table(bare, tmp_path / "bare.parquet")
    assert PromptTable(tmp_path / "bare.parquet").tasks() == {""}


def test_further_columns_are_the_tables_own_or_kept_of_some_source(path: Path, tmp_path: Path) -> None:
    bare = pq.read_table(path)
    kept = pa.array([None] * (len(bare) - 1) + ['{"level": 3, "task": null}'])
    bare = bare.drop_columns(["columns"]).append_column("columns", kept).append_column("rater", kept)
    pq.write_table(bare, tmp_path / "further.parquet", row_group_size=2)
    table = PromptTable(tmp_path / "further.parquet")
    assert table.further(["level", "levle", "rater"]) == {"level", "rater"}
    assert PromptTable(path).further(["level"]) == set()


def test_a_missing_table_names_the_cure_and_an_unknown_id_is_named(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"test\.parquet.*python -m jobs\.prepare"):
        PromptTable(tmp_path / "test.parquet")
    with pytest.raises(KeyError, match="'nobody'"):
        PromptTable(path).read(["row-1", "nobody"])


def test_two_rows_with_one_id_are_an_error(tmp_path: Path) -> None:
    write_prompts(tmp_path / "twice.parquet", [to_row(PROMPTS[0], []), to_row(PROMPTS[0], [])])
    table = PromptTable(tmp_path / "twice.parquet")
    for look_up in (table.infos, lambda: table.read(["row-0"])):
        with pytest.raises(ValueError, match="two rows have the id 'row-0'"):
            look_up()


def test_preferences_come_back_as_they_were(tmp_path: Path) -> None:
    preferences = [
        Preference("row-1", (1, 2), (3,), "yes", "no", "oracle", RaterKind.SCRIPTED, 0.05),
        Preference("row-2", (4,), (), "ja", "", "anna", RaterKind.HUMAN, margin=0.5),
        Preference("row-3", (5,), (6,), "a", "b", "anna", RaterKind.HUMAN, is_tie=True),
    ]
    write_preferences(tmp_path / "preferences.parquet", preferences)
    table = PreferenceTable(tmp_path / "preferences.parquet")
    assert (len(table), table.raters()) == (3, ["anna", "oracle"])
    assert list(table.prompt_ids()) == ["row-1", "row-2", "row-3"]
    assert table.read() == preferences
    assert table.read([1, 0, 1]) == [preferences[1], *preferences[:2]]
    with pytest.raises(FileNotFoundError, match=r"nothing\.parquet"):
        PreferenceTable(tmp_path / "nothing.parquet")


def test_rankings_and_ratings_stand_beside_comparisons_and_come_back_as_they_were(tmp_path: Path) -> None:
    shared: dict[str, Any] = {"rater": "anna", "rater_kind": RaterKind.HUMAN}
    opinions: list[Opinion] = [
        Ranking("row-1", ((1,), (2, 3), (4,)), ("a", "b", "c"), (2, 1, 2), **shared, weight=0.2),
        Preference("row-2", (5,), (6,), "a", "b", "anna", RaterKind.HUMAN, weight=0.5),
        Rating("row-3", (7, 8), "d", {"fluent": 0.75, "safe": 1.0}, **shared),
        Rating("row-4", (), "", {"overall": 0.0}, **shared, weight=2.0),
    ]
    write_preferences(tmp_path / "preferences.parquet", opinions)
    table = PreferenceTable(tmp_path / "preferences.parquet")
    assert table.read() == opinions and table.pairs() == [opinions[1]]
    assert table.criteria() == ["fluent", "overall", "safe"]
    assert list(table.prompt_ids()) == ["row-1", "row-2", "row-3", "row-4"]
    assert [each.num_observations for each in opinions] == [2, 1, 2, 1]
    assert [len(each.completions) for each in opinions] == [3, 2, 1, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ranking("row", ((1,),), ("a",), (1,), "anna", RaterKind.HUMAN), "1 completions.*at least two"),
        (lambda: Ranking("row", ((1,), (2,)), ("a", "b"), (1,), "anna", RaterKind.HUMAN), "2 texts and 1 ranks"),
        (lambda: Ranking("row", ((1,), (2,)), ("a", "b"), (0, 1), "anna", RaterKind.HUMAN), r"ranks=\[0, 1\].*from 1"),
        (lambda: Ranking("row", ((1,),) * 9, ("a",) * 9, (1,) * 9, "anna", RaterKind.HUMAN), "at most 8 may share"),
        (lambda: Rating("row", (1,), "a", {}, "anna", RaterKind.HUMAN), "says nothing"),
        (lambda: Rating("row", (1,), "a", {"safe": 4.0}, "anna", RaterKind.HUMAN), r"safe=4.0.*\(stars - 1\) / 4"),
        (lambda: Rating("row", (1,), "a", {"safe": float("nan")}, "anna", RaterKind.HUMAN), "from 0 to 1"),
        (lambda: Rating("row", (1,), "a", {"safe": 1}, "anna", RaterKind.HUMAN, weight=0.0), "weight=0.0.*positive"),
        (
            lambda: Preference("row", (1,), (2,), "a", "b", "anna", RaterKind.HUMAN, weight=float("inf")),
            "weight=inf.*finite",
        ),
    ],
)
def test_an_opinion_that_cannot_be_learned_is_an_error(make: Callable[[], Opinion], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_table_without_margins_and_ties_has_none(tmp_path: Path) -> None:
    preference = Preference("row-1", (1,), (2,), "yes", "no", "anna", RaterKind.HUMAN)
    write_preferences(tmp_path / "new.parquet", [preference])
    new = ["margin", "is_tie", "error_rate", "completions", "ratings", "weight"]
    old = pq.read_table(tmp_path / "new.parquet").drop_columns(new)
    pq.write_table(old, tmp_path / "old.parquet")
    table = PreferenceTable(tmp_path / "old.parquet")
    assert (table.read(), table.pairs(), table.criteria()) == ([preference], [preference], [])
    nulls = old.append_column("margin", [[None]]).append_column("is_tie", [[None]])
    pq.write_table(nulls, tmp_path / "nulls.parquet")
    assert PreferenceTable(tmp_path / "nulls.parquet").read() == [preference]


@pytest.mark.parametrize(
    ("margin", "is_tie", "message"), [(float("nan"), False, "margin=nan .*'row-1'.*finite"), (0.5, True, "tie.*use 0")]
)
def test_a_margin_that_cannot_be_learned_is_an_error(margin: float, is_tie: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preference("row-1", (1,), (2,), "a", "b", "anna", RaterKind.HUMAN, margin=margin, is_tie=is_tie)


def test_the_quarantine_counts_each_row_once_and_by_its_first_reason(tmp_path: Path) -> None:
    quarantine = Quarantine()
    quarantine.add(Quarantined("a", "too_long", "31 s"))
    quarantine.add(Quarantined("b", "corrupt_image", "cut"))
    quarantine.add(Quarantined("c", "corrupt_image", "cut"))
    quarantine.add(Quarantined("a", "corrupt_image", "later"))
    assert quarantine.counts() == {"corrupt_image": 2, "too_long": 1}
    assert len(quarantine) == 3
    assert "a" in quarantine
    quarantine.write(tmp_path / "quarantine.parquet")
    assert pq.read_table(tmp_path / "quarantine.parquet").column_names == ["row_id", "reason", "detail"]
    assert Quarantine.read(tmp_path / "quarantine.parquet").counts() == quarantine.counts()


def test_an_empty_quarantine_can_be_written_and_read(tmp_path: Path) -> None:
    Quarantine().write(tmp_path / "quarantine.parquet")
    assert len(Quarantine.read(tmp_path / "quarantine.parquet")) == 0


def test_a_job_stops_above_the_allowed_fraction_and_not_at_it() -> None:
    quarantine = Quarantine()
    quarantine.add(Quarantined("a", "too_long", "31 s"))
    quarantine.add(Quarantined("b", "too_long", "32 s"))
    quarantine.check(num_rows=100, max_bad_fraction=0.02)
    with pytest.raises(TooManyBadRows, match=r"2 of 100 rows.*2 too_long.*data\.max_bad_fraction is 0\.01"):
        quarantine.check(num_rows=100, max_bad_fraction=0.01)


@pytest.mark.parametrize("num_rows", [100, 1_000, 10_000])
@pytest.mark.parametrize("fraction", [0.01, 0.29, 0.57, 0.58])
def test_as_many_bad_rows_as_are_allowed_do_not_stop_a_job_and_one_more_does(fraction: float, num_rows: int) -> None:
    num_bad, first = round(fraction * num_rows), Quarantined("x", "unreadable", "")
    check_bad_rows({"unreadable": num_bad}, first, num_rows, fraction)
    with pytest.raises(TooManyBadRows):
        check_bad_rows({"unreadable": num_bad + 1}, first, num_rows, fraction)


def test_sft_learns_the_demonstration_and_the_answer_where_there_is_none(tmp_path: Path) -> None:
    def row(name: str, demonstration: str | None, answer: str | None = "7") -> dict[str, Any]:
        return to_row(Prompt(name, "task", (Message("user", "?"),), (), answer, demonstration), ())

    path = tmp_path / "train.parquet"
    rows = [
        row("given", "7 maybe"),
        row("empty", ""),
        row("none", None),
        row("alone", "7", None),
        row("no", None, None),
    ]
    write_prompts(path, rows)
    assert [info.demonstration for info in PromptTable(path).infos()] == ["7 maybe", "7", "7", "7", None]
    assert [info.is_demonstrated for info in PromptTable(path).infos()] == [True, False, False, True, False]
    prompts = [prompt for prompt in PromptTable(path).read(["given", "none"]) if isinstance(prompt, Prompt)]
    assert [info_of(prompt).is_demonstrated for prompt in prompts] == [True, False]
    assert [info.answer for info in PromptTable(path).infos()] == ["7", "7", "7", None, None]
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["demonstration"]), path)
    assert [info.demonstration for info in PromptTable(path).infos()] == ["7", "7", "7", None, None]
    pq.write_table(table.drop_columns(["answer"]), path)
    assert [info.answer for info in PromptTable(path).infos()] == [None] * 5
