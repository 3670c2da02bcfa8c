"""The loop itself: real actors, real DeepSpeed worlds, the tiny omni model, all modalities in every step."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
from sqlalchemy import select

from actors.loop import validation
from actors.loop.metrics import COUNTED, gauge_of
from jobs import rlhf
from pipeline.config import Recipe
from pipeline.data.datasets import Datasets
from pipeline.feedback.database import Database
from pipeline.feedback.store import FeedbackStore, item_of
from pipeline.feedback.tables import Items
from pipeline.records import Prompt, Rollout
from tests.jobs.ready import ReadyWorkers
from tests.jobs.small import MakeRecipe, curve, small_recipe

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def one_worker(
    workers: ReadyWorkers, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, demo_data: Path
) -> Recipe:
    """A finished run with one worker a role."""
    offers = ("feedback.enabled=true", "feedback.offered_share=1", "feedback.refit.enabled=false")
    recipe = small_recipe(tmp_path_factory.mktemp("one"), tiny_checkpoint, demo_data, *offers)
    rlhf.run(recipe, crew=workers.crew(recipe))
    return recipe


def test_a_run_learns_from_every_modality_and_leaves_a_checkpoint_that_loads(one_worker: Recipe) -> None:
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    rows = curve(one_worker)
    assert [row["step"] for row in rows] == [0, 1, 2]
    # Before the first update policy, reference and rollout hold the same weights.
    assert abs(rows[0]["kl/reference"]) < 1e-5
    assert abs(rows[0]["policy/ratio"] - 1) < 0.1
    assert rows[-1]["policy/grad_norm"] > 0 and rows[-1]["critic/grad_norm"] > 0
    target = one_worker.checkpoint("rlhf")
    AutoModelForMultimodalLM.from_pretrained(target)
    AutoProcessor.from_pretrained(target)


def test_completions_of_every_step_are_offered_to_people_with_their_media(one_worker: Recipe) -> None:
    store = FeedbackStore(Database(one_worker.feedback_url), one_worker.feedback_media)
    with store.database.read() as connection:
        items = [item_of(row) for row in connection.execute(select(Items))]
    store.database.close()
    assert {item.step for item in items} == {0, 1, 2}
    assert curve(one_worker, whole=True)[-1]["feedback/refused"] == 0
    infos = {info.id: info for info in Datasets(one_worker.datasets, "train").infos()}
    for item in items:
        assert {medium.kind for medium in item.media} == set(infos[item.prompt_id].modalities)
        assert all(store.medium(medium.key)[0].is_file() for medium in item.media)
        assert {each.weights_version for each in item.candidates} == {item.step}
        assert all(each.token_ids and each.score is not None for each in item.candidates)


def test_the_dashboard_asks_for_nothing_that_a_run_does_not_export(one_worker: Recipe) -> None:
    board = (Path(__file__).parents[2] / "deploy" / "grafana" / "polyphony.json").read_text()
    asked = set(re.findall(r"ray_(polyphony_\w+)", board))
    logged = {name for row in curve(one_worker, whole=True) for name in row}
    exported = {gauge_of(name)[0] for name in logged}
    # What was lost is told when something was; Prometheus has a suffix for what only grows.
    assert {name.removesuffix("_total") for name in asked} <= exported | {*COUNTED}
    by_role = {f"polyphony_{name}" for name in ("time_s", "wait_s", "busy", "phase_s", "pool_workers", "queue_tasks")}
    assert by_role < asked & exported


def test_the_phases_of_a_step_are_all_of_it_and_no_role_is_at_work_for_longer(one_worker: Recipe) -> None:
    before_s = 0.0
    for row in curve(one_worker, whole=True):
        phases = sum(value for name, value in row.items() if name.startswith("phase/"))
        assert 0.8 * row["time/step_s"] < phases <= row["time/step_s"]
        for role in ("rollout", "reward", "reference", "critic", "policy", "driver"):
            assert 0 < row[f"busy/{role}"] <= 1, role
            if role != "driver" and row["step"]:  # before the first step they waited for the run to begin
                # From its last call in the step before.
                assert 0 < row[f"wait/{role}_s"] <= 1.5 * (before_s + row["time/step_s"]), role
        before_s = row["time/step_s"]
        # Policy and critic learn at the same time.
        assert max(row["time/policy_update_s"], row["time/critic_update_s"]) <= row["phase/update_s"]
        assert row["time/rollout_s"] <= row["phase/generate_s"] + row["phase/draw_s"]


def test_a_checkpoint_of_the_last_step_is_complete(one_worker: Recipe) -> None:
    newest = one_worker.run.directory / "checkpoints" / "rlhf_steps" / "step-000003"
    state = json.loads((newest / "state.json").read_text())
    assert state["step"] == 3 and state["kl"]["weight"] == one_worker.rlhf.algorithm.kl.weight
    assert state["cursor"] == 3
    assert set(state["metrics"]) >= {"reward/mean", "policy/loss", "critic/loss"}
    files = {file["name"] for file in json.loads((newest / "manifest.json").read_text())["files"]}
    assert files == {"state.json", *(f"{role}/rank-00000-000.safetensors" for role in ("policy", "critic"))}


def test_a_run_that_reached_its_target_and_is_resumed_without_one_gives_the_numbers_of_one_that_was_never_evaluated(
    one_worker: Recipe,
    workers: ReadyWorkers,
    make_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    metric = "validation/greedy_exact_match"
    # An untrained model gets nothing right: what it is worth after each step is said here.
    worth = {0: 0.1, 1: 0.9, 2: 0.3, 3: 0.2}

    def measured(infos: Any, *, sampled: Sequence[Rollout], greedy: Sequence[Rollout]) -> dict[str, float]:
        assert len(infos) == 4 and [len(rollout.completions) for rollout in sampled] == [2] * 4
        version = greedy[0].completions[0].weights_version
        return {**scored(infos, sampled=sampled, greedy=greedy), metric: worth[version]}

    scored = validation.measured
    monkeypatch.setattr(validation, "measured", measured)
    evaluating = ("rlhf.evaluate_every=1", "rlhf.validation={num_prompts: 4, samples_per_prompt: 2, stop_at: 0.8}")
    stopped = make_recipe(*evaluating)
    target = rlhf.run(stopped, crew=workers.crew(stopped))
    assert "the run ends after step 1 of 3: " in capfd.readouterr().out
    rows = curve(stopped)
    assert [row["step"] for row in rows] == [0, 1]
    assert [row[metric] for row in rows] == [0.1, 0.9] and "reward/mean" not in rows[1]
    first_weights = _weights(target)
    rlhf.run(stopped, resume=True)
    assert "--resume: the run ended after step 1, nothing is left to do" in capfd.readouterr().out
    assert curve(stopped) == rows

    best = f"rlhf.checkpoints={{best_metric: {metric}, export: best, save_every: 2, keep_last: 1}}"
    resumed = make_recipe(*evaluating, "rlhf.validation.stop_at=null", best)
    rlhf.run(resumed, resume=True, crew=workers.crew(resumed))
    rows = curve(resumed)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row[metric] for row in rows] == list(worth.values())
    learning = [{name: value for name, value in row.items() if "validation" not in name} for row in rows]
    assert learning[:3] == curve(one_worker)
    # The best was saved because it ended the first run, is kept since, and is handed on.
    assert _weights(target) == first_weights != _weights(one_worker.checkpoint("rlhf"))
    assert json.loads((resumed.run.directory / "rlhf_end.json").read_text())["reason"] == "num_steps"


def _weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


def test_two_ranks_give_the_curve_of_one(one_worker: Recipe, workers: ReadyWorkers, make_recipe: MakeRecipe) -> None:
    # At ZeRO 1; stages 2 and 3 are the matter of test_mixes.py and test_checkpoints.py.
    recipe = make_recipe(
        *(f"rlhf.{role}.num_workers=2" for role in ("policy", "critic")),
        *(f"rlhf.{role}.zero_stage=1" for role in ("policy", "critic")),
    )
    rlhf.run(recipe, crew=workers.crew(recipe))
    for one, two in zip(curve(one_worker), curve(recipe), strict=True):
        for name in ("policy/loss", "critic/loss", "policy/entropy", "policy/grad_norm", "reward/mean", "kl/reference"):
            assert two[name] == pytest.approx(one[name], abs=1e-5, rel=1e-5), (name, one["step"])


def test_rewards_of_the_process_are_the_same_in_sum_and_teach_token_by_token(
    one_worker: Recipe, workers: ReadyWorkers, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe("rlhf.algorithm.process_rewards=true", "rlhf.num_steps=1")
    rlhf.run(recipe, crew=workers.crew(recipe))
    (plain, *_), (row, *_) = curve(one_worker, whole=True), curve(recipe, whole=True)
    for name in ("reward/mean", "reward/learned", "kl/reference"):
        assert row[name] == plain[name], name
    assert row["advantage/std"] != pytest.approx(plain["advantage/std"], rel=1e-3)
    assert "time/process_score_s" in row and "time/process_score_s" not in plain


def test_grpo_runs_without_a_critic_and_kl_in_the_loss(workers: ReadyWorkers, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        # As the untrained model gets nothing right, patience ends the run after two steps.
        "rlhf.num_steps=9",
        "rlhf.evaluate_every=1",
        "rlhf.validation={num_prompts: 8, patience: 2}",
        # Towers that learn run in the rollout too.
        *(f"rlhf.policy.parts.{part}.mode=train" for part in ("vision_tower", "audio_tower", "projector")),
        "rlhf.algorithm.advantage=grpo",
        "rlhf.algorithm.kl={place: loss, estimator: k3, weight: 0.1}",
        "rlhf.rewards={exact_match: 1.0, wer: 0.5, length: 0.1}",
    )
    rlhf.run(recipe, crew=workers.crew(recipe))
    *rows, ended = curve(recipe)
    assert len(rows) == 2
    assert "policy/kl_loss" in rows[-1] and not any(name.startswith("critic") for name in rows[-1])
    assert {"reward/exact_match", "reward/wer", "reward/length"} <= rows[-1].keys()
    assert (ended["step"], ended["data/validation_prompts"], ended["validation/any_of_k"]) == (2, 8, 0)
    assert json.loads((recipe.run.directory / "rlhf_end.json").read_text())["reason"] == "patience"


def test_without_a_kl_weight_there_is_no_reference(make_recipe: MakeRecipe) -> None:
    from actors.loop.crew import loop_paths

    paths = loop_paths(make_recipe("rlhf.algorithm.kl.weight=0", "rlhf.rewards={exact_match: 1.0}"))
    assert set(paths) == {"encoder", "rollout", "policy", "critic"}


def test_a_missing_checkpoint_is_named(make_recipe: MakeRecipe) -> None:
    import shutil

    recipe = make_recipe()
    shutil.rmtree(recipe.checkpoint("reward_model"))
    with pytest.raises(FileNotFoundError, match=r"reward: no checkpoint in .*reward_model"):
        rlhf.run(recipe)


def test_media_are_encoded_and_prompts_processed_once_and_workers_go_on_to_the_next_stage_with_what_they_hold(
    make_recipe: MakeRecipe,
) -> None:
    from actors.loop.crew import crew_of
    from actors.loop.door import Door
    from actors.roles.encoder import EncoderWorker, Needs, fetch_encoded
    from pipeline.data.table import PromptTable

    recipe = make_recipe("rlhf.encoder.num_workers=2")
    base, sft = recipe.checkpoint("base"), recipe.checkpoint("sft")
    with crew_of(recipe) as crew:
        crew.plan(["rollout"])
        crew.start_next()
        first = crew.roles({"encoder": sft})
        door = Door(first, recipe, "train", stage="test", needs=Needs())
        ids = [info.id for info in door.datasets.infos()]
        once = door.admit(ids)
        again = door.admit(list(reversed(ids)))
        calls = sum(first.encoder.on_all(EncoderWorker.num_tower_calls))
        encoded = fetch_encoded(once)
        second = crew.roles({"encoder": sft, "rollout": sft})
        with crew_of(recipe, crew) as same:
            assert same is crew
        assert second.encoder is first.encoder
        later = Door(second, recipe, "train", stage="test", needs=Needs()).admit(ids)
        assert [prompt.stored for prompt in later] == [prompt.stored for prompt in once]
        # Another checkpoint has other towers: nothing that the first ones encoded is used.
        third = crew.roles({"encoder": base})
        assert third.encoder.on_all(EncoderWorker.num_tower_calls) == [0, 0]
    prompts = [row for row in PromptTable(recipe.data_path / "train.parquet").read(ids) if isinstance(row, Prompt)]
    assert calls == len({medium.data for prompt in prompts for medium in prompt.media})
    assert {prompt.stored for prompt in once} == {prompt.stored for prompt in again}
    assert [prompt.id for prompt in encoded] == ids
    assert all(len(prompt.media) == len(row.media) for prompt, row in zip(encoded, prompts, strict=True))


def test_completions_of_stale_weights_stop_the_loop() -> None:
    import numpy as np

    from actors.loop.sampler import check_fresh
    from pipeline.records import Completion, FinishReason, Rollout

    tokens, logprobs = np.array([1]), np.zeros(1, np.float32)
    fresh, stale = (Completion(tokens, logprobs, FinishReason.STOP, version, "") for version in (3, 2))
    check_fresh([Rollout("a", (fresh, fresh))], oldest=3, newest=3)
    check_fresh([Rollout("a", (fresh, stale))], oldest=2, newest=3)
    with pytest.raises(RuntimeError, match=r"versions \[2, 3\], not 3 to 3"):
        check_fresh([Rollout("a", (fresh, stale))], oldest=3, newest=3)


def test_generation_that_runs_ahead_is_stale_up_to_the_next_checkpoint(
    workers: ReadyWorkers, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe(
        "rlhf.staleness=1",
        # Evaluations have the newest weights all the same.
        "rlhf.evaluate_every=1",
        "rlhf.validation={num_prompts: 2, samples_per_prompt: 1}",
        "rlhf.algorithm={advantage: rloo, kl: {weight: 0}, off_policy: {correction: token}}",
        # An untrained model gets nothing right; noise differs within every group, so that weights change each step.
        "rlhf.rewards={noise: 1.0}",
        "rlhf.policy.learning_rate=2e-3",
    )
    rlhf.run(recipe, crew=workers.crew(recipe))
    *rows, _ = curve(recipe)
    # A checkpoint stands after two steps, and nothing is sampled beyond it.
    assert [row["staleness"] for row in rows] == [0, 1, 0]
    fresh, stale, again = (row["mismatch/mean"] for row in rows)
    assert max(fresh, again) < 1e-5 < 1e-4 < stale
    assert all("policy/importance_weight" in row for row in rows)


def test_all_roles_at_two_workers_and_three_rollout_workers_run_on_two_nodes(make_recipe: MakeRecipe) -> None:
    from ray.cluster_utils import Cluster
    from ray.util.placement_group import placement_group_table

    from actors.loop.crew import crew_of
    from jobs.command import connect

    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=4)
        cluster.wait_for_nodes()
        connect(address=cluster.address)
        roles = ("encoder", "policy", "critic", "reference", "reward")
        recipe = make_recipe(
            "rlhf.num_steps=2",
            "cluster.placement=apart",
            "rlhf.rollout.num_workers=3",
            # 13 workers of half a CPU do not fit on one node of four: both nodes must be used.
            *(f"rlhf.{role}.cpus_per_worker=0.5" for role in (*roles, "rollout")),
            *(f"rlhf.{role}.num_workers=2" for role in roles),
        )
        with crew_of(recipe) as crew:
            rlhf.run(recipe, crew=crew)
            groups = placement_group_table().values()
            used = {node for group in groups for node in group["bundles_to_node_id"].values()}
    finally:
        ray.shutdown()
        cluster.shutdown()
        connect(address="local", num_cpus=8, include_dashboard=False)
    assert [row["step"] for row in curve(recipe)] == [0, 1]
    assert len(used) == 2
