"""How far generation runs ahead, where it stops, and what it draws; the rollout workers' answers are made here."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pytest

from actors.fleet.answer import Answer
from actors.fleet.failures import KillsWorkers
from actors.loop.sampler import Sampler, left_of
from actors.roles.encoder import PromptRef
from pipeline.config import Recipe, Sampling, load_recipe
from pipeline.config import Rollout as RolloutSettings
from pipeline.records import Completion, FinishReason, Rollout
from tests.actors.at_once import AtOnce
from tests.prompts import prompt_ref

IDS = [f"prompt-{index}" for index in range(7)]


class RolloutPool(AtOnce):
    """Answers at once with weights of `version`, two prompts a task, and remembers what it was asked."""

    settings = RolloutSettings(batch_size=2)
    state = None

    def __init__(self, *deadly: str) -> None:
        """deadly: prompts that kill whoever completes a batch with all of them."""
        self.version = 0
        self.asked: list[dict[str, Any]] = []
        self._deadly = set(deadly)

    @contextmanager
    def under(self, state: object) -> Generator[None, None, None]:
        assert state is self.state
        yield

    def submit_by_cost(
        self,
        method: object,
        costs: Sequence[float],
        shares: Sequence[list[PromptRef]],
        sampling: Sampling,
        *,
        group_size: int,
        step: int,
    ) -> Answer[list[Rollout]]:
        tokens = [prompt.num_tokens + group_size * sampling.max_new_tokens for (prompt, *_) in shares]
        assert costs == [len(share) * each for share, each in zip(shares, tokens, strict=True)]
        self.asked.append(
            {"seed": step, "group_size": group_size, "temperature": sampling.temperature, "version": self.version}
        )
        one = Completion(np.array([1]), np.zeros(1, np.float32), FinishReason.STOP, self.version, "")
        answer = self.answer([[Rollout(prompt.id, (one,) * group_size) for prompt in share] for share in shares])
        for place, share in enumerate(shares):
            if self._deadly and self._deadly <= {prompt.id for prompt in share}:
                cast(Any, answer.calls)[place] = died = Future[Any]()
                died.set_exception(KillsWorkers("rollout: 4 workers died of generate", share))
        return answer


class OpenBatches:
    """Batches of the seven rows in turn, all of them good."""

    def __init__(self, cursor: int) -> None:
        self.cursor = cursor
        self.announced: list[int] = []
        self.num_ahead: list[int] = []
        self.expelled: list[tuple[str, str]] = []

    def take(self) -> list[PromptRef]:
        self.cursor += 1
        return [prompt_ref(name, row=IDS.index(name)) for name in _drawn(self.cursor - 1)]

    def expel(self, prompt: PromptRef, reason: str, detail: str) -> None:
        self.expelled.append((prompt.id, reason))

    def announce(self) -> None:
        self.announced.append(self.cursor)


def _drawn(batch: int) -> list[str]:
    return [IDS[place % len(IDS)] for place in range(3 * batch, 3 * batch + 3)]


class Bench:
    """A sampler with its workers and its batches."""

    def __init__(self, *overrides: str, cursor: int = 0, deadly: Sequence[str] = ()):
        self.recipe: Recipe = load_recipe(
            None, ["rlhf.prompts_per_step=3", "rlhf.group_size=2", "rlhf.num_steps=6", *overrides]
        )
        self.rollout, self.batches = RolloutPool(*deadly), OpenBatches(cursor)
        roles = cast(Any, type("Roles", (), {"rollout": self.rollout}))
        self.sampler = Sampler(roles, self.recipe, cast(Any, self.batches))

    def run(self, steps: range) -> list[tuple[int, list[str]]]:
        """Cursor after each step, and the prompts it took; weights arrive after each step."""
        taken: list[tuple[int, list[str]]] = []
        for step in steps:
            self.rollout.version = step
            sampled = self.sampler.take(step)
            assert [rollout.prompt_id for rollout in sampled.rollouts] == [prompt.id for prompt in sampled.prompts]
            self.batches.num_ahead.append(self.batches.cursor - step - 1)
            taken.append((self.sampler.cursor, [prompt.id for prompt in sampled.prompts]))
        return taken


def test_without_staleness_each_step_draws_its_own_batch_with_its_own_weights() -> None:
    bench = Bench()
    assert bench.run(range(6)) == [(step + 1, _drawn(step)) for step in range(6)]
    assert [(each["seed"], each["version"]) for each in bench.rollout.asked] == [(step, step) for step in range(6)]
    # The next step's rows are announced, and none after the last step.
    assert bench.batches.announced == [1, 2, 3, 4, 5]


def test_generation_runs_ahead_and_never_beyond_the_next_checkpoint() -> None:
    bench = Bench("rlhf.staleness=2", "rlhf.checkpoints.save_every=4")
    cursors = [cursor for cursor, _ in bench.run(range(6))]
    # Steps 0 to 2 start at once, then one a step up to the checkpoint after step 3, then the last two.
    assert bench.batches.num_ahead == [2, 2, 1, 0, 1, 0]
    # What runs ahead is not done: a run that ends early, and goes on later, draws it again.
    assert cursors == [1, 2, 3, 4, 5, 6]
    assert [(each["seed"], each["version"]) for each in bench.rollout.asked] == [
        (0, 0), (1, 0), (2, 0), (3, 1), (4, 4), (5, 4),
    ]  # fmt: skip


def test_a_sampler_that_resumes_at_a_checkpoint_takes_what_the_first_would_have() -> None:
    settings = ("rlhf.staleness=2", "rlhf.checkpoints.save_every=4")
    whole = Bench(*settings)
    expected = whole.run(range(6))
    resumed = Bench(*settings, cursor=expected[3][0])
    assert resumed.run(range(4, 6)) == expected[4:]
    assert resumed.rollout.asked == whole.rollout.asked[4:]


def test_completions_older_than_the_window_stop_the_loop() -> None:
    bench = Bench("rlhf.staleness=1")
    bench.run(range(1))
    bench.sampler.take(1)
    # The weights of steps 1 and 2 never arrived.
    with pytest.raises(RuntimeError, match=r"versions \[0\], not 1 to 2: weights did not arrive"):
        bench.sampler.take(2)


def test_another_batch_of_a_step_comes_from_the_order_and_with_a_seed_of_its_own() -> None:
    bench = Bench("rlhf.staleness=1")
    bench.sampler.take(0)
    more = bench.sampler.more(0, 0)
    assert [prompt.id for prompt in more.prompts] == _drawn(2)
    assert [each["seed"] for each in bench.rollout.asked] == [0, 1, 2]
    assert bench.batches.cursor == 3


def test_remax_gets_a_greedy_completion_of_each_prompt() -> None:
    bench = Bench("rlhf.algorithm.advantage=remax")
    sampled = bench.sampler.take(0)
    assert [(each["group_size"], each["temperature"]) for each in bench.rollout.asked] == [(2, 1.0), (1, 0.0)]
    assert [rollout.prompt_id for rollout in sampled.greedy] == [prompt.id for prompt in sampled.prompts]
    assert {len(rollout.completions) for rollout in sampled.greedy} == {1}
    assert sampled.seconds.keys() == {"rollout"}


def test_a_prompt_that_kills_whoever_completes_it_is_expelled_and_the_step_goes_on_without_it() -> None:
    bench = Bench("rlhf.staleness=1", deadly=["prompt-1"])
    taken = bench.run(range(1))
    assert taken == [(1, ["prompt-0", "prompt-2"])]
    assert bench.batches.expelled == [("prompt-1", "kills_worker")]
    # Two batches ahead, two prompts alone, and the first batch again without one: all with the seed of their batch.
    assert [each["seed"] for each in bench.rollout.asked] == [0, 1, 0, 0, 0]


def test_prompts_that_kill_together_and_not_alone_are_an_error_that_names_the_cure() -> None:
    with pytest.raises(KillsWorkers, match="4 workers died of generate") as caught:
        Bench(deadly=["prompt-0", "prompt-1"]).run(range(1))
    assert "rlhf.rollout.batch_size" in caught.value.__notes__[0]


def test_a_batch_whose_every_prompt_kills_is_an_error_of_its_own() -> None:
    error = KillsWorkers("rollout: 4 workers died of generate", [prompt_ref("prompt-0")])
    with pytest.raises(KillsWorkers, match="4 workers"):
        left_of([prompt_ref("prompt-0")], error.share, error)
