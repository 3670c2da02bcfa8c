"""The TRL benchmark without its trainings: steps, phases, ratios, tables, and the watching of a process."""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks import vs_trl, vs_trl_peer, vs_trl_report, vs_trl_watch
from benchmarks.vs_trl_report import Run
from benchmarks.vs_trl_watch import Interval, Moment
from pipeline.config import KlEstimator, KlPlace, RewardName, load_recipe
from pipeline.data.layout import Layout
from pipeline.data.media import encode_png
from pipeline.data.order import Order
from pipeline.data.table import PromptTable
from pipeline.records import MediaKind, Medium, Message, Prompt
from pipeline.rewards.length import length_reward

WORK = vs_trl.Work(prompts=2, group_size=4, tokens=16, micro_batch=8, side=32, warm_up=1, steps=2)


def test_the_first_and_the_last_step_are_left_out_and_background_work_counts_in_the_step_that_it_ran_in() -> None:
    moments = [
        Moment(100.0, {"driver": 10.0}),
        Moment(102.0, {"driver": 10.5, "PolicyWorker": 1.0}),
        Moment(105.0, {"driver": 10.5, "PolicyWorker": 3.0}),
        Moment(109.0, {"driver": 11.0, "PolicyWorker": 3.0}),
    ]
    spans = vs_trl_watch.intervals(moments, warm_up=1)
    assert [span.wall_s for span in spans] == [2.0, 3.0]
    assert [span.cpu_s for span in spans] == [
        {"driver": 0.5, "PolicyWorker": 1.0},
        {"driver": 0.0, "PolicyWorker": 2.0},
    ]
    assert [span.wall_s for span in vs_trl_watch.intervals(moments, warm_up=2)] == [3.0]


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="2 steps: 1 to warm up, the last one left out, nothing to measure"):
        vs_trl_watch.intervals([Moment(0.0, {}), Moment(1.0, {})], warm_up=1)


def test_a_process_is_known_by_the_class_of_its_ray_actor() -> None:
    assert vs_trl_watch.kind_of(["ray::PolicyWorker.update"]) == "PolicyWorker"
    assert vs_trl_watch.kind_of(["ray::RolloutWorker"]) == "RolloutWorker"
    assert vs_trl_watch.kind_of(["ray::IDLE"]) == vs_trl_watch.RAY
    assert vs_trl_watch.kind_of(["/usr/lib/raylet", "--port=1"]) == vs_trl_watch.RAY
    assert vs_trl_watch.kind_of([]) == vs_trl_watch.RAY


SPIN = """
import sys, time
for step in range(3):
    until = time.process_time() + 0.2
    while time.process_time() < until: pass
    with open(sys.argv[1], "a") as file: file.write("{}\\n")
time.sleep(1)  # Who has ended is not watched any more.
"""


def test_a_process_is_watched_from_outside_on_the_core_that_it_was_given(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    lines = tmp_path / "steps.jsonl"
    command = [sys.executable, "-c", f"import os; print(os.sched_getaffinity(0), flush=True)\n{SPIN}", str(lines)]
    moments = vs_trl_watch.watch(command, lines=lines, log=tmp_path / "log", environment={}, core=core)
    (span,) = vs_trl_watch.intervals(moments, warm_up=1)
    assert span.cpu_s["driver"] == pytest.approx(0.2, abs=0.05)
    assert span.wall_s > 0.15
    assert (tmp_path / "log").read_text().strip() == str({core})
    assert len(os.sched_getaffinity(0)) >= 1 and core in os.sched_getaffinity(0)


def test_the_cpu_time_of_children_counts_even_after_they_ended() -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    script = f"import subprocess, sys, time\nsubprocess.run([sys.executable, '-c', {spin!r}])\ntime.sleep(60)"
    tree = vs_trl_watch.Tree(psutil.Popen([sys.executable, "-c", script]))
    try:
        deadline = time.monotonic() + 30
        seen = tree.moment()
        while tree.root.children() or not seen.cpu_s.get(vs_trl_watch.RAY):
            seen = tree.moment()
            assert time.monotonic() < deadline
        assert tree.moment().cpu_s[vs_trl_watch.RAY] == pytest.approx(0.3, abs=0.1)
    finally:
        tree.stop()
    assert not tree.root.is_running()


def test_a_training_that_fails_names_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('trying'); raise SystemExit(3)"]
    with pytest.raises(SystemExit, match=r"failed with status 3; its output: .*log"):
        vs_trl_watch.watch(command, lines=tmp_path / "none", log=tmp_path / "log", environment={}, core=None)
    assert (tmp_path / "log").read_text() == "trying\n"


def test_our_phases_are_those_of_the_roles_processes_less_the_optimizer() -> None:
    spans = [
        Interval(10.0, 12.0, {"RolloutWorker": 0.5, "PolicyWorker": 1.0, "EncoderWorker": 0.25, "driver": 0.1}),
        Interval(12.0, 14.0, {"RolloutWorker": 0.5, "PolicyWorker": 1.0, "ReferenceWorker": 0.5, "Ray": 0.3}),
    ]
    timings = [{"time": 9.0, "cpu_s": 5.0}, {"time": 12.0, "cpu_s": 0.125}, {"time": 13.0, "cpu_s": 0.125}]
    assert vs_trl_report.our_phases(spans, timings) == pytest.approx(
        {
            "generate": 1.0,
            "score": 0.5,
            "reprocess": 0.25,
            "forward + backward": 1.75,
            "optimizer": 0.25,
            "other": 0.4,
        }
    )


def test_the_peers_phases_are_its_timers_and_what_they_leave_over() -> None:
    spans = [Interval(0.0, 5.0, {"driver": 4.0}), Interval(5.0, 9.0, {"driver": 4.0})]
    rows = [
        {"cpu_s": {"generate": 1.0}},
        {"cpu_s": {"generate": 2.0, "forward + backward": 2.0}},
        {"cpu_s": {"generate": 3.0, "forward + backward": 4.0, "optimizer": 0.5}},
    ]
    phases = vs_trl_report.peer_phases(spans, rows)
    assert phases == {
        "generate": 2.0,
        "score": 0.0,
        "reprocess": 0.0,
        "forward + backward": 4.0,
        "optimizer": 0.5,
        "other": 1.5,
    }


def _burn(cpu_s: float) -> None:
    until = time.process_time() + cpu_s
    while time.process_time() < until:
        pass


def test_time_inside_a_phase_that_another_calls_counts_once() -> None:
    phases = vs_trl_peer.Phases()
    inner = phases.timed("generate", lambda: _burn(0.05))

    def outer() -> None:
        _burn(0.02)
        inner()
        _burn(0.02)

    phases.timed("reprocess", outer)()
    _burn(0.05)  # in no phase
    assert phases.cpu_s == pytest.approx({"generate": 0.05, "reprocess": 0.04}, abs=0.02)


def test_a_function_shared_by_two_phases_belongs_to_the_one_that_calls_it() -> None:
    phases = vs_trl_peer.Phases()
    logprobs = phases.timed("score", lambda: _burn(0.03), within="forward + backward")
    phases.timed("forward + backward", logprobs)()
    assert set(phases.cpu_s) == {"forward + backward"}
    logprobs()
    assert phases.cpu_s == pytest.approx({"forward + backward": 0.03, "score": 0.03}, abs=0.015)


def _run(name: str, wall_s: float, cpu_s: float, beta: float = 0.0) -> Run:
    phases = {phase: 0.125 for phase in vs_trl_report.PHASES}
    return Run(name, beta, samples=64, wall_s=wall_s, cpu_s=cpu_s, phases=phases, completion_length=15.5)


RUNS = [
    _run("Polyphony", 1.0, 2.0),
    _run("TRL", 8.0, 8.0),
    _run("TRL", 4.0, 4.0),
    _run("Polyphony", 2.0, 1.0),
    _run("TRL", 4.0, 8.0),
    _run("Polyphony", 1.0, 1.0),
]


def test_each_pair_that_ran_in_turns_gives_a_ratio_and_their_median_is_the_ratio() -> None:
    entry = vs_trl_report.compare(RUNS)["0"]
    assert entry["Polyphony"]["samples_per_s"] == {"median": 64.0, "least": 32.0, "most": 64.0}
    assert entry["TRL"]["samples_per_cpu_s"] == {"median": 8.0, "least": 8.0, "most": 16.0}
    assert entry["ratio"]["samples_per_s"] == {"median": 4.0, "least": 2.0, "most": 8.0}
    assert entry["ratio"]["samples_per_cpu_s"] == {"median": 4.0, "least": 4.0, "most": 8.0}
    assert entry["Polyphony"]["share_of_core"] == 1.0


def test_the_tables_have_both_sides_and_the_ratio_for_each_kl_weight() -> None:
    runs = [*RUNS, _run("Polyphony", 2.0, 2.0, 0.04), _run("TRL", 8.0, 8.0, 0.04)]
    text = vs_trl_report.markdown(vs_trl_report.compare(runs))
    speeds, phases = (part.splitlines() for part in text.split("\n\nCPU-seconds a step:\n\n"))
    for table in (speeds, phases):
        assert len({line.count("|") for line in table}) == 1
    assert speeds[2] == "| 0 | Polyphony | **64.0** (32.0 to 64.0) | **64.0** (32.0 to 64.0) | 100% | 15.50 |"
    assert speeds[4] == "| 0 | **ratio** | **4.00x** (2.00 to 8.00) | **4.00x** (4.00 to 8.00) |  |  |"
    assert [line.split("|")[1].strip() for line in speeds[2:]] == ["0"] * 3 + ["0.04"] * 3
    assert phases[-1] == "| 0.04 | TRL | 0.125 | 0.125 | 0.125 | 0.125 | 0.125 | 0.125 | 0.750 |"


def test_a_core_that_was_shared_is_told() -> None:
    quiet = [_run("Polyphony", 1.0, 0.95), _run("TRL", 8.0, 7.5)]
    assert vs_trl_report.caveats(vs_trl_report.compare(quiet)) == []
    busy = [_run("Polyphony", 1.0, 0.95), _run("TRL", 8.0, 4.0)]
    (line,) = vs_trl_report.caveats(vs_trl_report.compare(busy))
    assert "a side got 50% of it" in line and "Go by samples/CPU-s" in line
    ratio = next(line for line in vs_trl_report.markdown(vs_trl_report.compare(busy)).splitlines() if "ratio" in line)
    assert ratio == "| 0 | **ratio** | none: the core was shared | **4.21x** (4.21 to 4.21) |  |  |"


def test_only_what_an_earlier_call_left_is_removed(tmp_path: Path) -> None:
    for name in ("checkpoint", "polyphony-0-0", "peer-0-0", "mine"):
        (tmp_path / name).mkdir()
    vs_trl.Place(tmp_path, tmp_path, None).clear()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_differences_name_packages_and_parameters_that_are_not_the_same() -> None:
    ours: dict[str, Any] = {"versions": {"torch": "2", "ray": "3"}, "attention": "sdpa", "trainable": 5, "frozen": 2}
    same = vs_trl_report.differences(ours=ours, peer=ours, group_size=8)
    peer = {**ours, "versions": {"torch": "2", "trl": "1"}, "trainable": 7, "frozen": 0}
    lines = vs_trl_report.differences(ours=ours, peer=peer, group_size=8)
    assert lines[:3] == [
        "Packages, ours and TRL's: ray 3 and none, trl none and 1.",
        "Trained parameters: 5 and 7.",
        "Frozen parameters: 2 and 0.",
    ]
    assert lines[3:] == same


def test_a_section_states_date_machine_command_work_tables_and_differences(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n")
    vs_trl_report.append_result(results, command="python -m x", work="some", table="| a |", unlike=["One.", "Two."])
    text = results.read_text()
    assert text.startswith("# Results\n\n## 20") and ": vs_trl\n\n- Machine: " in text
    assert text.endswith("- Command: `python -m x`\n- Work: some\n\n| a |\n\nWhat differs:\n\n- One.\n- Two.\n")


def test_both_sides_give_the_same_reward() -> None:
    texts = ["Red  ring", "a much longer answer than was asked for", ""]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    rewards = vs_trl_peer.length_reward(completions, ["red ring ab", "red ring ab", ""])
    assert rewards == [0.0, -1.0, 0.0]
    normal = "a longer answer"
    (reward,) = vs_trl_peer.length_reward([[{"content": " A longer\nanswer"}]], ["red ring ab"])
    assert reward == length_reward(length=len(normal), target=11) == pytest.approx(-4 / 11)


def test_prompts_are_the_same_whatever_their_order_and_number() -> None:
    assert vs_trl_peer.digest([[1, 2], [3]]) == vs_trl_peer.digest([[3], [1, 2], [3]])
    assert vs_trl_peer.digest([[1, 2], [3]]) != vs_trl_peer.digest([[1, 2, 3]])


def test_pictures_are_scaled_and_nothing_else_changes() -> None:
    picture = encode_png(np.zeros((16, 24, 3), np.uint8))
    prompt = Prompt("a", "scene", (Message("user", "<image>?"),), (Medium(MediaKind.IMAGE, picture),), "x", "x")
    scaled = vs_trl.scaled(prompt, 32)
    data = scaled.media[0].data
    assert data is not None and Image.open(io.BytesIO(data)).size == (32, 32)
    assert (scaled.id, scaled.messages, scaled.answer) == (prompt.id, prompt.messages, prompt.answer)


def test_the_peer_gets_our_prompts_in_the_order_in_which_we_draw_them(tmp_path: Path) -> None:
    place = vs_trl.Place(tmp_path / "out", tmp_path, None)
    setup = vs_trl.prepare(place, WORK)
    ours, peer = (PromptTable(place.data / f"{name}.parquet").infos() for name in ("train", "peer"))
    order = Order(Layout.read(str(place.data), "train"), seed=vs_trl.SEED, batch_rows=WORK.prompts)
    drawn = order.rows(0, WORK.num_steps * WORK.prompts)
    assert [info.id for info in peer] == [ours[row].id for row in drawn]
    assert len(set(setup["digests"])) == WORK.num_steps == 4
    assert setup["trainable"] > setup["frozen"] > 0 and setup["towers"] == ["model.visual."]
    assert "sdpa attention" in WORK.describe(setup, repeats=3)


def test_our_recipe_is_the_work_that_was_asked_for(tmp_path: Path) -> None:
    place = vs_trl.Place(tmp_path, tmp_path, None)
    recipe = load_recipe(None, vs_trl.our_overrides(place, WORK, tmp_path / "run", beta=0.04))
    assert recipe.rlhf.num_steps == 4 and recipe.rlhf.prompts_per_step == 2 and recipe.rlhf.group_size == 4
    assert recipe.rlhf.reward_weights == {RewardName.LENGTH: 1.0}
    kl = recipe.rlhf.algorithm.kl
    assert (kl.weight, kl.place, kl.estimator) == (0.04, KlPlace.LOSS, KlEstimator.K3)
    assert recipe.rlhf.algorithm.num_minibatches == recipe.rlhf.algorithm.num_epochs == 1


def test_a_missing_environment_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no environment there; make it with --setup"):
        vs_trl.main(["--venv", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
