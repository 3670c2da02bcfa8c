"""Aggregation of an evaluation, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.intervals import Estimate, paired, wilson
from pipeline.evaluation.results import Mode, ModelName, SampleResult, blind_labels, read_samples, write_samples
from pipeline.evaluation.summary import Demonstrator, Evaluation, skill_and_manner, summarise
from pipeline.evaluation.summary_json import summary_json

SFT, RLHF = ModelName.SFT, ModelName.RLHF
BASE = SampleResult("p", "digit", ("image",), SFT, Mode.SAMPLED, (), "7", "7", "stop", 2, ("7", "."), (), {}, None)


def sample(prompt: str, model: ModelName, exact: float | None, **changes: Any) -> SampleResult:
    rewards = {} if exact is None else {"exact_match": exact}
    return replace(BASE, prompt_id=prompt, model=model, rewards=rewards | changes.pop("rewards", {}), **changes)


def two_prompts() -> list[SampleResult]:
    """SFT earns (0.5, 0), RLHF (1, 0.5); the second prompt is audio and longer."""
    audio: dict[str, Any] = {"task": "speech", "modalities": ("audio",), "num_tokens": 4, "finish_reason": "length"}
    return [
        sample("a", SFT, 1.0, learned_reward=1.0, rewards={"distance": 0.5}),
        sample("a", SFT, 0.0, learned_reward=-1.0, rewards={"distance": 1.0}),
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
    assert sft.metrics == {"distance": 0.75}
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
    assert gain == paired([1.0]) and gain is not None and (gain.value, gain.num_prompts) == (1.0, 1)
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


def test_the_intervals_are_wilsons_of_each_model_and_paired_of_each_gain() -> None:
    rows = [sample(str(prompt), SFT, 0.0, mode=Mode.GREEDY) for prompt in range(64)]
    rows += [sample(str(prompt), RLHF, float(prompt < 16), mode=Mode.GREEDY) for prompt in range(64)]
    overall = summarise(rows).overall
    assert overall.models[SFT].greedy_true_reward == Estimate(0.0, *wilson(0, 64), 64)
    assert overall.models[RLHF].greedy_true_reward == Estimate(0.25, *wilson(0.25, 64), 64)
    assert overall.greedy_gain == paired([1.0] * 16 + [0.0] * 48)
    # Two completions that always agree are one.
    twice = [sample(str(prompt), SFT, float(prompt < 16)) for prompt in range(64) for _ in range(2)]
    assert summarise(twice).overall.models[SFT].true_reward == Estimate(0.25, *wilson(0.25, 64), 64)


def test_contains_has_intervals_and_paired_gains_sampled_and_greedy() -> None:
    rows = [
        sample("a", SFT, 0.0, rewards={"contains": 1.0}),
        sample("a", SFT, 0.0, rewards={"contains": 0.0}),
        sample("b", SFT, 0.0, rewards={"contains": 0.0}),
        sample("a", RLHF, 1.0, rewards={"contains": 1.0}),
        sample("b", RLHF, 0.0, rewards={"contains": 1.0}),
        sample("a", SFT, 0.0, mode=Mode.GREEDY, rewards={"contains": 1.0}),
        sample("a", RLHF, 0.0, mode=Mode.GREEDY, rewards={"contains": 0.0}),
    ]
    overall = summarise(rows).overall
    assert (value(overall.models[SFT].contains), value(overall.models[RLHF].contains)) == (0.25, 1.0)
    assert overall.contains_gain == paired([0.5, 1.0])
    assert overall.greedy_contains_gain == paired([-1.0])
    result = summary(summarise(rows))["overall"]
    assert result["contains_gain"]["value"] == 0.75 and result["contains_gain"].keys() >= {"low", "high"}
    assert (result["sft"]["contains"], result["rlhf"]["contains"], result["sft"]["greedy_contains"]) == (0.25, 1.0, 1.0)


def test_any_of_k_is_the_share_of_prompts_with_a_right_one_among_k() -> None:
    rows = [sample(prompt, SFT, right) for prompt, right in (("a", 0.0), ("a", 1.0), ("b", 0.0), ("b", 0.0))]
    rows += [sample(prompt, RLHF, right) for prompt, right in (("a", 1.0), ("a", 0.0), ("b", 1.0), ("b", 1.0))]
    rows += [sample("a", RLHF, 0.0, mode=Mode.GREEDY), sample("fewer", SFT, 1.0)]
    overall = summarise(rows).overall
    assert overall.models[SFT].any_of_k == Estimate(0.5, *wilson(0.5, 2), 2)
    result = summary(summarise(rows))["overall"]
    gain = result["any_of_k"].pop("gain")
    assert result["any_of_k"] == {"k": 2, "sft": 0.5, "rlhf": 1.0}
    assert (gain["value"], gain["num_prompts"]) == (0.5, 2)
    assert (result["sft"]["any_of_k"], result["rlhf"]["any_of_k"]) == (0.5, 1.0)


def test_wer_and_bleu_are_of_all_completions_of_a_slice_together() -> None:
    heard: dict[str, Any] = {"task": "speech", "rewards": {"wer": 9.0, "bleu": 9.0, "rouge_l": 0.5}}
    rows = [
        sample("a", SFT, 0.0, text="bat", answer="cat", **heard),
        sample("b", SFT, 0.0, text="the dog sat down here", answer="the dog sat down", **heard),
        sample("c", SFT, 0.0, text="7", answer="7"),
        sample("b", SFT, 0.0, text="", answer="the dog sat down", mode=Mode.GREEDY, **heard),
    ]
    metrics = summarise(rows).overall.models[SFT].metrics
    assert metrics["wer"] == pytest.approx(2 / 5)  # one error in one word and one in four
    # Of 6, 4, 3 and 2 n-grams 4, 3, 2 and 1 are right; the completions are longer than the answers.
    assert metrics["bleu"] == pytest.approx((4 / 6 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert metrics["rouge_l"] == 0.5
    assert summary(summarise(rows))["tasks"]["speech"]["sft"]["wer"] == pytest.approx(2 / 5)


def test_the_swapped_gap_is_greedy_true_reward_shown_minus_swapped_for_each_model() -> None:
    def greedy(prompt: str, model: ModelName, exact: float, **changes: Any) -> SampleResult:
        return sample(prompt, model, exact, mode=Mode.GREEDY, **changes)

    rows = [greedy(prompt, RLHF, 1.0) for prompt in "abcd"] + [greedy(prompt, SFT, 1.0) for prompt in "ab"]
    rows += [greedy("a", RLHF, 1.0, swapped="b"), *(greedy(prompt, RLHF, 0.0, swapped="a") for prompt in "bcd")]
    rows += [greedy("a", SFT, 1.0, swapped="b"), greedy("b", SFT, 0.0, swapped="a")]
    overall = summarise(rows).overall
    assert overall.models[RLHF].swapped_gap == paired([0.0, 1.0, 1.0, 1.0])
    assert overall.models[SFT].swapped_gap == paired([0.0, 1.0])
    assert value(overall.models[RLHF].greedy_true_reward) == 1.0 and overall.models[RLHF].blind_gaps == {}
    result = summary(summarise(rows))
    for part in (result["overall"], result["tasks"]["digit"]):
        assert (part["swapped_gap"], part["blind_gap"]) == (0.75, None)
        assert (part["rlhf"]["swapped_gap"]["value"], part["sft"]["swapped_gap"]["value"]) == (0.75, 0.5)


def test_the_blind_gap_is_there_for_both_models() -> None:
    rows = [sample("a", model, 1.0, mode=Mode.GREEDY) for model in (SFT, RLHF)]
    rows += [sample("a", SFT, 0.0, mode=Mode.GREEDY, blanked=("image",))]
    rows += [sample("a", RLHF, 1.0, mode=Mode.GREEDY, blanked=("image",))]
    digit = summary(summarise(rows))["tasks"]["digit"]
    assert (digit["sft"]["blind_gap"]["value"], digit["rlhf"]["blind_gap"]["value"]) == (1.0, 0.0)
    assert digit["blind_gap"] == 0.0


@pytest.mark.parametrize(
    ("exact", "contained", "skill", "manner"),
    [
        # M from 1/4 to 3/4 at C from 0.4 to 0.8: 0.4 * 1/2 and 1/2 * 0.6.
        ((0.1, 0.6), (0.4, 0.8), 0.2, 0.3),
        # Manner alone, skill alone, and one against the other.
        ((0.1, 0.4), (0.4, 0.4), 0.0, 0.3),
        ((0.2, 0.4), (0.4, 0.8), 0.2, 0.0),
        ((0.2, 0.2), (0.4, 0.2), -0.15, 0.15),
        # Where a model contains nothing, what it would say beside the answer is unknown: the gain is skill.
        ((0.0, 0.3), (0.0, 0.6), 0.3, 0.0),
        ((0.3, 0.0), (0.6, 0.0), -0.3, 0.0),
        ((0.0, 0.0), (0.0, 0.0), 0.0, 0.0),
    ],
)
def test_a_gain_divides_into_skill_and_manner(
    exact: tuple[float, float], contained: tuple[float, float], skill: float, manner: float
) -> None:
    assert skill_and_manner(exact=exact, contained=contained) == pytest.approx((skill, manner))
    assert skill + manner == pytest.approx(exact[1] - exact[0])


def test_skill_and_manner_sum_to_the_gain_over_the_prompts_that_both_models_answered() -> None:
    rows = [
        sample("a", SFT, 0.0, rewards={"contains": 1.0}),
        sample("b", SFT, 1.0, rewards={"contains": 1.0}),
        sample("c", SFT, 0.0, rewards={"contains": 0.0}),
        *(sample(prompt, RLHF, 1.0, rewards={"contains": 1.0}) for prompt in "abc"),
        sample("only", RLHF, 0.0, rewards={"contains": 0.0}),
    ]
    overall = summarise(rows).overall
    # C from 2/3 to 1, M from 1/2 to 1: skill 1/3 * 3/4, manner 1/2 * 5/6.
    assert (value(overall.skill_gain), value(overall.manner_gain)) == pytest.approx((1 / 4, 5 / 12))
    assert value(overall.gain) == pytest.approx(1 / 4 + 5 / 12)
    part = summary(summarise(rows))["tasks"]["digit"]
    assert (part["skill_gain"], part["manner_gain"]) == pytest.approx((1 / 4, 5 / 12))
    skill = overall.skill_gain
    assert skill is not None and part["skill_gain_interval"] == [skill.low, skill.high]
    without = summary(summarise(two_prompts()))["overall"]
    assert without["skill_gain"] is None and without["manner_gain_interval"] is None


def _answers(prompt: str, model: ModelName, exact: list[float], contained: list[float]) -> list[SampleResult]:
    return [
        sample(prompt, model, one, rewards={"contains": other}) for one, other in zip(exact, contained, strict=True)
    ]


def test_where_one_model_differs_in_manner_alone_manner_has_the_interval_of_the_gain_and_so_with_skill() -> None:
    plain = [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]
    always = [1.0, 1.0]
    of_manner, of_skill = [], []
    for number, (before, after) in enumerate(pairwise(plain)):
        for model, said in ((SFT, before), (RLHF, after)):
            of_manner += _answers(str(number), model, said, always)
            of_skill += _answers(str(number), model, said, said)
    overall = summarise(of_manner).overall
    assert overall.gain is not None and overall.gain.low < overall.gain.high
    assert overall.manner_gain is not None and value(overall.skill_gain) == 0
    assert vars(overall.manner_gain) == pytest.approx(vars(overall.gain))
    overall = summarise(of_skill).overall
    assert overall.skill_gain is not None and overall.gain is not None and value(overall.manner_gain) == 0
    assert vars(overall.skill_gain) == pytest.approx(vars(overall.gain))


def test_the_intervals_of_skill_and_manner_hold_the_truth_about_as_often_as_they_say() -> None:
    """300 evaluations of 64 prompts, two completions each; C from .5 to .7 and M from .4 to .8, over all prompts."""
    dice = np.random.default_rng(0)
    shares = {SFT: (0.5, 0.4), RLHF: (0.7, 0.8)}
    truth = skill_and_manner(exact=(0.2, 0.56), contained=(0.5, 0.7))
    held: list[list[bool]] = []
    for _ in range(300):
        rows: list[SampleResult] = []
        for number, ease in enumerate(dice.choice([-0.2, 0.2], 64)):
            for model, (right, plainly) in shares.items():
                contained = dice.random(2) < right + ease
                exact = contained & (dice.random(2) < plainly)
                rows += _answers(str(number), model, exact.astype(float).tolist(), contained.astype(float).tolist())
        overall = summarise(rows).overall
        assert overall.skill_gain is not None and overall.manner_gain is not None
        parts = zip((overall.skill_gain, overall.manner_gain), truth, strict=True)
        held.append([each.low <= value <= each.high for each, value in parts])
    # A little wider than need be with few prompts, as paired intervals are.
    assert all(0.93 <= share <= 0.99 for share in np.mean(held, axis=0))


def test_demonstrations_are_measured_as_the_models_are_and_the_worst_task_is_named() -> None:
    def said(prompt: str, task: str, demonstration: str | None, answer: str) -> list[SampleResult]:
        changes: dict[str, Any] = {"task": task, "demonstration": demonstration, "answer": answer}
        return [sample(prompt, model, 1.0, **changes) for model in (SFT, RLHF)]

    count = [*said("a", "count", "4", "3"), *said("b", "count", "5 maybe", "5"), *said("c", "count", "2", "2")]
    scene = [*said("d", "scene", "red maybe", "red"), *said("e", "scene", None, "blue")]
    rows = [*count, *scene, *said("f", "open", None, "7")]
    evaluation = summarise(rows)
    counted = evaluation.tasks["count"].demonstrator
    assert counted is not None and counted.num_prompts == 3
    assert (counted.true_reward, counted.contains) == pytest.approx((1 / 3, 2 / 3))
    assert counted.graded == pytest.approx((0.8 + 1 + 1) / 3)
    assert evaluation.tasks["scene"].demonstrator == Demonstrator(0.0, 1.0, None, 1)
    assert evaluation.tasks["open"].demonstrator is None
    result = summary(evaluation)
    assert result["demonstrator_task"] == "count"
    assert result["tasks"]["scene"]["demonstrator"]["graded"] is None
    assert set(result["tasks"]["open"]["demonstrator"].values()) == {None, 0}
    assert summary(summarise([*scene, *rows[-2:]]))["demonstrator_task"] is None
    assert summary(summarise([]))["demonstrator_task"] is None


def test_one_model_or_none_still_gives_a_summary() -> None:
    alone = summary(summarise([sample("a", SFT, 1.0, modalities=())]))
    assert alone["tasks"]["digit"]["modalities"] == ["text"]
    assert alone["overall"]["rlhf"] == {"true_reward": None, "learned_reward": None, "kl": None}
    assert summary(summarise([]))["tasks"] == {}
