"""What an evaluation while training measures, and when a run ends by it: golden values by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.config import Rlhf, Validation
from pipeline.evaluation.validation import EndReason, Progress, chosen, end_of, measured
from pipeline.records import Completion, FinishReason, PromptInfo, Rollout

METRIC = "validation/greedy_exact_match"


def _info(id: str, task: str, answer: str | None = "7") -> PromptInfo:
    return PromptInfo(id, task, answer, demonstration=answer, modalities=())


def _rollout(id: str, *texts: str) -> Rollout:
    none = np.zeros(1, np.float32)
    return Rollout(id, tuple(Completion(np.array([1]), none, FinishReason.STOP, 0, text) for text in texts))


def test_samples_are_averaged_within_a_prompt_and_prompts_over_tasks() -> None:
    infos = [_info("a", "digit"), _info("b", "speech"), _info("c", "digit")]
    sampled = [
        _rollout("a", "7", "7 for sure", "3", "3"),  # exact 1/4, contains 2/4, any
        _rollout("b", "3", "3", "3", "3"),  # nothing
        _rollout("c", "7", "7", "7", "77"),  # exact 3/4, contains 3/4, any
    ]
    greedy = [_rollout("a", "7 for sure"), _rollout("b", "3"), _rollout("c", "7")]
    assert measured(infos, sampled=sampled, greedy=greedy) == {
        "validation/exact_match": pytest.approx(1 / 3),
        "validation/contains": pytest.approx(1.25 / 3),
        "validation/any_of_k": pytest.approx(2 / 3),
        "validation/greedy_exact_match": pytest.approx(1 / 3),
        "validation/greedy_contains": pytest.approx(2 / 3),
        "validation/digit/exact_match": 0.5,
        "validation/digit/contains": 0.625,
        "validation/digit/greedy_exact_match": 0.5,
        "validation/speech/exact_match": 0.0,
        "validation/speech/contains": 0.0,
        "validation/speech/greedy_exact_match": 0.0,
    }


def test_tasks_without_a_name_are_measured_as_a_whole_and_answers_must_be_there() -> None:
    one = {"sampled": [_rollout("a", "7")], "greedy": [_rollout("a", "7")]}
    assert all(name.count("/") == 1 and value == 1 for name, value in measured([_info("a", "")], **one).items())
    with pytest.raises(ValueError, match="a: no answer to compare with"):
        measured([_info("a", "", answer=None)], **one)


def test_prompts_are_taken_in_turn_from_each_task_in_an_order_that_the_file_has_no_say_in() -> None:
    infos = [_info(f"{task}-{row}", task) for task in ("digit", "speech", "scene") for row in range(5)]
    infos += [_info(f"rare-{row}", "rare") for row in range(1)] + [_info("open", "open", answer=None)]
    picked = chosen(infos, num_prompts=9)
    assert [info.task for info in picked] == [
        "digit",
        "rare",
        "scene",
        "speech",
        *["digit", "scene", "speech"],
        *["digit", "scene"],
    ]
    assert picked == chosen(infos[::-1], num_prompts=9) == chosen(infos, num_prompts=None)[:9]
    assert len(chosen(infos, num_prompts=None)) == 16 and len({info.id for info in picked}) == 9
    # Not the first rows of the file.
    assert [info.id for info in chosen(infos, num_prompts=None) if info.task == "digit"] != sorted(
        info.id for info in infos if info.task == "digit"
    )


def _after(values: Sequence[float], *, min_delta: float = 0.0, learned_from: int = 1) -> Progress:
    progress = Progress()
    for step, value in enumerate(values):
        progress = progress.updated(
            step=step, metrics={METRIC: value}, metric=METRIC, min_delta=min_delta, has_learned=step >= learned_from
        )
    return progress


@pytest.mark.parametrize(
    ("values", "min_delta", "best", "num_without_gain"),
    [
        ([0.3], 0.0, 0.3, 0),
        ([0.3, 0.4, 0.5], 0.0, 0.5, 0),
        # As good is no better, and worse is none.
        ([0.3, 0.3, 0.2], 0.0, 0.3, 2),
        ([0.3, 0.2, 0.31, 0.3], 0.0, 0.31, 1),
        # Exactly the least gain counts (.5 - .4 is less than .1 in floating point); half of it does not.
        ([0.4, 0.5], 0.1, 0.5, 0),
        ([0.4, 0.45], 0.1, 0.4, 1),
        # Small gains add up against the best that counted.
        ([0.4, 0.45, 0.52], 0.1, 0.52, 0),
    ],
)
def test_evaluations_without_enough_gain_are_counted(
    values: list[float], min_delta: float, best: float, num_without_gain: int
) -> None:
    progress = _after(values, min_delta=min_delta)
    assert (progress.best, progress.num_without_gain) == (best, num_without_gain)
    assert (progress.step, progress.metrics) == (len(values) - 1, {METRIC: values[-1]})


def test_while_the_policy_waits_for_its_critic_no_gain_is_missed() -> None:
    assert _after([0.3, 0.3, 0.3, 0.3, 0.3], learned_from=3).num_without_gain == 2


def test_another_metric_starts_anew() -> None:
    progress = _after([0.3, 0.2, 0.1]).updated(
        step=3,
        metrics={METRIC: 0.0, "validation/contains": 0.2},
        metric="validation/contains",
        min_delta=0,
        has_learned=True,
    )
    assert (progress.metric, progress.best, progress.num_without_gain) == ("validation/contains", 0.2, 0)


def _settings(**validation: object) -> Rlhf:
    return Rlhf(num_steps=100, evaluate_every=1, validation=Validation.model_validate(validation))


def _reason(settings: Rlhf, progress: Progress, step: int) -> EndReason | None:
    end = end_of(settings, step=step, progress=progress)
    assert end is None or end.step == step
    return end and end.reason


def test_a_run_ends_at_its_target_and_not_below_it() -> None:
    settings = _settings(stop_at=0.6)
    assert _reason(settings, _after([0.1, 0.59]), 1) is None
    assert _reason(settings, _after([0.1, 0.6]), 1) is EndReason.TARGET
    assert _reason(settings, _after([0.1, 0.2 * 3]), 1) is EndReason.TARGET
    end = end_of(settings, step=1, progress=_after([0.1, 0.75]))
    assert end is not None
    assert end.detail == f"{METRIC} is 0.75: rlhf.validation.stop_at=0.6 is reached"


def test_a_run_ends_when_patience_does_and_not_before() -> None:
    settings = _settings(patience=2)
    assert _reason(settings, _after([0.5, 0.4]), 1) is None
    assert _reason(settings, _after([0.5, 0.4, 0.6, 0.5]), 3) is None
    end = end_of(settings, step=2, progress=_after([0.5, 0.4, 0.3]))
    assert end is not None and end.reason is EndReason.PATIENCE
    assert end.detail == (f"{METRIC} is 0.3, and was 0.5 2 evaluations ago: rlhf.validation.patience=2 is at its end")


def test_without_target_and_patience_a_run_has_all_its_steps() -> None:
    progress = _after([0.5, 0.4, 0.3])
    assert _reason(_settings(), progress, 2) is None
    assert _reason(_settings(), progress, 99) is None
    assert _reason(_settings(), progress, 100) is EndReason.NUM_STEPS
    # Where it was reached with the last step, the target is the reason.
    assert _reason(_settings(stop_at=0.3), Progress(100, {METRIC: 0.3}, METRIC, 0.3), 100) is EndReason.TARGET


def test_only_what_the_weights_of_now_have_shown_ends_a_run() -> None:
    progress = _after([0.5, 0.4, 0.3])
    for settings in (_settings(stop_at=0.2), _settings(patience=2)):
        assert _reason(settings, progress, 2) is not None
        # Two steps later they may have learned.
        assert _reason(settings, progress, 4) is None
        # Another metric was looked at then, or nothing is evaluated any more.
        other = settings.validation.model_copy(update={"stop_metric": "validation/contains"})
        assert _reason(settings.model_copy(update={"validation": other}), progress, 2) is None
        assert _reason(settings.model_copy(update={"evaluate_every": None}), progress, 2) is None
