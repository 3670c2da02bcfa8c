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


def _summary(sft: float, rlhf: float) -> dict[str, Any]:
    def model(greedy: float) -> dict[str, float]:
        return {"greedy_true_reward": greedy, "contains": greedy - 0.1, "true_reward": greedy - 0.2}

    return {"overall": {"sft": model(sft), "rlhf": model(rlhf)}}


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
        rewards={"exact_match": float(text == "7")},
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


def test_the_gain_is_paired_over_the_greedy_completions_of_all_seeds(tmp_path: Path) -> None:
    for seed, after in enumerate(("7", "8")):
        samples = [
            _sample("a", ModelName.SFT, Mode.GREEDY, "8"),
            _sample("a", ModelName.RLHF, Mode.GREEDY, after),
            _sample("a", ModelName.RLHF, Mode.SAMPLED, "9"),
            _sample("b", ModelName.SFT, Mode.GREEDY, "7"),
            _sample("b", ModelName.RLHF, Mode.GREEDY, "7"),
        ]
        (tmp_path / str(seed) / "evaluation").mkdir(parents=True)
        write_samples(tmp_path / str(seed) / "evaluation" / "samples.jsonl", samples)
    gain = learning.pooled_gain([tmp_path / "0", tmp_path / "1"])
    assert gain is not None
    assert (gain.value, gain.num_prompts) == (0.25, 4)  # one of four rises


def test_the_table_has_a_line_for_sft_and_each_arm_and_the_verdict_names_who_does_as_well() -> None:
    summaries = {
        "rlhf": {0: _summary(0.5, 0.7), 1: _summary(0.6, 0.9)},
        "more_sft": {0: _summary(0.5, 0.6), 1: _summary(0.6, 0.6)},
    }
    gains = {"rlhf": Estimate(0.25, 0.1, 0.4, 10), "more_sft": Estimate(0.05, -0.1, 0.2, 10)}
    lines = learning.markdown(summaries, gains).splitlines()
    assert lines[2].startswith("| sft | 0.550 (0.500, 0.600) |  | 0.450 |")
    assert lines[3].startswith("| rlhf | 0.800 (0.700, 0.900) | +0.250 [+0.100, +0.400] | 0.700 | 0.600 |")
    assert lines[4].startswith("| more_sft | 0.600")
    contains = {"rlhf": 0.7, "more_sft": 0.8}
    assert learning.verdict(gains, contains) == (
        "RLHF gains over SFT: +0.250. At least as good in greedy exact match: none. "
        "At least as good in contains: more_sft."
    )
    worse = {**gains, "more_sft": Estimate(0.25, 0.1, 0.4, 10), "rlhf": Estimate(0.25, -0.1, 0.4, 10)}
    assert learning.verdict(worse, {"rlhf": 0.7, "more_sft": 0.6}) == (
        "RLHF does not surely gain over SFT: +0.250. At least as good in greedy exact match: more_sft. "
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
    assert "## " in results.read_text() and "| grpo |" in results.read_text()
