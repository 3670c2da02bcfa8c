"""Versions of a reward model, and when it learns again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pipeline.config import load_recipe
from pipeline.config.feedback import Refit
from pipeline.feedback.preferences import HumanOpinion, foreseen, reason_to_refit
from pipeline.feedback.versions import HEAD_FILE, RewardVersion, RewardVersions, Trigger
from pipeline.models import checkpoint
from pipeline.records import Preference, RaterKind

FIRST = RewardVersion(
    number=1,
    source=0,
    trigger=Trigger.COUNT,
    fitted_at=100.0,
    until=90.0,
    num_judgements=40,
    held_out={"num": 8, "accuracy": 0.9, "brier": 0.1},
    held_out_before={"num": 8, "accuracy": 0.5, "brier": 0.25},
    is_accepted=True,
)


def versions_in(directory: Path, *options: str) -> RewardVersions:
    return RewardVersions(load_recipe(None, [f"run.directory={directory}", *options]))


def fitted(versions: RewardVersions, number: int, *, is_accepted: bool = True) -> None:
    versions.path(number).mkdir(parents=True)
    versions.add(dataclasses.replace(FIRST, number=number, is_accepted=is_accepted))


def said(judged_at: float, foreseen: float | None = None) -> HumanOpinion:
    preference = Preference("p", (1,), (2,), "good", "bad", "ada", RaterKind.HUMAN)
    return HumanOpinion(preference, judged_at, foreseen)


def test_the_last_accepted_version_judges_and_what_it_was_is_kept(tmp_path: Path) -> None:
    versions = versions_in(tmp_path)
    assert versions.current == 0 and versions.all() == []
    assert versions.path(0) == tmp_path / "checkpoints" / "reward_model"
    fitted(versions, 1)
    fitted(versions, 2, is_accepted=False)
    again = versions_in(tmp_path)
    assert again.current == 1
    assert again.all() == [FIRST, dataclasses.replace(FIRST, number=2, is_accepted=False)]
    assert again.path(1).is_dir() and not again.path(2).exists()


def test_few_versions_are_kept_and_the_one_that_judges_is_always_among_them(tmp_path: Path) -> None:
    versions = versions_in(tmp_path, "feedback.refit.keep_last=2")
    for number in (1, 2, 3):
        fitted(versions, number)
    assert [versions.path(number).is_dir() for number in (1, 2, 3)] == [False, True, True]
    versions.roll_back(2)
    fitted(versions, 4, is_accepted=False)
    fitted(versions, 5, is_accepted=False)
    assert versions.current == 2
    assert [versions.path(number).is_dir() for number in (2, 3, 4, 5)] == [True, True, False, False]


def test_one_rolls_back_to_what_is_there_alone(tmp_path: Path) -> None:
    versions = versions_in(tmp_path)
    fitted(versions, 1)
    fitted(versions, 2, is_accepted=False)
    versions.roll_back(0)
    assert versions.current == 0
    with pytest.raises(ValueError, match="version 2: the reward models that are kept are 0, 1"):
        versions.roll_back(2)


def test_a_step_that_is_made_again_is_judged_by_the_version_that_judged_it(tmp_path: Path) -> None:
    versions = versions_in(tmp_path)
    for step in (0, 1):
        versions.note(step, versions.at(step))
    fitted(versions, 1)
    for step in (2, 3):
        versions.note(step, versions.at(step))
    fitted(versions, 2)
    # A policy was lost: the run goes on from step 1.
    assert [versions.at(step) for step in range(5)] == [0, 0, 1, 1, 2]
    for step in (1, 2, 3):
        versions.note(step, versions.at(step))
    assert [versions.at(step) for step in range(5)] == [0, 0, 1, 1, 2]
    versions.forget_steps()
    assert versions.at(1) == 2


def test_a_step_whose_version_is_not_kept_any_more_is_judged_by_the_current_one(tmp_path: Path) -> None:
    versions = versions_in(tmp_path, "feedback.refit.keep_last=1")
    fitted(versions, 1)
    versions.note(0, 1)
    fitted(versions, 2)
    assert versions.at(0) == 2


def test_versions_begin_again_with_another_reward_model(tmp_path: Path) -> None:
    assert HEAD_FILE == checkpoint.HEAD_FILE
    base = tmp_path / "checkpoints" / "reward_model"
    base.mkdir(parents=True)
    (base / HEAD_FILE).write_bytes(b"one")
    fitted(versions_in(tmp_path), 1)
    (base / HEAD_FILE).write_bytes(b"other")
    assert versions_in(tmp_path).current == 0
    (base / HEAD_FILE).write_bytes(b"one")
    assert versions_in(tmp_path).current == 1


def test_who_looks_before_there_is_a_reward_model_sees_what_is_learned_later(tmp_path: Path) -> None:
    page = versions_in(tmp_path)
    assert page.all() == []
    (tmp_path / "checkpoints" / "reward_model").mkdir(parents=True)
    (tmp_path / "checkpoints" / "reward_model" / HEAD_FILE).write_bytes(b"head")
    fitted(versions_in(tmp_path), 1)
    assert page.all() == [FIRST]


def test_a_refit_that_came_to_nothing_is_counted_and_changes_nothing(tmp_path: Path) -> None:
    versions = versions_in(tmp_path)
    fitted(versions, 1)
    versions.failed(OSError("no room"))
    assert (versions.num_failed, versions.current, len(versions.all())) == (1, 1, 1)
    fitted(versions, 2)
    assert (versions.num_failed, versions.current) == (1, 2)


SETTINGS = Refit(after_judgements=10, least_judgements=4, after_s=60.0, drift=0.2)


@pytest.mark.parametrize(
    ("num", "now", "reason"),
    [(9, 1059.0, None), (10, 1059.0, Trigger.COUNT), (4, 1060.0, Trigger.TIME), (3, 1060.0, None), (0, 9e9, None)],
)
def test_enough_comparisons_are_reason_to_learn_and_fewer_after_some_time(
    num: int, now: float, reason: Trigger | None
) -> None:
    preferences = [said(1000.0 + number) for number in range(num)]
    assert reason_to_refit(preferences, None, SETTINGS, since=1000.0, now=now) is reason


def test_only_comparisons_since_the_last_refit_count() -> None:
    preferences = [said(90.0)] * 30 + [said(91.0)] * 9
    assert reason_to_refit(preferences, FIRST, SETTINGS, since=100.0, now=101.0) is None
    assert reason_to_refit([*preferences, said(92.0)], FIRST, SETTINGS, since=100.0, now=101.0) is Trigger.COUNT


@pytest.mark.parametrize(("num_right", "reason"), [(3, Trigger.DRIFT), (4, None)])
def test_a_model_that_is_less_often_right_than_it_was_learns_again(num_right: int, reason: Trigger | None) -> None:
    # 0.9 on held-out comparisons; 3 of 5 on new ones are .3 less, 4 of 5 are .1 less.
    new = [said(91.0, foreseen=number < num_right) for number in range(5)]
    assert reason_to_refit(new, FIRST, SETTINGS, since=100.0, now=101.0) is reason


def test_ties_and_completions_without_a_score_do_not_say_how_often_a_model_is_right() -> None:
    assert foreseen([said(1.0, True), said(1.0, False), said(1.0, True), said(1.0)]) == {"num": 3, "accuracy": 2 / 3}
    assert foreseen([said(1.0)]) is None
