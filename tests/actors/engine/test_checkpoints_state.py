"""What an engine saves, another one goes on from: real DeepSpeed worlds of one and two ranks at every ZeRO stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.engine.files import Folder
from pipeline.config import Dtype
from tests import worlds
from tests.worlds import learning

STAGES = (0, 1, 2, 3)
SIZES = (1, 2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], tuple[Path, Any]]:
    """For every number of ranks and ZeRO stage where its checkpoints are, and what `learning.written` says of them."""
    found: dict[tuple[int, int], tuple[Path, Any]] = {}
    for size in SIZES:
        root = tmp_path_factory.mktemp(f"ranks-{size}")
        results = worlds.run(learning.written_at_all_stages, size, str(root), STAGES, Dtype.FLOAT32)
        found.update({(size, stage): (root / str(stage), results[0][stage]) for stage in STAGES})
    return found


def _read(root: Path, moment: str, names: list[str]) -> dict[str, bytes]:
    return learning.contents(Folder(str(root)) / moment, names)


def _names(size: int) -> list[str]:
    return [f"rank-{rank:05d}-000.safetensors" for rank in range(size)]


def test_a_checkpoint_holds_what_trains_by_name_and_shape(saved: dict[tuple[int, int], tuple[Path, Any]]) -> None:
    from actors.engine.state import TensorFiles

    for (size, stage), (root, (names, schedule, _)) in saved.items():
        assert names == _names(size)
        files = TensorFiles(Folder(str(root)) / "half", names)
        trained = {name for name in files if not name.startswith("rng/")}
        pieces = ("weight", "exp_avg", "exp_avg_sq", "step")
        assert trained == {f"{name}/{piece}" for name in ("first", "scale", "second") for piece in pieces}
        assert files.shape("first/exp_avg") == (5, 7) and files.shape("scale/weight") == (1,)
        assert float(files.read("second/step")) == learning.NUM_STEPS == schedule["last_epoch"]
        assert {name for name in files} - trained == {f"rng/cpu/{rank}" for rank in range(size)}, stage


def test_no_rank_writes_what_another_has_written(saved: dict[tuple[int, int], tuple[Path, Any]]) -> None:
    for stage in STAGES:
        root, (names, _, _) = saved[2, stage]
        first, second = (_read(root, "half", [name]) for name in names)
        assert first and second and not first.keys() & second.keys()


def test_torch_reads_the_files_without_polyphony(saved: dict[tuple[int, int], tuple[Path, Any]]) -> None:
    from safetensors.torch import load_file

    root, (names, _, _) = saved[1, 0]
    tensors = load_file(root / "half" / names[0])
    assert tensors["first/weight"].numpy().tobytes() == _read(root, "half", names)["first/weight"]


@pytest.mark.parametrize("size", SIZES)
def test_any_number_of_ranks_at_any_stage_goes_on_from_any_other(
    saved: dict[tuple[int, int], tuple[Path, Any]], tmp_path: Path, size: int
) -> None:
    jobs = {
        (written, stage): (str(root), names, schedule, stage, Dtype.FLOAT32, f"{tmp_path}/{written}-{stage}")
        for written, (root, (names, schedule, _)) in saved.items()
        for stage in STAGES
    }
    results = worlds.run(learning.resumed_from_all, size, list(jobs.values()))
    for (written, stage), (random, rate) in zip(jobs, results[0], strict=True):
        root, (names, schedule, expected_random) = saved[written]
        again = tmp_path / f"{written}-{stage}"
        # What was loaded is what was saved, to the bit; rank 0 goes on with its random numbers and the schedule.
        assert _read(again, "half", _names(size)) == _read(root, "half", names), (written, size, stage)
        assert (random, rate) == (expected_random, schedule["_last_lr"][0])
        expected, found = _read(root, "whole", names), _read(again, "whole", _names(size))
        if written == (size, stage):
            assert found == expected, written
        for name, content in expected.items():
            one, two = (np.frombuffer(each, np.float32) for each in (content, found[name]))
            np.testing.assert_allclose(two, one, atol=1e-6, rtol=0, err_msg=f"{name} {written} {size} {stage}")


def test_bfloat16_keeps_its_float32_masters_across_stages(tmp_path: Path) -> None:
    results = worlds.run(learning.written_at_all_stages, 2, f"{tmp_path}/saved", (0, 1, 3), Dtype.BFLOAT16)[0]
    jobs = {
        (written, stage): (
            f"{tmp_path}/saved/{written}", *results[written][:2], stage, Dtype.BFLOAT16, f"{tmp_path}/{written}-{stage}"
        )
        for written in results
        for stage in (0, 1, 3)
    }  # fmt: skip
    worlds.run(learning.resumed_from_all, 2, list(jobs.values()))
    for written, stage in jobs:
        root, again = tmp_path / "saved" / str(written), tmp_path / f"{written}-{stage}"
        assert _read(again, "half", _names(2)) == _read(root, "half", _names(2)), (written, stage)
        if written == stage:
            assert _read(again, "whole", _names(2)) == _read(root, "whole", _names(2)), written
    masters = np.frombuffer(_read(tmp_path / "saved" / "3", "half", _names(2))["first/weight"], np.uint32)
    # Finer than bfloat16, whose lower 16 bits are zero.
    assert (masters & 0xFFFF).any()


def test_groups_that_start_at_different_rates_go_on_at_theirs(tmp_path: Path) -> None:
    for stage, (before, after) in worlds.run(learning.two_groups, 2, str(tmp_path), STAGES)[0].items():
        # Five of nine decay steps from 0.05 and 0.01, as the schedule goes.
        assert after == before and before[0] == pytest.approx(5 * before[1]), stage


def test_a_model_with_other_parameters_is_refused_by_name_with_the_cure(tmp_path: Path) -> None:
    lacking, holding, shaped = worlds.run(learning.refusals, 1, str(tmp_path))[0]
    assert "it lacks parameters that train now: frozen; freeze what was frozen when it was written" in lacking
    assert "it holds parameters that do not train now: second; train what trained when it was written" in holding
    assert "second has shape [7, 3] there and [7, 4] in the model" in shaped
    assert all(message.startswith(str(tmp_path)) for message in (lacking, holding, shaped))


def test_parts_with_different_step_counts_cannot_share_a_zero_group(tmp_path: Path) -> None:
    message, plain = worlds.run(learning.uneven_steps, 1, str(tmp_path))[0]
    assert (
        message.startswith("scale took 1 optimizer steps and first 3, but they share a group")
        and "resume at zero_stage=0" in message
    )
    assert plain == {"first": 3.0, "scale": 1.0, "second": 3.0}


def test_a_large_share_is_written_in_several_files(tmp_path: Path) -> None:
    names, equal = worlds.run(learning.small_files, 1, str(tmp_path))[0]
    assert len(names) > 2 and equal
