"""The policy evaluated while it trains: when, with which weights and seeds, and how a run ends by it or goes on.

Encoder and rollout workers are stood in for: whether an answer comes out right is said here, by the weights' version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.fleet.failures import KillsWorkers
from actors.loop import validation
from actors.loop.checkpoints import LoopState
from actors.loop.validation import Validator
from actors.roles.encoder import PromptRef
from jobs import evaluate, reward_model
from pipeline.config import ConfigError, Recipe, Sampling
from pipeline.config import Rollout as RolloutSettings
from pipeline.data.datasets import Datasets, RowRef
from pipeline.data.table import Quarantine
from pipeline.evaluation.validation import EndReason
from pipeline.records import Completion, FinishReason, Rollout
from tests.actors.at_once import AtOnce
from tests.jobs.small import small_recipe

pytestmark = pytest.mark.usefixtures("local_ray")

METRIC = "validation/greedy_exact_match"
RUN = ("rlhf.num_steps=9", "rlhf.validation.num_prompts=6")


class Workers(AtOnce):
    """Both encoder and rollout: gives prompts in the order asked for, and at once the texts that `says` names."""

    settings = RolloutSettings()
    state = None

    def __init__(self, recipe: Recipe, says: Callable[[PromptRef, int, int], str]) -> None:
        self._recipe = recipe
        self._says = says
        self.deadly: frozenset[str] = frozenset()
        """Prompts of which whoever completes one dies."""
        self.version = 0
        self.num_processed = 0
        self.asked: list[tuple[int, int, float]] = []
        """Seed, group size and temperature of each round."""
        self.rollout = self

    def encode(self, rows: Sequence[RowRef], split: str, needs: object, **_: object) -> Any:
        datasets = Datasets(self._recipe.datasets, split)
        infos = datasets.infos()
        found = dict(zip(datasets.keys([info.id for info in infos]), infos, strict=True))
        self.num_processed += len(rows)
        prompts = [PromptRef(found[row.key], row.key, num_tokens=3, stored=cast(Any, None)) for row in rows]
        return type("Encoded", (), {"result": lambda _: prompts})()

    def submit_by_cost(
        self,
        method: object,
        costs: Sequence[float],
        shares: Sequence[list[PromptRef]],
        sampling: Sampling,
        *,
        group_size: int,
        step: int,
    ) -> Any:
        self.asked.append((step, group_size, sampling.temperature))
        tokens, logprobs = np.array([1]), np.zeros(1, np.float32)

        def group(prompt: PromptRef) -> Rollout:
            texts = [self._says(prompt, self.version, place) for place in range(group_size)]
            return Rollout(
                prompt.id,
                tuple(Completion(tokens, logprobs, FinishReason.STOP, self.version, text) for text in texts),
            )

        answer = self.answer([[group(prompt) for prompt in share] for share in shares])
        for place, share in enumerate(shares):
            if any(prompt.id in self.deadly for prompt in share):
                cast(Any, answer.calls)[place] = died = Future[Any]()
                died.set_exception(KillsWorkers("rollout: 4 workers died of generate", share))
        return answer


def right_from(version: int) -> Callable[[PromptRef, int, int], str]:
    """Answers right with weights of this version or later."""
    return lambda prompt, held, place: str(prompt.info.answer) if held >= version else "never right"


class Bench:
    """A run of which nothing happens but evaluations."""

    def __init__(self, make: Callable[..., Recipe], *overrides: str, says: Callable[[PromptRef, int, int], str]):
        self.recipe = make(*RUN, *overrides)
        self.workers = Workers(self.recipe, says)
        self.validator = Validator(cast(Any, self.workers), self.recipe)

    def run(self, state: LoopState | None = None) -> list[LoopState]:
        """The state after each step, evaluated, until the end."""
        state = state or LoopState.start(self.recipe.rlhf.algorithm.kl)
        self.workers.version = state.step
        states = [self.validator.evaluated(state)]
        while self.validator.end(states[-1]) is None:
            self.workers.version += 1
            states.append(self.validator.evaluated(replace(states[-1], step=states[-1].step + 1)))
        return states

    def reason(self, states: Sequence[LoopState]) -> EndReason:
        end = self.validator.end(states[-1])
        assert end is not None and end.step == states[-1].step
        return end.reason


@pytest.fixture
def make(tmp_path: Path, tiny_checkpoint: Path, demo_data: Path) -> Callable[..., Recipe]:
    return lambda *overrides: small_recipe(tmp_path, tiny_checkpoint, demo_data, *overrides)


def test_the_policy_is_evaluated_before_its_first_update_every_few_steps_and_after_the_last(
    make: Callable[..., Recipe],
) -> None:
    bench = Bench(make, "rlhf.evaluate_every=4", says=right_from(5))
    states = bench.run()
    assert [state.step for state in states] == list(range(10))
    measured = {state.step: state.progress.at(state.step).get(METRIC) for state in states}
    assert measured == {0: 0, 4: 0, 8: 1, 9: 1} | dict.fromkeys((1, 2, 3, 5, 6, 7))
    assert bench.reason(states) is EndReason.NUM_STEPS
    # Groups at the recipe's temperature and greedy completions, with seeds that nobody else has.
    assert bench.workers.asked == [(validation.SAMPLING_STEP, 4, 1.0), (validation.SAMPLING_STEP, 1, 0.0)] * 4
    assert validation.SAMPLING_STEP < 0
    assert validation.SAMPLING_STEP not in (evaluate.SAMPLING_STEP, reward_model.SAMPLING_STEP)
    assert bench.workers.num_processed == 6


def test_any_of_k_and_the_mean_tell_apart_what_one_sample_in_four_can_do(make: Callable[..., Recipe]) -> None:
    bench = Bench(
        make, "rlhf.evaluate_every=9", says=lambda prompt, _, place: str(prompt.info.answer) if place == 2 else "?"
    )
    found = bench.run()[0].progress.metrics
    assert (found["validation/any_of_k"], found["validation/exact_match"], found[METRIC]) == (1.0, 0.25, 0.0)
    assert found["data/validation_prompts"] == 6 and found["data/validation_rows_without_answer"] == 0


def test_a_validation_prompt_that_kills_workers_is_left_out_from_then_on(make: Callable[..., Recipe]) -> None:
    bench = Bench(make, "rlhf.evaluate_every=9", "rlhf.rollout.batch_size=3", says=right_from(0))
    whole = bench.run()
    name = bench.validator._prompts[1].id  # pyright: ignore[reportPrivateUsage]
    bench.workers.deadly = frozenset([name])
    found = bench.run()[0].progress.metrics
    assert (whole[0].progress.metrics["data/validation_prompts"], found["data/validation_prompts"]) == (6, 5)
    file = bench.recipe.run.directory / "quarantine" / "validation_validation.parquet"
    assert [(each.row_id, each.reason) for each in Quarantine.read(file)] == [(name, "kills_worker")]


def test_without_an_interval_nothing_is_processed_or_asked(make: Callable[..., Recipe]) -> None:
    bench = Bench(make, says=right_from(0))
    assert bench.reason(bench.run()) is EndReason.NUM_STEPS
    assert (bench.workers.num_processed, bench.workers.asked) == (0, [])


def test_completions_of_other_weights_than_those_of_now_stop_the_loop(make: Callable[..., Recipe]) -> None:
    bench = Bench(make, "rlhf.evaluate_every=1", "rlhf.staleness=2", says=right_from(0))
    (state, *_) = bench.run()
    bench.workers.version = 3
    with pytest.raises(RuntimeError, match=r"versions \[3\], not 4 to 4: weights did not arrive"):
        bench.validator.evaluated(replace(state, step=4))


def test_a_target_ends_the_run_where_it_is_reached(make: Callable[..., Recipe]) -> None:
    bench = Bench(make, "rlhf.evaluate_every=2", "rlhf.validation.stop_at=0.9", says=right_from(3))
    states = bench.run()
    assert (states[-1].step, bench.reason(states)) == (4, EndReason.TARGET)
    # A policy that starts there learns nothing more.
    states = Bench(make, "rlhf.evaluate_every=2", "rlhf.validation.stop_at=0.9", says=right_from(0)).run()
    assert [state.step for state in states] == [0]


def test_patience_ends_a_run_that_learns_no_more(make: Callable[..., Recipe]) -> None:
    bench = Bench(make, "rlhf.evaluate_every=1", "rlhf.validation.patience=3", says=right_from(2))
    states = bench.run()
    assert [state.progress.num_without_gain for state in states] == [0, 1, 0, 1, 2, 3]
    assert bench.reason(states) is EndReason.PATIENCE
    # With a critic that learns first, the policy has had no chance in the first four steps.
    bench = Bench(
        make, "rlhf.evaluate_every=1", "rlhf.validation.patience=3", "rlhf.critic_warmup_steps=4", says=right_from(99)
    )
    assert [state.progress.num_without_gain for state in bench.run()] == [0, 0, 0, 0, 0, 1, 2, 3]


def test_a_resumed_run_goes_on_counting_and_does_not_evaluate_twice(make: Callable[..., Recipe]) -> None:
    settings = ("rlhf.evaluate_every=2", "rlhf.validation.patience=2")
    whole = Bench(make, *settings, says=right_from(3)).run()
    assert whole[-1].step == 8
    for at in (4, 5, 6, 7):
        stored = json.loads(json.dumps(whole[at].to_json()))
        bench = Bench(make, *settings, says=right_from(3))
        resumed = bench.run(LoopState.from_json(stored, bench.recipe.rlhf.algorithm.kl))
        assert _without_time(resumed) == _without_time(whole[at:])
        assert len(bench.workers.asked) == 2 * sum(step % 2 == 0 for step in range(at + 1, 9))


def _without_time(states: Sequence[LoopState]) -> list[dict[str, Any]]:
    rows = [state.to_json() for state in states]
    for row in rows:
        row["progress"]["metrics"].pop("time/validation_s", None)
    return rows


def test_a_run_that_is_resumed_with_evaluations_begins_them_there(make: Callable[..., Recipe]) -> None:
    bench = Bench(make, "rlhf.evaluate_every=2", says=right_from(0))
    start = LoopState.start(bench.recipe.rlhf.algorithm.kl)
    assert bench.run(replace(start, step=6))[0].progress.step == 6


@pytest.mark.parametrize("field", ["validation.stop_metric", "checkpoints.best_metric"])
def test_a_metric_of_a_task_that_no_prompt_belongs_to_is_named(make: Callable[..., Recipe], field: str) -> None:
    bench = Bench(make, "rlhf.evaluate_every=1", f"rlhf.{field}=validation/dgit/exact_match", says=right_from(0))
    told = (
        rf"rlhf\.{field}=validation/dgit/exact_match: no validation prompt is of that task; .*validation/digit/exact_m"
    )
    with pytest.raises(ConfigError, match=told):
        bench.run()


def test_rows_without_an_answer_are_left_out_and_counted(
    make: Callable[..., Recipe], tmp_path: Path, demo_data: Path
) -> None:
    data = tmp_path / "open"
    data.mkdir()
    table = pq.read_table(demo_data / "validation.parquet")

    def write(num_answered: int) -> None:
        answers = [*table["answer"].to_pylist()[:num_answered], *[None] * (len(table) - num_answered)]
        place = table.schema.get_field_index("answer")
        rows = table.set_column(place, table.schema.field(place), pa.array(answers, pa.string()))
        pq.write_table(rows, data / "validation.parquet")

    write(num_answered=5)
    overrides = ("rlhf.evaluate_every=9", f"data.path={data}")
    found = Bench(make, *overrides, says=right_from(0)).run()[0].progress.metrics
    assert found["data/validation_prompts"] == 5
    assert found["data/validation_rows_without_answer"] == len(table) - 5
    write(num_answered=0)
    with pytest.raises(ConfigError, match=r"rlhf\.evaluate_every=9: no good row of the split validation has an answer"):
        Bench(make, *overrides, says=right_from(0))
    with pytest.raises(
        FileNotFoundError, match=r"held_back\.parquet: no row of the prompt table here is in the split held_back"
    ):
        Bench(make, *overrides, "rlhf.validation.split=held_back", says=right_from(0))


def test_a_run_that_ended_is_done_until_the_recipe_asks_for_more(
    make: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("rlhf.evaluate_every=2", "rlhf.validation.stop_at=0.9")
    bench = Bench(make, *settings, says=right_from(3))
    recipe = bench.recipe
    assert not validation.is_done(recipe, resume=True)
    state = bench.run()[-1]
    end = bench.validator.end(state)
    assert end is not None
    recipe.checkpoint("rlhf").mkdir()

    def ended() -> None:
        validation.record_end(recipe, end, state)

    ended()
    assert (
        "the run ends after step 4 of 9: validation/greedy_exact_match is 1: rlhf.validation.stop_at=0.9 is reached"
        in (capsys.readouterr().out)
    )
    stored = json.loads((recipe.run.directory / "rlhf_end.json").read_text())
    assert (stored["reason"], stored["step"], stored["export"]) == ("target", 4, "last")
    assert validation.is_done(recipe, resume=True)
    assert "--resume: the run ended after step 4, nothing is left to do: validation/greedy" in capsys.readouterr().out
    # Whoever starts anew, asks for more, or for other weights, has a run to make, and the old end is forgotten.
    more = (
        (recipe, False),
        (make(*RUN, *settings, "rlhf.validation.stop_at=null"), True),
        (make(*RUN, *settings, "rlhf.checkpoints={best_metric: reward/mean, export: best}"), True),
    )
    for wanted, resume in more:
        ended()
        assert not validation.is_done(wanted, resume=resume)
        assert not (recipe.run.directory / "rlhf_end.json").exists()
        assert not validation.is_done(recipe, resume=True)
