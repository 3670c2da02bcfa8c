"""Aggregation of an evaluation, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.results import (
    Estimate,
    Evaluation,
    Mode,
    ModelName,
    SampleResult,
    blind_labels,
    estimate,
    read_samples,
    summarise,
    summary_json,
    write_samples,
)

SFT, RLHF = ModelName.SFT, ModelName.RLHF
BASE = SampleResult("p", "digit", ("image",), SFT, Mode.SAMPLED, (), "7", "7", "stop", 2, ("7", "."), (), {}, None)


def sample(prompt: str, model: ModelName, exact: float | None, **changes: Any) -> SampleResult:
    rewards = {} if exact is None else {"exact_match": exact}
    return replace(BASE, prompt_id=prompt, model=model, rewards=rewards | changes.pop("rewards", {}), **changes)


def two_prompts() -> list[SampleResult]:
    """SFT earns (0.5, 0), RLHF (1, 0.5); the second prompt is audio and longer."""
    audio: dict[str, Any] = {"task": "speech", "modalities": ("audio",), "num_tokens": 4, "finish_reason": "length"}
    return [
        sample("a", SFT, 1.0, learned_reward=1.0, rewards={"wer": 0.5}),
        sample("a", SFT, 0.0, learned_reward=-1.0, rewards={"wer": 1.0}),
        sample("b", SFT, 0.0, **audio),
        sample("b", SFT, 0.0, **audio),
        sample("a", RLHF, 1.0, token_kl=(0.5, -0.25)),
        sample("a", RLHF, 1.0, token_kl=(0.25, 0.5)),
        sample("b", RLHF, 1.0, token_texts=("x",) * 4, token_kl=(1.0, 0.0, 0.0, 0.0), **audio),
        sample("b", RLHF, 0.0, **audio),
    ]


def value(number: Estimate | None) -> float:
    assert number is not None
    return number.value


def test_true_reward_is_the_mean_exact_match_of_sampled_completions_per_task_kind_and_overall() -> None:
    evaluation = summarise(two_prompts())
    overall = evaluation.overall
    assert value(overall.models[SFT].true_reward) == 0.25
    assert value(overall.models[RLHF].true_reward) == 0.75
    assert value(overall.gain) == 0.5
    assert overall.gain is not None and overall.gain.num_prompts == 2
    assert overall.modalities == ("image", "audio")
    assert value(evaluation.tasks["digit"].models[SFT].true_reward) == 0.5
    assert value(evaluation.tasks["speech"].gain) == 0.5
    assert list(evaluation.modalities) == ["image", "audio"]
    assert value(evaluation.modalities["audio"].models[RLHF].true_reward) == 0.5


def test_kl_lengths_and_other_rewards_are_means_over_what_was_measured() -> None:
    overall = summarise(two_prompts()).overall
    rlhf, sft = overall.models[RLHF], overall.models[SFT]
    assert rlhf.kl_per_token == pytest.approx((0.5 - 0.25 + 0.25 + 0.5 + 1.0) / 8)
    assert rlhf.kl_per_completion == pytest.approx((0.25 + 0.75 + 1.0) / 3)
    assert (sft.kl_per_token, sft.kl_per_completion, rlhf.learned_reward) == (None, None, None)
    assert sft.metrics == {"wer": 0.75}
    assert sft.learned_reward == 0.0
    assert sft.mean_length == 3.0
    assert sft.finish_reasons == {"length": 2, "stop": 2}
    assert (sft.num_samples, sft.greedy_true_reward) == (4, None)


def test_greedy_and_blanked_completions_stay_out_of_the_sampled_true_reward() -> None:
    extra = [
        sample("a", RLHF, 0.0, mode=Mode.GREEDY),
        sample("a", RLHF, 0.0, mode=Mode.SAMPLED, blanked=("image",)),
    ]
    rlhf = summarise([*two_prompts(), *extra]).overall.models[RLHF]
    assert value(rlhf.true_reward) == 0.75
    assert value(rlhf.greedy_true_reward) == 0.0
    assert rlhf.num_samples == 4


def test_a_completion_that_could_not_be_scored_is_counted_and_in_no_mean() -> None:
    rows = [sample("a", SFT, 1.0), sample("a", SFT, None), sample("b", SFT, math.nan)]
    sft = summarise(rows).overall.models[SFT]
    assert value(sft.true_reward) == 1.0
    assert sft.true_reward is not None and sft.true_reward.num_prompts == 1
    assert (sft.num_samples, sft.num_unscored) == (3, 2)


def test_prompts_without_an_answer_have_the_measures_that_need_none_and_spoil_no_mean(tmp_path: Path) -> None:
    unknown: dict[str, Any] = {"answer": None, "learned_reward": 3.0, "task": "open"}
    rows = [sample("a", SFT, 1.0, learned_reward=1.0), *(sample("b", model, None, **unknown) for model in (SFT, RLHF))]
    evaluation = summarise(rows)
    sft, opened = evaluation.overall.models[SFT], evaluation.tasks["open"]
    assert (value(sft.true_reward), sft.learned_reward, sft.num_unscored) == (1.0, 2.0, 1)
    assert (opened.models[RLHF].true_reward, opened.gain, opened.models[RLHF].metrics) == (None, None, {})
    assert summary(evaluation)["tasks"]["open"]["rlhf"]["learned_reward"] == 3.0
    write_samples(tmp_path / "samples.jsonl", rows)
    assert read_samples(tmp_path / "samples.jsonl") == rows
    assert json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[1])["answer"] is None


def test_the_gain_compares_only_prompts_that_both_models_answered() -> None:
    rows = [sample("a", SFT, 0.0), sample("a", RLHF, 1.0), sample("only-rlhf", RLHF, 0.0)]
    gain = summarise(rows).overall.gain
    assert gain == Estimate(1.0, 1.0, 1.0, 1)
    assert summarise(rows[1:]).overall.gain is None


def test_the_blind_gap_is_greedy_true_reward_shown_minus_blanked_by_what_was_blanked() -> None:
    both = {"task": "sum", "modalities": ("image", "audio"), "mode": Mode.GREEDY}
    rows = [
        sample("s", RLHF, 1.0, **both),
        sample("t", RLHF, 1.0, **both),
        sample("s", RLHF, 1.0, blanked=("image",), **both),
        sample("t", RLHF, 0.0, blanked=("image",), **both),
        sample("s", RLHF, 0.0, blanked=("audio",), **both),
        sample("s", RLHF, 0.0, blanked=("audio", "image"), **both),
        sample("t", RLHF, 0.0, blanked=("image", "audio"), **both),
        sample("d", RLHF, 1.0, mode=Mode.GREEDY),
        sample("d", RLHF, 1.0, mode=Mode.GREEDY, blanked=("image",)),
    ]
    evaluation = summarise(rows)
    gaps = evaluation.tasks["sum"].models[RLHF].blind_gaps
    assert {label: gap.value for label, gap in gaps.items()} == {"all": 1.0, "audio": 1.0, "image": 0.5}
    assert gaps["audio"].num_prompts == 1
    assert value(evaluation.overall.models[RLHF].blind_gaps["all"]) == pytest.approx(2 / 3)
    assert summary(evaluation)["tasks"]["digit"]["blind_gap"] == 0.0
    assert blind_labels(replace(rows[0], blanked=("all",))) == ("all",)
    assert blind_labels(rows[-1]) == ("all", "image")


def test_the_interval_is_seeded_holds_the_mean_and_matches_the_normal_one_for_many_prompts() -> None:
    values = np.random.default_rng(1).random(400)
    first = estimate(values, seed=3, num_resamples=4000)
    assert first is not None and first == estimate(values, seed=3, num_resamples=4000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert first.low == pytest.approx(first.value - half, abs=0.1 * half)
    assert first.high == pytest.approx(first.value + half, abs=0.1 * half)
    assert estimate([], seed=0, num_resamples=10) is None


def test_the_bootstrap_draws_the_same_resamples_in_pieces_as_at_once() -> None:
    values = np.random.default_rng(2).random(3000)  # 2000 resamples of 3000 take three pieces
    indices = np.random.default_rng(0).integers(3000, size=(2000, 3000))
    low, high = np.quantile(values[indices].mean(axis=1), (0.025, 0.975))
    found = estimate(values, seed=0, num_resamples=2000)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)


def summary(evaluation: Evaluation) -> dict[str, Any]:
    return summary_json(evaluation, stage_s={"sft": 2.5}, total_s=3.0, seed=7, counts={"truncated": 1})


def test_the_summary_has_the_agreed_keys_and_is_strict_json() -> None:
    result = summary(summarise(two_prompts()))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {"total_s", "stage_s", "seed", "tasks", "overall", "counts"} <= set(result)
    digit = result["tasks"]["digit"]
    assert digit["modalities"] == ["image"]
    assert (digit["sft"]["true_reward"], digit["sft"]["learned_reward"]) == (0.5, 0.0)
    assert digit["rlhf"]["kl"] == pytest.approx(0.25)
    assert digit["rlhf"]["learned_reward"] is None and digit["blind_gap"] is None
    assert (result["overall"]["sft"]["true_reward"], result["overall"]["rlhf"]["true_reward"]) == (0.25, 0.75)
    assert (result["stage_s"], result["seed"], result["counts"]) == ({"sft": 2.5}, 7, {"truncated": 1})


def test_one_model_or_none_still_gives_a_summary() -> None:
    alone = summary(summarise([sample("a", SFT, 1.0, modalities=())]))
    assert alone["tasks"]["digit"]["modalities"] == ["text"]
    assert alone["overall"]["rlhf"] == {"true_reward": None, "learned_reward": None, "kl": None}
    assert summary(summarise([]))["tasks"] == {}


def test_samples_come_back_from_jsonl_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    rows = [*two_prompts(), replace(BASE, text='zwölf\n\u2028"', rewards={"wer": math.inf})]
    write_samples(path, rows)
    write_samples(path, rows)
    back = read_samples(path)
    assert back[:-1] == rows[:-1]
    assert back[-1].text == rows[-1].text and math.isnan(back[-1].rewards["wer"])
    assert isinstance(back[0].model, ModelName) and isinstance(back[0].mode, Mode)
    path.write_text('{"prompt_id": "x"}\n')
    with pytest.raises(ValueError, match="not a sample"):
        read_samples(path)


def test_kl_and_tokens_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="3 KL values for 2 token texts"):
        replace(BASE, token_kl=(0.0, 0.0, 0.0))
