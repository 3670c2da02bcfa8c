"""Rows that kill their encoder, stages that begin again, and what is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from actors.fleet.answer import Answer
from actors.fleet.failures import FEATURES, InputsLost, KillsWorkers, TooManyRecoveries, TrainingLost, WorldLost
from actors.fleet.recoveries import Recoveries, read_losses
from actors.loop.crew import Crew, Encoding, _Share, check_there  # pyright: ignore[reportPrivateUsage]
from actors.roles.encoder import PromptRef
from pipeline.config import load_recipe
from pipeline.data.datasets import RowKey, RowRef
from pipeline.records import Quarantined
from tests.actors.at_once import AtOnce
from tests.prompts import prompt_ref


def failed(error: Exception) -> Answer[Any]:
    """What was asked for, and ended in an error."""
    answer = AtOnce().answer([None])
    (call,) = answer.calls
    lost: Any = type(call)()
    lost.set_exception(error)
    return Answer(answer.asked, [lost])


def test_a_row_that_kills_its_encoder_alone_is_refused_and_the_others_of_its_share_are_processed() -> None:
    keys = [RowKey(0, number) for number in range(3)]
    asked: list[list[int]] = []

    def encode(seat: int, rows: list[RowRef]) -> Answer[Any]:
        asked.append([row.key.row for row in rows])
        if RowKey(0, 1) in [row.key for row in rows]:
            return failed(KillsWorkers("encoder: 4 workers died of encode"))
        return AtOnce().answer([[prompt_ref(str(row.key.row)) for row in rows]])

    share = _Share(0, [RowRef(key) for key in keys], encode, Recoveries(max_an_hour=0))
    found = Encoding(keys, [share]).result()
    assert asked == [[0, 1, 2], [0], [1], [2]]
    assert [each.id for each in found if isinstance(each, PromptRef)] == ["0", "2"]
    assert found[1] == Quarantined("row 1", "kills_worker", "encoder: 4 workers died of encode")


def test_rows_that_have_left_the_object_store_are_read_from_the_tables_once(tmp_path: Path) -> None:
    keys, block = [RowKey(0, number) for number in range(2)], cast(Any, object())
    asked: list[list[Any]] = []

    def encode(seat: int, rows: list[RowRef]) -> Answer[Any]:
        asked.append([row.block for row in rows])
        if len(asked) == 1 or is_lost_for_good:
            return failed(InputsLost(FEATURES, "encoder cannot read them"))
        return AtOnce().answer([[prompt_ref(str(row.key.row)) for row in rows]])

    recoveries, is_lost_for_good = Recoveries(max_an_hour=9, directory=tmp_path), False
    share = _Share(0, [RowRef(key, block) for key in keys], encode, recoveries)
    assert [each.id for each in Encoding(keys, [share]).result() if isinstance(each, PromptRef)] == ["0", "1"]
    assert asked == [[block, block], [None, None]]
    (loss,) = read_losses(tmp_path)
    assert (loss["role"], loss["cause"], loss["kind"]) == ("rows", "encoder cannot read them", "inputs_lost")
    assert loss["seconds"] is not None
    is_lost_for_good = True
    with pytest.raises(InputsLost):
        _Share(0, [RowRef(key, block) for key in keys], encode, recoveries).result()
    assert asked[2:] == [[block, block], [None, None]]


class World:
    """Counts how often it is started again."""

    def __init__(self) -> None:
        self.num_starts = 0

    def restart(self) -> None:
        self.num_starts += 1


def test_a_stage_begins_again_until_nothing_is_lost_and_a_world_that_was_is_started_again(tmp_path: Path) -> None:
    crew, worlds = Crew(load_recipe(None, [f"run.directory={tmp_path}"])), {"reward": World(), "reference": World()}
    crew._fleets |= cast(Any, worlds)  # pyright: ignore[reportPrivateUsage]
    losses = [WorldLost("reward", "rank 1 died"), InputsLost(FEATURES, "gone"), TrainingLost("sft", "rank 0: hung")]

    def attempt() -> str:
        if losses:
            raise losses.pop(0)
        return "found"

    assert crew.insist("evaluate", attempt) == "found"
    assert {role: world.num_starts for role, world in worlds.items()} == {"reward": 1, "reference": 0}
    found = read_losses(tmp_path)
    assert [(loss["role"], loss["stage"]) for loss in found] == [
        ("reward", "evaluate"),
        ("features", "evaluate"),
        ("sft", "evaluate"),
    ]
    assert all(loss["seconds"] is not None for loss in found)


def test_a_stage_that_loses_something_again_and_again_ends(tmp_path: Path) -> None:
    crew = Crew(load_recipe(None, [f"run.directory={tmp_path}", "cluster.max_recoveries_an_hour=2"]))

    def attempt() -> None:
        raise TrainingLost("sft", "rank 0: out of memory")

    with pytest.raises(TooManyRecoveries, match="3 x sft: rank 0: out of memory"):
        crew.insist("sft", attempt)


def test_losses_of_a_stage_are_forgotten_when_it_begins_anew_and_stay_told_when_it_goes_on(tmp_path: Path) -> None:
    for stage in ("sft", "rlhf"):
        losses = Recoveries(max_an_hour=5, directory=tmp_path)
        losses.enter(stage)
        losses.begin(stage, "died").done(steps=2)
    Recoveries(max_an_hour=5, directory=tmp_path).enter("rlhf", goes_on=True)
    assert [(loss["stage"], loss["steps"]) for loss in read_losses(tmp_path)] == [("sft", 2), ("rlhf", 2)]
    Recoveries(max_an_hour=5, directory=tmp_path).enter("sft")
    assert [loss["stage"] for loss in read_losses(tmp_path)] == ["rlhf"]


@pytest.mark.parametrize(
    ("overrides", "stage", "told"),
    [
        (["model.path=/m/Qwen/Qwen2.5-VL-3B-Instruct"], "base", "model.path=/m/Qwen/Qwen2.5-VL-3B-Instruct: no checkp"),
        (["distill.student=/m/small"], "/m/small", "distill.student=/m/small: no checkpoint here"),
        (["rlhf.reference.checkpoint=/m/t"], "/m/t", "rlhf.reference.checkpoint=/m/t: no checkpoint here"),
        ([], "base", "rollout: no checkpoint in RUN/checkpoints/base; run `python -m jobs.prepare` first"),
        ([], "distilled", "rollout: no checkpoint in RUN/checkpoints/distilled; run `python -m jobs.distill` first"),
        ([], "sfft", "rollout: no checkpoint in RUN/checkpoints/sfft; those of stages are base, sft, reward_model, "),
    ],
)
def test_a_checkpoint_that_is_missing_is_told_with_who_writes_it_or_which_field_names_it(
    tmp_path: Path, overrides: list[str], stage: str, told: str
) -> None:
    recipe = load_recipe(None, [f"run.directory={tmp_path}", *overrides])
    with pytest.raises(FileNotFoundError) as caught:
        check_there(recipe, {"rollout": recipe.checkpoint(stage)})
    message = str(caught.value)
    assert message.startswith(told.replace("RUN", str(tmp_path)))
    assert ("`hf download NAME --local-dir DIRECTORY`" in message) == bool(overrides)
