"""Parity: every cause by its name, every row and modality in the table, and nothing that is not a number passes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.models.batch import collate_prompts
from pipeline.parity import ComparedRow, ParityReport, Sight, compare, sights
from pipeline.records import EncodedPrompt, MediaKind, MediumTensors

SIGHT = Sight(np.array([5, 6, 7]), np.array([[0, 1, 2], [0, 1, 1], [0, 0, 0]]), (2,))


def _row(
    trainer: list[float],
    *,
    sight: Sight = SIGHT,
    name: str = "row",
    modalities: tuple[MediaKind, ...] = (MediaKind.IMAGE,),
) -> ComparedRow:
    """A row that the rollout judged with -1 and -2, as the trainer saw and judged it."""
    logprobs = {"rollout": np.array([-1.0, -2.0], np.float32), "trainer": np.array(trainer, np.float32)}
    return ComparedRow(name, modalities, {"rollout": SIGHT, "trainer": sight}, logprobs)


def _cause(row: ComparedRow) -> tuple[str, str]:
    (difference,) = compare([row], tolerance=1e-3).differences
    return difference.cause, difference.detail


def test_copies_that_agree_leave_no_difference_and_statistics_by_modality() -> None:
    both = (MediaKind.IMAGE, MediaKind.AUDIO)
    report = compare(
        [_row([-1.5, -2.0]), _row([-1.0, -2.25], modalities=both), _row([-1.0, -2.0], modalities=())], tolerance=0.5
    )
    assert report.differences == ()
    assert report.by_modality == {"image": (0.25, 0.5), "image+audio": (0.125, 0.25), "text": (0.0, 0.0)}


def test_rows_of_one_modality_are_put_together() -> None:
    report = compare([_row([-1.5, -2.0], name="a"), _row([-1.0, -2.0], name="b")], tolerance=1.0)
    assert report.by_modality == {"image": (0.125, 0.5)}


@pytest.mark.parametrize(
    ("sight", "cause", "detail"),
    [
        (replace(SIGHT, input_ids=np.array([5, 6, 8])), "token ids", "3 and 3 tokens, unequal"),
        (replace(SIGHT, input_ids=np.array([5, 6])), "token ids", "3 and 2 tokens, unequal"),
        (replace(SIGHT, feature_lengths=(1, 1)), "feature lengths", "[2] and [1, 1]"),
        (
            replace(SIGHT, position_ids=np.array([[0, 1, 2], [0, 1, 2], [0, 0, 0]])),
            "positions",
            "from token 2 on",
        ),
    ],
)
@pytest.mark.parametrize("trainer", [[-1.0, -2.0], [-3.0, -4.0]])
def test_unequal_inputs_are_the_cause_whatever_the_logprobs_are(
    sight: Sight, cause: str, detail: str, trainer: list[float]
) -> None:
    assert _cause(_row(trainer, sight=sight)) == (cause, f"rollout and trainer: {detail}")


def test_equal_inputs_and_unequal_logprobs_are_told_with_mean_and_largest() -> None:
    cause, detail = _cause(_row([-1.0, -2.5]))
    assert cause == "logprobs"
    assert detail == "rollout and trainer: mean 2.50e-01, max 5.00e-01 over 2 tokens > 0.001"


def test_the_mean_of_a_row_decides_not_its_largest_token() -> None:
    assert compare([_row([-1.0, -2.5])], tolerance=0.25).differences == ()


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_a_number_is_no_agreement(broken: float) -> None:
    report = compare([_row([broken, -2.0])], tolerance=100.0)
    assert [each.cause for each in report.differences] == ["logprobs"]


def test_positions_of_another_number_of_axes_differ_from_the_first_token_on() -> None:
    assert _cause(_row([-1.0, -2.0], sight=replace(SIGHT, position_ids=np.zeros((1, 3), np.int64)))) == (
        "positions",
        "rollout and trainer: 3 and 1 axes",
    )


def test_a_copy_without_sight_is_compared_by_logprobs_alone() -> None:
    logprobs = {name: np.array([-1.0], np.float32) for name in ("rollout", "trainer")}
    row = ComparedRow("row", (), {"rollout": SIGHT, "trainer": SIGHT}, logprobs | {"stock": np.array([-4.0])})
    assert _cause(row) == ("logprobs", "rollout and stock: mean 3.00e+00, max 3.00e+00 over 1 tokens > 0.001")


def test_every_copy_that_differs_is_told() -> None:
    row = _row([-9.0, -9.0])
    row = replace(row, logprobs={**row.logprobs, "stock": np.array([-8.0, -8.0], np.float32)})
    found = [each.detail.partition(":")[0] for each in compare([row], tolerance=1e-3).differences]
    assert found == ["rollout and trainer", "rollout and stock"]


def test_the_table_names_row_modality_and_cause() -> None:
    report = compare([_row([-1.0, -2.0], name="fine", modalities=()), _row([-1.0, -2.5], name="cat-7")], tolerance=1e-3)
    assert report.table().splitlines() == [
        "modality                mean |d logprob|         max",
        "image                           2.50e-01    5.00e-01",
        "text                            0.00e+00    0.00e+00",
        "",
        "row                         modality              cause             detail",
        "cat-7                       image                 logprobs          "
        "rollout and trainer: mean 2.50e-01, max 5.00e-01 over 2 tokens > 0.001",
    ]


def test_a_report_without_differences_is_one_table() -> None:
    assert ParityReport({"text": (1e-6, 2e-6)}, ()).table().splitlines() == [
        "modality                mean |d logprob|         max",
        "text                            1.00e-06    2.00e-06",
    ]


def test_a_sight_is_read_back_from_the_batch_without_its_padding() -> None:
    medium = MediumTensors(MediaKind.AUDIO, "key", 3, {})
    prompts = [
        EncodedPrompt("long", np.arange(4), np.arange(12).reshape(3, 4), (np.zeros((2, 8), np.float32), medium)),
        EncodedPrompt("short", np.array([9]), np.array([[4], [5], [6]]), ()),
    ]
    long, short = sights(prompts, collate_prompts(prompts, pad_id=0))
    assert (long.feature_lengths, short.feature_lengths) == ((2, 3), ())
    for sight, prompt in ((long, prompts[0]), (short, prompts[1])):
        assert np.array_equal(sight.input_ids, prompt.input_ids)
        assert np.array_equal(sight.position_ids, prompt.position_ids)


def test_a_sight_tells_what_is_in_the_batch_not_what_was_meant_to_be() -> None:
    prompts = [EncodedPrompt("one", np.array([1, 2]), np.array([[0, 1]]), ())]
    batch = collate_prompts(prompts, pad_id=0)
    shifted = replace(batch, position_ids=torch.full_like(batch.position_ids, 7))
    assert sights(prompts, shifted)[0].position_ids.tolist() == [[7, 7]]
