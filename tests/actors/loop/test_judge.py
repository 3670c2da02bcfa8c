"""Rewards of a batch and dynamic sampling, with rules alone: nobody needs a worker."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from actors.loop import judge as judging
from actors.loop.judge import Judged, check_rows, groups_of, judge, judged_batch, lacks
from actors.loop.sampler import Sampled, Sampler
from pipeline.config import ConfigError, Recipe, load_recipe
from pipeline.records import Completion, FinishReason, Rollout
from tests.actors.at_once import AtOnce
from tests.prompts import prompt_ref

ROLES = cast(Any, type("RolesWithoutRewardModel", (), {"reward": None}))()


def _rollout(name: str, *texts: str) -> Rollout:
    """A group in which each completion has as many tokens as its text has letters."""
    return Rollout(
        name,
        tuple(
            Completion(np.arange(len(text)), np.zeros(len(text), np.float32), FinishReason.STOP, 0, text)
            for text in texts
        ),
    )


def _sampled(groups: dict[str, tuple[str, ...]], greedy: tuple[str, ...] = ()) -> Sampled:
    return Sampled(
        [prompt_ref(name) for name in groups],
        [_rollout(name, *texts) for name, texts in groups.items()],
        [_rollout(name, text) for name, text in zip(groups, greedy, strict=False)],
        {"rollout": 1.0},
    )


class Batches:
    """A sampler that gives the batches it was made with, one after the other."""

    def __init__(self, *batches: dict[str, tuple[str, ...]]):
        self._left = list(batches)
        self.num_more = 0

    def take(self, step: int) -> Sampled:
        return _sampled(self._left.pop(0))

    def more(self, step: int, index: int) -> Sampled:
        assert index == self.num_more
        self.num_more += 1
        return self.take(step)


def _recipe(*overrides: str) -> Recipe:
    return load_recipe(None, ["rlhf.rewards={exact_match: 1.0}", "rlhf.algorithm.advantage=rloo", *overrides])


@pytest.fixture
def judged() -> Judged:
    """Three groups of two; the second one has equal rewards."""
    rewards = torch.tensor([0.0, 1.0, 5.0, 5.0, 3.0, 2.0])
    return Judged(
        [prompt_ref(name) for name in "abc"],
        [_rollout(name, "x", "y") for name in "abc"],
        {"exact_match": rewards * 2},
        rewards,
        torch.tensor([10.0, 11.0, 12.0]),
        Counter({"reward_failed:wer": 1}),
        {"rollout": 2.0},
    )


def test_selected_groups_come_whole_and_in_the_order_asked_for(judged: Judged) -> None:
    found = judged.select([2, 0], reason="left_out")
    assert [prompt.id for prompt in found.prompts] == [rollout.prompt_id for rollout in found.rollouts] == ["c", "a"]
    assert found.rewards.tolist() == [3.0, 2.0, 0.0, 1.0]
    assert found.parts["exact_match"].tolist() == [6.0, 4.0, 0.0, 2.0]
    assert found.greedy is not None and found.greedy.tolist() == [12.0, 10.0]
    assert found.counts == Counter({"reward_failed:wer": 1, "left_out": 1})


def test_nothing_selected_is_an_empty_batch_with_all_counted(judged: Judged) -> None:
    found = judged.select([], reason="left_out")
    assert (len(found.prompts), len(found.rewards), found.counts["left_out"]) == (0, 0, 3)


def test_nothing_left_out_counts_nothing(judged: Judged) -> None:
    assert judged.select(range(3), reason="left_out").counts == judged.counts


def test_groups_of_equal_rewards_do_not_vary(judged: Judged) -> None:
    found = judged.varied()
    assert [prompt.id for prompt in found.prompts] == ["a", "c"]
    assert found.counts["groups_without_variance"] == 1


def test_joined_batches_add_up(judged: Judged) -> None:
    found = judged.varied().joined(judged.select([1], reason="left_out"))
    assert [prompt.id for prompt in found.prompts] == ["a", "c", "b"]
    assert found.rewards.tolist() == [0.0, 1.0, 3.0, 2.0, 5.0, 5.0]
    assert found.parts["exact_match"].tolist() == (found.rewards * 2).tolist()
    assert found.greedy is not None and found.greedy.tolist() == [10.0, 12.0, 11.0]
    assert found.counts == Counter({"reward_failed:wer": 2, "groups_without_variance": 1, "left_out": 2})
    assert found.seconds == {"rollout": 4.0}


def test_an_empty_batch_can_be_joined(judged: Judged) -> None:
    found = judged.select([], reason="left_out").joined(judged)
    assert found.rewards.tolist() == judged.rewards.tolist()


def test_parts_of_a_reward_are_summed_with_their_weights() -> None:
    recipe = _recipe("rlhf.rewards={exact_match: 2.0, contains: 0.5}")
    found = judge(ROLES, recipe, _sampled({"a": ("yes", "oh yes"), "b": ("no", "yes")}))
    assert found.parts["exact_match"].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert found.parts["contains"].tolist() == [1.0, 1.0, 0.0, 1.0]
    assert found.rewards.tolist() == [2.5, 0.5, 0.0, 2.5]
    assert found.greedy is None
    assert found.seconds == {"rollout": 1.0}


def _of_tasks(**groups: tuple[str, str]) -> Sampled:
    """A group of one completion for each task: (completion, answer)."""
    refs = [prompt_ref(task, task=task, answer=answer) for task, (_, answer) in groups.items()]
    return Sampled(refs, [_rollout(task, text) for task, (text, _) in groups.items()], [], {"rollout": 1.0})


PER_TASK = "{exact_match: 1.0, wer: {weight: 0.5, tasks: [speech]}, distance: {weight: 2.0, tasks: [count]}}"


def test_a_part_of_some_tasks_is_left_out_of_the_others_and_counted() -> None:
    sampled = _of_tasks(speech=("two 3", "two three"), count=("5", "7"), digit=("4", "4"))
    found = judge(ROLES, _recipe(f"rlhf.rewards={PER_TASK}"), sampled)
    # 0 + 0.5 * 1/2; 0 + 2 * 3/5; 1.
    assert found.rewards.tolist() == pytest.approx([0.25, 1.2, 1.0])
    assert found.parts["exact_match"].tolist() == [0.0, 0.0, 1.0]
    assert [found.parts["wer"][0].item(), found.parts["distance"][1].item()] == pytest.approx([0.5, 0.6])
    assert found.parts["wer"].isnan().tolist() == [False, True, True]
    assert found.parts["distance"].isnan().tolist() == [True, False, True]
    assert found.counts == {"reward_not_applicable:wer": 2, "reward_not_applicable:distance": 2}


def test_means_are_over_the_completions_to_which_a_part_applies(judged: Judged) -> None:
    nan = np.nan
    parts = {"exact_match": torch.tensor([1.0, 0.0] * 3), "wer": torch.tensor([0.25, nan, nan, nan, nan, 0.75])}
    found = replace(judged, parts={**parts, "distance": torch.full((6,), nan)})
    assert found.means() == {"exact_match": 0.5, "wer": 0.5}


def test_distance_does_not_apply_to_answers_without_a_number() -> None:
    sampled = _of_tasks(text=("a dog", "a cat"), count=("six", "7"))
    found = judge(ROLES, _recipe("rlhf.rewards={exact_match: 1.0, distance: 1.0}"), sampled)
    assert found.rewards.tolist() == pytest.approx([0.0, 0.8])
    assert found.counts == {"reward_not_applicable:distance": 1}


class RewardModel:
    """Roles whose reward model gives these scores, one a completion."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *scores: float):
        self.reward = self
        rows = [np.array([[each, each / 4]], np.float32) for each in scores]
        scoring = SimpleNamespace(answer=AtOnce().answer([rows]), in_order=lambda results: results[0])
        monkeypatch.setattr(judging, "score", lambda *_: scoring)


def test_the_learned_reward_may_be_of_some_tasks_and_must_be_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe("rlhf.rewards={learned: {weight: 2.0, tasks: [text]}, exact_match: 1.0}")
    sampled = _of_tasks(text=("a", "b"), digit=("4", "4"))
    found = judge(cast(Any, RewardModel(monkeypatch, -1.5, 9.0)), recipe, sampled)
    assert found.rewards.tolist() == [-3.0, 1.0]
    assert found.counts == {"reward_not_applicable:learned": 1}
    assert found.uncertainty is not None and found.uncertainty.tolist() == [-1.5 / 4, 9.0 / 4]
    twice = found.joined(found.select([1], reason="left_out"))
    assert twice.uncertainty is not None and twice.uncertainty.tolist() == [-1.5 / 4, 9.0 / 4, 9.0 / 4]
    with pytest.raises(ValueError, match="1 of 2 scores of the reward model are not finite"):
        judge(cast(Any, RewardModel(monkeypatch, 0.0, np.nan)), recipe, sampled)


def test_what_people_said_is_a_part_of_the_reward_of_the_very_completion_and_of_no_other() -> None:
    recipe = _recipe("rlhf.rewards={human: 2.0, exact_match: 1.0}", "feedback.enabled=true")
    sampled = _sampled({"a": ("yes", "oh yes"), "b": ("no", "yes")})
    (_, second), (first, _) = (rollout.completions for rollout in sampled.rollouts)
    said = {("a", tuple(second.token_ids.tolist())): 0.5, ("a", tuple(first.token_ids.tolist())): -1.0}
    found = judge(ROLES, recipe, sampled, said)
    assert found.parts["human"].isnan().tolist() == [True, False, True, True]
    assert found.rewards.tolist() == [1.0, 1.0, 0.0, 1.0]
    assert found.counts == {"reward_not_applicable:human": 3}


def test_a_row_without_an_answer_is_refused_where_a_part_of_its_task_compares() -> None:
    lacking = lacks(_recipe("rlhf.rewards={learned: 1.0, wer: {weight: 1.0, tasks: [speech]}}"))
    speech, text = (prompt_ref(task, task=task, answer=None).info for task in ("speech", "text"))
    assert lacking(text) is None
    assert re.search(r"no answer.*\(wer\)", str(lacking(speech)))
    assert lacking(prompt_ref("said", task="speech", answer="yes").info) is None


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ("{exact_match: 1.0, wer: {weight: 1, tasks: [speech]}}", None),
        ("{exact_match: 1.0}", None),
        (
            "{exact_match: 1.0, wer: {weight: 1, tasks: [speech, speach]}}",
            r"rlhf\.rewards\.wer\.tasks: no row of the split train has the task 'speach'; there are digit, speech",
        ),
        ("{wer: {weight: 1, tasks: [speech]}}", r"rlhf\.rewards: no part applies to rows of the task 'digit'"),
    ],
)
def test_rewards_of_some_tasks_must_fit_the_tasks_that_there_are(rewards: str, message: str | None) -> None:
    datasets = cast(Any, SimpleNamespace(tasks=lambda: {"speech", "digit"}))
    recipe = _recipe(f"rlhf.rewards={rewards}")
    if message is None:
        check_rows(recipe, datasets, "train")
    else:
        with pytest.raises(ConfigError, match=message):
            check_rows(recipe, datasets, "train")


def test_columns_that_functions_are_told_must_be_in_some_row() -> None:
    datasets = cast(Any, SimpleNamespace(tasks=lambda: {"digit"}, further=lambda names: {"level"}))
    columns = "data.columns=[level, levle]"
    with pytest.raises(ConfigError, match=r"data\.columns=\['level', 'levle'\]: no row .* has 'levle'; mind"):
        check_rows(
            _recipe(columns, 'rlhf.rewards={mine: {weight: 1.0, function: "somewhere:reward"}}'), datasets, "train"
        )
    check_rows(_recipe(columns), datasets, "train")  # Nobody is told.


def test_greedy_completions_have_rewards_of_their_own() -> None:
    sampled = _sampled({"a": ("no", "no"), "b": ("yes", "no")}, greedy=("yes", "no"))
    found = judge(ROLES, _recipe("rlhf.algorithm.advantage=remax"), sampled)
    assert found.greedy is not None and found.greedy.tolist() == [1.0, 0.0]
    assert found.rewards.tolist() == [0.0, 0.0, 1.0, 0.0]


def test_the_penalty_on_length_is_shown_and_part_of_the_reward() -> None:
    # From 6 tokens on it grows over 4 tokens to 1 at 10.
    recipe = _recipe(
        "rlhf.sampling.max_new_tokens=10", "rlhf.algorithm.overlong_buffer=4", "rlhf.algorithm.overlong_penalty=1.0"
    )
    found = judge(ROLES, recipe, _sampled({"a": ("yes", "12345678", "1234567890")}))
    assert found.parts["overlong"].tolist() == [0.0, -0.5, -1.0]
    assert found.rewards.tolist() == [1.0, -0.5, -1.0]


def test_the_greedy_completion_is_shaped_like_the_sampled_ones_it_is_compared_with() -> None:
    # Sampled and greedy completion are the same wrong answer of 8 tokens: neither is the better one.
    recipe = _recipe(
        "rlhf.algorithm.advantage=remax", "rlhf.sampling.max_new_tokens=10", "rlhf.algorithm.overlong_buffer=4"
    )
    found = judge(ROLES, recipe, _sampled({"a": ("12345678",), "b": ("yes",)}, greedy=("12345678", "1234567")))
    assert found.greedy is not None
    assert found.rewards.tolist() == [-0.5, 1.0]
    assert found.greedy.tolist() == [-0.5, -0.25]


def test_dynamic_sampling_leaves_out_groups_that_vary_in_nothing_but_their_length() -> None:
    # Both of "a" are wrong, one is longer; of "b" one is right.
    batches = Batches({"a": ("no", "12345678"), "b": ("yes", "no")}, {"c": ("yes", "12345678"), "d": ("no", "no")})
    found = _batch(1, batches, "rlhf.sampling.max_new_tokens=10", "rlhf.algorithm.overlong_buffer=4")
    assert [prompt.id for prompt in found.prompts] == ["b", "c"]
    assert found.counts == Counter(groups_without_variance=2)
    assert found.unshaped.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert found.rewards.tolist() == [1.0, 0.0, 1.0, -0.5]  # what is learned from is shaped all the same


def _batch(rounds: int, batches: Batches, *overrides: str) -> Judged:
    recipe = _recipe(f"rlhf.algorithm.dynamic_sampling.max_rounds={rounds}", *overrides)
    return judged_batch(ROLES, recipe, batches.take(0), cast(Sampler, batches), step=0)


VARIED, EQUAL, WRONG = ("yes", "no"), ("yes", "yes"), ("no", "no")


def test_without_dynamic_sampling_a_step_takes_its_batch_as_it_is() -> None:
    batches = Batches({"a": VARIED, "b": EQUAL})
    found = _batch(0, batches)
    assert [prompt.id for prompt in found.prompts] == ["a", "b"]
    assert (batches.num_more, found.counts) == (0, Counter())


def test_groups_that_teach_nothing_are_replaced_and_counted() -> None:
    batches = Batches({"a": EQUAL, "b": VARIED}, {"c": WRONG, "d": EQUAL}, {"e": VARIED, "f": VARIED})
    found = _batch(5, batches)
    assert [prompt.id for prompt in found.prompts] == ["b", "e"]
    assert batches.num_more == 2
    assert found.counts == Counter(groups_without_variance=3, groups_beyond_the_batch=1)
    assert found.seconds == {"rollout": 3.0}


def test_rounds_are_bounded_and_a_step_may_then_have_fewer_groups() -> None:
    batches = Batches({"a": VARIED, "b": EQUAL}, {"c": WRONG, "d": EQUAL}, {"e": VARIED, "f": VARIED})
    found = _batch(1, batches)
    assert [prompt.id for prompt in found.prompts] == ["a"]
    assert (batches.num_more, found.counts) == (1, Counter(groups_without_variance=3))


def test_where_nothing_varies_the_batch_stays_and_all_that_was_drawn_is_counted() -> None:
    found = _batch(1, Batches({"a": WRONG, "b": EQUAL}, {"c": WRONG, "d": EQUAL}))
    assert [prompt.id for prompt in found.prompts] == ["a", "b"]
    assert found.counts == Counter(groups_without_variance=4)
    assert found.seconds == {"rollout": 2.0}


def test_groups_are_prompts_with_the_tokens_of_their_completions() -> None:
    prompt = prompt_ref("a")
    ((found, completions),) = groups_of([prompt], [_rollout("a", "yes", "no")])
    assert found is prompt
    assert [ids.tolist() for ids in completions] == [[0, 1, 2], [0, 1]]
