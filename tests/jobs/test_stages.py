"""All stages in a row, as a user runs them, on both architectures; and what bad input does to them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from actors.loop.crew import crew_of
from actors.loop.door import Door
from actors.roles.encoder import Needs
from jobs import quickstart, rlhf, sft
from jobs.command import main
from pipeline.config import load_recipe
from pipeline.data.media import encode_wav
from pipeline.data.schema import to_row
from pipeline.data.table import PreferenceTable, PromptTable, Quarantine, TooManyBadRows, write_prompts
from pipeline.feedback.database import Database
from pipeline.feedback.store import FeedbackStore
from pipeline.records import Audio, MediaKind, Medium, Message, Prompt, RaterKind
from tests.jobs.small import curve

TINY_RUN = (
    "cluster.device=cpu",
    "data.num_readers=1",
    "prepare={train_rows: 16, validation_rows: 2, test_rows: 3}",
    "sft={num_steps: 3, batch_size: 8, micro_batch_tokens: 200}",
    "preferences={num_prompts: 64, error_rate: 0.1}",
    "reward_model={num_steps: 2, batch_size: 4}",
    "rlhf={num_steps: 2, prompts_per_step: 6, group_size: 2, checkpoints: {save_every: 2}}",
    "evaluate={samples_per_prompt: 1, browser_rows: 6}",
)


@pytest.mark.usefixtures("empty_ray")
@pytest.mark.parametrize(
    ("architecture", "tasks", "policy_cpus", "share_prefix", "num_ranks", "has_people"),
    [
        # All workers fit beside each other, and start ahead of their stages. Some prompts have several turns.
        (
            "qwen2_5_omni_thinker",
            ["digit", "speech", "sum", "video", "scene", "text", "assistant", "events"],
            0.2,
            True,
            2,
            False,
        ),
        # They do not fit, and start with their stages; nor does a prompt's state stay for its completions. The rating
        # page is there meanwhile.
        ("qwen2_5_vl", ["digit", "video", "scene", "text"], 7.0, False, 1, True),
    ],
)
def test_the_stages_run_unchanged_on_every_architecture(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    architecture: str,
    tasks: list[str],
    policy_cpus: float,
    share_prefix: bool,
    num_ranks: int,
    has_people: bool,
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    recipe = load_recipe(
        None,
        [
            *TINY_RUN,
            f"run.directory={tmp_path}",
            f"model.tiny_architecture={architecture}",
            f"model.share_prefix={share_prefix}",
            f"prepare.tasks={tasks}",
            f"rlhf.policy.cpus_per_worker={policy_cpus}",
            *(f"{stage}.num_workers={num_ranks}" for stage in ("sft", "reward_model")),
            f"feedback={{enabled: {has_people}, port: {port}, offered_share: 1, refit: {{enabled: false}}}}",
        ],
    )
    report = quickstart.run(recipe)
    assert (f"http://localhost:{port}/#invitation=" in capfd.readouterr().out) == has_people
    if has_people:
        store = FeedbackStore(Database(recipe.feedback_url), recipe.feedback_media)
        assert store.num_items()["waiting"] > 0
        store.database.close()

    assert report.stat().st_size > 50_000
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) >= {"total_s", "stage_s", "seed", "tasks", "overall", "counts"}
    assert list(summary["stage_s"]) == ["prepare", "sft", "reward_model", "rlhf", "evaluate"]
    assert set(summary["tasks"]) == set(tasks)
    for task in summary["tasks"].values():
        assert set(task["sft"]) >= {"true_reward", "learned_reward"}
        assert set(task["rlhf"]) >= {"true_reward", "learned_reward", "kl"}
        assert task["contains_gain"].keys() >= {"value", "low", "high"} and task["any_of_k"]["k"] == 1
        assert task["demonstrator"]["contains"] == 1.0
        assert (task["swapped_gap"] is None) == (task["modalities"] == ["text"])
        assert (
            (task["sft"]["swapped_gap"] is None) == (task["sft"]["blind_gap"] is None) == ("text" in task["modalities"])
        )
    assert summary["demonstrator_task"] is None and summary["counts"]["rows_without_swap"] == 0
    assert summary["counts"]["quarantined"] == 0
    assert summary["reward_parts"].keys() == {"rlhf"}
    assert summary["reward_parts"]["rlhf"].keys() == recipe.rlhf.rewards.keys()
    preferences = PreferenceTable(tmp_path / "preferences.parquet").pairs()
    assert {item.rater_kind for item in preferences} == {RaterKind.SCRIPTED}
    assert "scripted (right, then finished, then plain; error rate 0.1)" in report.read_text()
    losses = [row["loss"] for row in curve(recipe, "sft")]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert (tmp_path / "tensorboard" / "rlhf").is_dir()


@pytest.mark.usefixtures("empty_ray")
def test_bad_rows_go_to_a_counted_quarantine_and_too_many_stop_the_job(
    tmp_path: Path, tiny_checkpoint: Path, demo_data: Path
) -> None:
    good = PromptTable(demo_data / "train.parquet")
    prompts = [row for row in good.read([info.id for info in good.infos()][:16]) if isinstance(row, Prompt)]
    silence = encode_wav(Audio(samples_of(0), 16_000))
    bad = [
        _prompt("corrupt", "<image>What is this?", Medium(MediaKind.IMAGE, b"\x89PNG no picture")),
        _prompt("silent", "<audio>What is said?", Medium(MediaKind.AUDIO, silence)),
    ]
    write_prompts(tmp_path / "data" / "train.parquet", (to_row(prompt, ()) for prompt in [*prompts, *bad]))
    settings = [
        "cluster.device=cpu",
        f"run.directory={tmp_path / 'run'}",
        f"data.path={tmp_path / 'data'}",
        f"model.path={tiny_checkpoint}",
        "sft={num_steps: 5, batch_size: 4}",
    ]
    recipe = load_recipe(None, [*settings, "data.max_bad_fraction=0.5"])
    with crew_of(recipe) as crew:
        sft.run(recipe, crew=crew)
        # The same workers and rows, and this time too many.
        with pytest.raises(TooManyBadRows, match=r"2 of 18 rows were refused .*data\.max_bad_fraction is 0\.01"):
            door = Door(
                crew.roles({"encoder": tiny_checkpoint}),
                load_recipe(None, settings),
                "train",
                stage="again",
                needs=Needs(),
            )
            door.admit([info.id for info in door.datasets.infos()])
    refused = Quarantine.read(tmp_path / "run" / "quarantine" / "sft_train.parquet")
    assert refused.counts() == {"corrupt_image": 1, "sound_too_short": 1}
    last = curve(recipe, "sft")[-1]
    assert last["counts/quarantined:corrupt_image"] == last["counts/quarantined:sound_too_short"] == 1
    assert (last["data/rows/data"], last["data/epoch/data"]) == (20, 20 / 18)
    assert last["counts/answers_without_tokens"] == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rlhf.num_stepz=3", "rlhf.num_stepz: unknown key; did you mean 'num_steps'?"),
        ("rlhf.policy.zero_stage=7", "rlhf.policy.zero_stage: Input should be less than or equal to 3 (got 7)"),
    ],
)
def test_a_mistake_in_the_command_is_one_message(override: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["rlhf", override])
    with pytest.raises(SystemExit) as ended:
        main(rlhf.run, rlhf.__doc__)
    assert message in str(ended.value)


def test_a_command_ends_with_that_message_and_without_a_traceback() -> None:
    job = subprocess.run([sys.executable, "-m", "jobs.rlhf", "rlhf"], capture_output=True, text=True, check=False)
    assert job.returncode == 1
    assert "override 'rlhf': write section.field=value" in job.stderr and "Traceback" not in job.stderr


def test_help_documents_every_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["rlhf", "--help"])
    with pytest.raises(SystemExit):
        main(rlhf.run, rlhf.__doc__)
    shown = capsys.readouterr().out
    assert "rlhf.algorithm.kl.weight: float = 0.05" in shown
    assert "0 leaves the reference out altogether" in shown


def samples_of(num_samples: int):
    import numpy as np

    return np.zeros(num_samples, np.float32)


def _prompt(name: str, question: str, medium: Medium) -> Prompt:
    return Prompt(name, "bad", (Message("user", question),), (medium,), "nothing")
