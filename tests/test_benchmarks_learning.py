"""The benchmark of what teaches: arms start where the demo's SFT ended, and the table says plainly who does better."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks import learning
from pipeline.config import Prepare, load_recipe
from pipeline.data import demo
from pipeline.data.table import PromptTable
from pipeline.evaluation.intervals import Estimate
from pipeline.evaluation.results import Mode, ModelName, SampleResult, write_samples


def _summary(before: float, after: float, /, **stage_s: float) -> dict[str, Any]:
    def model(greedy: float) -> dict[str, float]:
        return {"greedy_true_reward": greedy, "contains": greedy - 0.1, "true_reward": greedy - 0.2}

    return {"overall": {"sft": model(before), "rlhf": model(after)}, "stage_s": stage_s}


def _sample(prompt: str, model: ModelName, mode: Mode, text: str) -> SampleResult:
    return SampleResult(
        prompt_id=prompt,
        task="digit",
        modalities=(),
        model=model,
        mode=mode,
        blanked=(),
        swapped=None,
        answer="7",
        demonstration=None,
        text=text,
        finish_reason="stop",
        num_tokens=1,
        token_texts=(),
        token_kl=(),
        rewards={"exact_match": float(text == "7"), "contains": float("7" in text)},
        learned_reward=None,
    )


def test_an_arm_starts_from_what_the_demo_made_and_begins_anew_when_it_is_run_again(tmp_path: Path) -> None:
    for name in ("base", "sft", "reward_model"):
        (tmp_path / "demo" / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "demo" / "preferences.parquet").touch()
    for _ in range(2):
        learning.start(tmp_path / "arm", tmp_path / "demo")
        assert (tmp_path / "arm" / "checkpoints" / "sft").resolve() == tmp_path / "demo" / "checkpoints" / "sft"
        assert not (tmp_path / "arm" / "left").exists()
        (tmp_path / "arm" / "left").touch()
    assert (tmp_path / "demo" / "checkpoints" / "sft").is_dir()


def test_the_oracle_learns_the_right_and_plain_answers_of_the_loops_prompts(tmp_path: Path) -> None:
    tiny = Prepare(tasks=("count", "text"), train_rows=1, rl_rows=20, validation_rows=1, test_rows=1)
    demo.build(tmp_path / "demo" / "data", prepare=tiny, seed=0)
    made = learning.oracle_data(tmp_path / "oracle", tmp_path / "demo")
    infos = PromptTable(made / "train.parquet").infos()
    shown = pq.read_table(tmp_path / "demo" / "data" / "rl.parquet")
    assert [info.id for info in infos] == shown["id"].to_pylist()
    assert [info.demonstration for info in infos] == shown["answer"].to_pylist() != shown["demonstration"].to_pylist()
    assert len(PromptTable(made / "test.parquet").infos()) == 2


def test_more_sft_takes_as_long_as_reward_model_and_loop() -> None:
    recipe = load_recipe(None, ["sft.num_steps=1000"])
    assert learning.sft_steps(recipe, {"sft": 80.0, "reward_model": 20.0, "rlhf": 100.0}) == 1500


def _written(directory: Path, *samples: SampleResult) -> Path:
    (directory / "evaluation").mkdir(parents=True)
    write_samples(directory / "evaluation" / "samples.jsonl", samples)
    return directory


def test_gains_are_paired_over_the_prompts_of_all_seeds_greedy_and_in_what_samples_contain(tmp_path: Path) -> None:
    runs = [
        _written(
            tmp_path / str(seed),
            _sample("a", ModelName.SFT, Mode.GREEDY, "8"),
            _sample("a", ModelName.SFT, Mode.SAMPLED, "7 maybe"),
            _sample("a", ModelName.SFT, Mode.SAMPLED, "8"),
            _sample("a", ModelName.RLHF, Mode.GREEDY, after),
            _sample("a", ModelName.RLHF, Mode.SAMPLED, "7 for sure"),
            _sample("b", ModelName.SFT, Mode.GREEDY, "7"),
            _sample("b", ModelName.RLHF, Mode.GREEDY, "7"),
        )
        for seed, after in enumerate(("7", "8"))
    ]
    gain = learning.pooled_gain(runs, "greedy exact match")
    assert gain is not None
    assert (gain.value, gain.num_prompts) == (0.25, 4)  # one of four rises
    contained = learning.pooled_gain(runs, "contains")
    assert contained is not None
    assert (contained.value, contained.num_prompts) == (0.5, 2)  # from one of two samples to all


def test_rlhf_is_set_against_the_trained_model_of_a_control_prompt_by_prompt_and_seed_by_seed(tmp_path: Path) -> None:
    def arm(name: str, *texts: str) -> list[Path]:
        return [
            _written(
                tmp_path / name / str(seed),
                _sample("a", ModelName.SFT, Mode.GREEDY, "7"),
                _sample("a", ModelName.RLHF, Mode.GREEDY, text),
            )
            for seed, text in enumerate(texts)
        ]

    compared = learning.Compared.of({"rlhf": arm("rlhf", "7", "7", "7"), "more_sft": arm("more_sft", "8", "7", "8")})
    ahead = compared.ahead["greedy exact match"]
    assert list(ahead) == ["more_sft"] and ahead["more_sft"] is not None
    assert (ahead["more_sft"].value, ahead["more_sft"].num_prompts) == (pytest.approx(2 / 3), 3)
    assert compared.ahead["contains"] == {"more_sft": None}, "no sampled completions"


def _compared(ours: Estimate, greedy: Estimate, contains: Estimate) -> learning.Compared:
    """RLHF's gain, and what it has more than `more_sft`."""
    gains = {"rlhf": ours, "more_sft": Estimate(0.05, -0.1, 0.2, 10)}
    return learning.Compared(
        {"greedy exact match": gains, "contains": gains},
        {"greedy exact match": {"more_sft": greedy}, "contains": {"more_sft": contains}},
    )


def test_the_table_has_a_line_for_sft_and_each_arm_with_its_differences_and_seconds() -> None:
    summaries = {
        "rlhf": {
            0: _summary(0.5, 0.7, sft=80.0, reward_model=20.0, rlhf=100.0, evaluate=9.0),
            1: _summary(0.6, 0.9, sft=90.0, reward_model=30.0, rlhf=110.0),
        },
        "more_sft": {0: _summary(0.5, 0.6, sft=125.0, evaluate=9.0), 1: _summary(0.6, 0.6, sft=145.0)},
        "grpo": {0: _summary(0.5, 0.6, rlhf=95.0, evaluate=9.0), 1: _summary(0.6, 0.6)},
    }
    compared = _compared(Estimate(0.25, 0.1, 0.4, 9), Estimate(0.2, 0.05, 0.3, 9), Estimate(-0.1, -0.2, 0.1, 10))
    lines = learning.markdown(summaries, compared).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| sft | 0.550 (0.500, 0.600) |  |  | 0.450 |  |  | 0.350 | 85 |"
    gain = "+0.250 [+0.100, +0.400]"
    assert lines[3] == f"| rlhf | 0.800 (0.700, 0.900) | {gain} |  | 0.700 | {gain} |  | 0.600 | 130 |"
    assert lines[4] == (
        "| more_sft | 0.600 (0.600, 0.600) | +0.050 [-0.100, +0.200] | +0.200 [+0.050, +0.300] | 0.500 "
        "| +0.050 [-0.100, +0.200] | -0.100 [-0.200, +0.100] | 0.400 | 135 |"
    )
    assert lines[5].endswith("| 0.400 |  |"), "one seed has no time, so there is no mean"


def test_the_verdict_names_who_does_as_well_and_who_surely_does_better() -> None:
    ours, less, more = (Estimate(0.25, low, 0.4, 10) for low in (0.1, -0.1, 0.2))
    worse = Estimate(-0.1, -0.2, 0.1, 10)
    assert learning.verdict(_compared(ours, more, worse)) == (
        "RLHF gains over SFT: +0.250. At least as good in greedy exact match: none. "
        "At least as good in contains: more_sft."
    )
    surely = Estimate(-0.1, -0.2, -0.01, 10)
    assert learning.verdict(_compared(less, surely, more)) == (
        "RLHF does not surely gain over SFT: +0.250. At least as good in greedy exact match: more_sft (surely better). "
        "At least as good in contains: none."
    )


def test_what_lies_there_is_not_run_again_and_the_last_line_is_for_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("demos/seed-0", "out/seed-0/grpo"):
        (tmp_path / place / "evaluation").mkdir(parents=True)
        (tmp_path / place / "summary.json").write_text(json.dumps(_summary(0.5, 0.7)))
        samples = [_sample("a", model, Mode.GREEDY, "7") for model in ModelName]
        write_samples(tmp_path / place / "evaluation" / "samples.jsonl", samples)
    results = tmp_path / "RESULTS.md"
    paths = ["--demos", str(tmp_path / "demos"), "--out", str(tmp_path / "out"), "--results", str(results)]
    learning.main(["--seeds", "0", "--arms", "grpo", *paths])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["overall"] == {"sft": 0.5, "rlhf": 0.7, "grpo": 0.7}
    assert (last["benchmark"], last["seeds"], last["gain"]["value"]) == ("learning", 1, 0.0)
    assert last["ahead"] == {"grpo": last["gain"]} and last["contains_ahead"] == {"grpo": None}
    assert (last["seconds"], last["contains_gain"]) == ({"sft": None, "rlhf": None, "grpo": None}, None)
    assert "## " in results.read_text() and "| grpo |" in results.read_text() and learning.NOTE in results.read_text()
