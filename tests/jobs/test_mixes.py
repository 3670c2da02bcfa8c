"""Mixes of modalities over ranks: who holds what changes nothing, also where towers learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from actors.fleet.answer import gather
from actors.loop.crew import Roles, loop_needs
from actors.loop.sampler import generate
from actors.loop.step import sync_weights
from actors.roles.encoder import PromptRef
from actors.roles.policy import LearningWorker, Minibatch, PolicyWorker, Row
from actors.roles.scoring import score
from benchmarks.reusable import ReusableCritic
from jobs import rlhf
from pipeline.algorithms.aggregation import Normalisers
from pipeline.config import Recipe
from pipeline.data.datasets import Datasets, RowRef
from pipeline.records import Completion, Experience
from tests.jobs.ready import LEARNERS, ReadyWorkers
from tests.jobs.small import MakeRecipe, curve

pytestmark = pytest.mark.usefixtures("local_ray")

RULES_ONLY = ("rlhf.rewards={wer: 1.0, length: 1.0}", "rlhf.algorithm.kl.weight=0", "rlhf.parity.num_rows=0")
TOWERS = "{vision_tower: {mode: train}, audio_tower: {mode: lora}, projector: {mode: train}}"
TOWERS_LEARN = tuple(f"rlhf.{role}.parts={TOWERS}" for role in LEARNERS)
GROUP_SIZE, NUM_TOKENS = 2, 5


def two_ranks(stage: int) -> tuple[str, ...]:
    return tuple(f"rlhf.{role}.{name}" for role in LEARNERS for name in ("num_workers=2", f"zero_stage={stage}"))


def admitted(roles: Roles, recipe: Recipe, tasks: Sequence[str]) -> list[PromptRef]:
    """A prompt of each of the built-in tasks, as the roles of `recipe` need it; the same task again gives another."""
    ids = [f"train-{task}-{tasks[:place].count(task):05d}" for place, task in enumerate(tasks)]
    rows = [RowRef(key) for key in Datasets(recipe.datasets, "train").keys(ids)]
    encoding = roles.encode(rows, "train", loop_needs(recipe))
    return [prompt for prompt in encoding.result() if isinstance(prompt, PromptRef)]


def experience_of(prompt: PromptRef, seed: int) -> Experience:
    """A group of random tokens, with random advantages and returns."""
    random = np.random.default_rng(seed)
    mask = np.arange(NUM_TOKENS) < np.array([[NUM_TOKENS], [NUM_TOKENS - 2]])

    def drawn(mean: float, scale: float) -> NDArray[np.float32]:
        return (mask * random.normal(mean, scale, mask.shape)).astype(np.float32)

    # The vocabulary is of 1,024 tokens: an untrained policy gives each about exp(-7).
    logprobs = drawn(-7.0, 0.05)
    return Experience(
        prompt_id=prompt.id,
        token_ids=mask * random.integers(20, 500, mask.shape),
        mask=mask,
        behaviour_logprobs=logprobs,
        proximal_logprobs=logprobs,
        reference_logprobs=logprobs,
        values=drawn(0.0, 1.0),
        advantages=drawn(0.0, 1.0),
        returns=drawn(0.0, 1.0),
    )


def rows_of(prompts: Sequence[PromptRef]) -> list[Row]:
    return [(prompt, experience_of(prompt, seed)) for seed, prompt in enumerate(prompts)]


def minibatches(rows: Sequence[Row], *, num_ranks: int) -> list[list[Minibatch]]:
    """Two rows an optimizer step: on one rank in one pass, on two ranks the first here and the second there."""
    shares: list[list[Minibatch]] = [[] for _ in range(num_ranks)]
    for start_of_pair in range(0, len(rows), 2):
        pair = tuple(rows[start_of_pair : start_of_pair + 2])
        num_tokens = float(sum(experience.mask.sum() for _, experience in pair))
        normalisers = Normalisers(num_tokens=num_tokens, num_completions=float(2 * GROUP_SIZE))
        passes = [(pair,)] if num_ranks == 1 else [((row,),) for row in pair]
        for share, each in zip(shares, passes, strict=True):
            share.append(Minibatch(each, normalisers))
    return shares


PAIRS = ("text", "video", "speech", "text", "text", "digit", "video", "speech", "text", "text")
"""Tasks of the rows that rank 0 and rank 1 hold, an optimizer step after the other."""


def learned(workers: ReadyWorkers, recipe: Recipe) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Metrics and parameters of policy and critic after an update on `PAIRS`."""
    path = recipe.checkpoint("sft")
    roles = workers.roles(recipe, {"encoder": path, "policy": path, "critic": path})
    assert roles.critic is not None
    rows = rows_of(admitted(roles, recipe, PAIRS))
    assert len(rows) == len(PAIRS)
    shares = minibatches(rows, num_ranks=len(roles.policy))
    answers = {
        role: world.on_each(LearningWorker.update, shares, step=0, kl_weight=0.0)
        for role, world in (("policy", roles.policy), ("critic", roles.critic))
    }
    metrics = {role: ranks[0] for role, ranks in gather(answers)[0].items()}
    return metrics, parameters_of(roles)


def parameters_of(roles: Roles) -> dict[str, Any]:
    """The parameters that learn, of policy and critic."""
    weights = roles.policy.on_all(PolicyWorker.weights, 1).result()[0]
    critic: Any = roles.critic
    return {"policy": weights.parameters, "critic": critic.on_all(ReusableCritic.trained).result()[0]}


def test_ranks_with_different_modalities_learn_what_one_rank_with_both_does(
    workers: ReadyWorkers, make_recipe: MakeRecipe
) -> None:
    expected_metrics, expected = learned(workers, make_recipe(*RULES_ONLY, *TOWERS_LEARN))
    untrained = learned_nothing(workers, make_recipe(*RULES_ONLY, *TOWERS_LEARN))
    for role in LEARNERS:
        # Every part has moved, far beyond what is allowed below.
        for part in ("visual.blocks", "visual.merger", "audio_tower", "language_model.layers"):
            names = [name for name in expected[role] if part in name]
            moved = max(float(np.abs(expected[role][name] - untrained[role][name]).max()) for name in names)
            assert moved > 2e-4, (role, part)
    for stage in (3, 2):
        metrics, found = learned(workers, make_recipe(*RULES_ONLY, *TOWERS_LEARN, *two_ranks(stage)))
        for role in LEARNERS:
            assert found[role].keys() == expected[role].keys()
            for name, array in expected[role].items():
                # Adam divides a gradient near zero by its own size, and what is rounding there with it.
                np.testing.assert_allclose(found[role][name], array, atol=4e-5, err_msg=f"{role} {stage} {name}")
            for name in ("loss", "grad_norm"):
                assert metrics[role][name] == pytest.approx(expected_metrics[role][name], abs=1e-5, rel=1e-5)


def learned_nothing(workers: ReadyWorkers, recipe: Recipe) -> dict[str, Any]:
    """Parameters of policy and critic before any update."""
    path = recipe.checkpoint("sft")
    roles = workers.roles(recipe, {"policy": path, "critic": path})
    return parameters_of(roles)


def logprobs_of(roles: Roles, prompts: Sequence[PromptRef], completions: Sequence[Sequence[Any]]) -> list[Any]:
    groups = [(prompt, [each.token_ids for each in group]) for prompt, group in zip(prompts, completions, strict=True)]
    scoring = score(roles.policy, PolicyWorker.logprobs, groups, temperature=1.0)
    return scoring.in_order(scoring.answer.result())


def largest_difference(rows: Sequence[Any], completions: Sequence[Sequence[Completion]]) -> float:
    return max(
        float(np.abs(row[: len(completion.token_ids)] - completion.behaviour_logprobs).max())
        for group, sampled in zip(rows, completions, strict=True)
        for row, completion in zip(group, sampled, strict=True)
    )


def test_rollout_and_exported_checkpoint_follow_a_policy_with_adapters(
    workers: ReadyWorkers, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    # The head stays, so that adapters are all that is learnt and PEFT's format can hold it.
    adapters = "rlhf.policy.parts={language_model: {mode: lora}, vision_tower: {mode: lora}, head: {mode: freeze}}"
    recipe = make_recipe(*RULES_ONLY, adapters, "rlhf.policy.learning_rate=1.0e-3")
    path = recipe.checkpoint("sft")
    roles = workers.roles(recipe, {"encoder": path, "rollout": path, "policy": path})
    tasks = ("text", "video", "speech", "digit", "sum")
    prompts = admitted(roles, recipe, tasks)

    def sampled() -> list[Sequence[Completion]]:
        answer = generate(roles, prompts, recipe.rlhf.sampling, group_size=GROUP_SIZE, seed=0)
        return [rollout.completions for rollout in answer.result()[0]]

    before = sampled()
    rows = rows_of(admitted(roles, recipe, PAIRS))
    for step in range(2):
        shares = minibatches(rows, num_ranks=1)
        roles.policy.on_each(PolicyWorker.update, shares, step=step, kl_weight=0.0).result()
    sync_weights(roles, 2)
    after = sampled()
    assert {each.weights_version for group in after for each in group} == {2}
    trained = logprobs_of(roles, prompts, after)
    assert largest_difference(trained, after) < 1e-5
    # The updates were no trifle: the same completions are not as likely as they were.
    assert largest_difference(logprobs_of(roles, prompts, before), before) > 0.01

    target = tmp_path / "exported"
    roles.policy.on_all(PolicyWorker.export, target).result()
    # A plain policy whose own towers run: those of the encoder are others now.
    plain = make_recipe(*RULES_ONLY, "rlhf.encoder.cache_mib=0")
    roles = workers.roles(plain, {"encoder": target, "policy": target})
    exported = logprobs_of(roles, admitted(roles, plain, tasks), after)
    for one, other in zip(trained, exported, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    check_adapter(path, target)


def check_adapter(base: Path, exported: Path) -> None:
    """PEFT's own merge of the adapter into the base gives the exported weights."""
    from peft import PeftModel
    from transformers import AutoModelForMultimodalLM

    merged: Any = PeftModel.from_pretrained(AutoModelForMultimodalLM.from_pretrained(base), exported / "adapter")
    found = merged.merge_and_unload().state_dict()
    expected: Any = AutoModelForMultimodalLM.from_pretrained(exported).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name].numpy(), tensor.numpy(), atol=1e-6, err_msg=name)


def test_a_loop_with_towers_that_learn_gives_the_same_curve_on_two_ranks(
    workers: ReadyWorkers, make_recipe: MakeRecipe
) -> None:
    rows: list[list[dict[str, Any]]] = []
    for ranks in ((), two_ranks(3)):
        recipe = make_recipe(*RULES_ONLY, *TOWERS_LEARN, "rlhf.num_steps=2", *ranks)
        rlhf.run(recipe, crew=workers.crew(recipe))
        rows.append(curve(recipe))
    assert [row["step"] for row in rows[0]] == [0, 1]
    for one, two in zip(*rows, strict=True):
        assert one["policy/grad_norm"] > 0 and one["critic/grad_norm"] > 0
        for name in ("policy/loss", "critic/loss", "policy/entropy", "policy/grad_norm", "reward/mean"):
            assert two[name] == pytest.approx(one[name], abs=1e-5, rel=1e-5), (name, one["step"])
