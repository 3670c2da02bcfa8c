"""Records on their way between processes: the same on arrival, in few arrays."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import pytest

from actors.roles.encoder import PromptRef
from actors.roles.policy import Minibatch, Minibatches
from actors.roles.scoring import Passes
from pipeline.algorithms.aggregation import Normalisers
from pipeline.data.datasets import RowKey
from pipeline.records import Arrays, Completion, Experience, FinishReason, Records, Rollout
from tests.prompts import prompt_ref


def sent(record: Any) -> tuple[Any, int]:
    """A record as it arrives, and in how many buffers it travelled."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(record, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=buffers), len(buffers)


def same(before: Any, after: Any) -> bool:
    """Equal to the last bit and type, arrays too."""
    if isinstance(before, np.ndarray):
        return before.dtype == after.dtype and np.array_equal(before, after)
    if is_dataclass(before):
        return type(before) is type(after) and same(vars(before), vars(after))
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(same(before[key], after[key]) for key in before)
    if isinstance(before, list | tuple):
        return len(before) == len(after) and all(map(same, before, after))
    return before == after


def completion(length: int, *, is_filtered: bool) -> Completion:
    logprobs = -np.arange(length, dtype=np.float32)
    raw = 2 * logprobs if is_filtered else None
    return Completion(np.arange(length) + 7, logprobs, FinishReason.LENGTH, length, f"{length} words", raw)


@pytest.mark.parametrize(("filtered", "num_buffers"), [((False, False), 2), ((True, True), 3), ((True, False), 3)])
def test_a_group_arrives_as_it_was(filtered: tuple[bool, bool], num_buffers: int) -> None:
    group = Rollout("a", tuple(completion(3 + place, is_filtered=each) for place, each in enumerate(filtered)))
    arrived, buffers = sent(group)
    assert buffers == num_buffers and isinstance(arrived, Rollout) and arrived.prompt_id == "a"
    assert same(group, arrived)
    assert sent(Rollout("a", ()))[0] == Rollout("a", ())


def test_token_ids_of_a_group_travel_as_one() -> None:
    arrived, buffers = sent([Arrays([np.array([1, 2, 3]), np.array([], np.int64), np.array([4])]), Arrays()])
    assert buffers == 1 and [[each.tolist() for each in group] for group in arrived] == [[[1, 2, 3], [], [4]], []]


def experience(name: str, length: int, left_out: bool | None) -> Experience:
    floats = np.random.default_rng(length).standard_normal((6, 2, length)).astype(np.float32)
    mask = np.arange(length) < [[length], [1]]
    out = None if left_out is None else np.array([left_out, True])
    return Experience(name, np.arange(2 * length).reshape(2, length), mask, *floats, weight=0.5, left_out=out)


@pytest.mark.parametrize(
    ("left_out", "num_buffers"), [((None, None), 8), ((True, False), 9), ((None, True), 9), ((), 0)]
)
def test_experience_arrives_as_it_was_in_one_array_a_field(left_out: Sequence[bool | None], num_buffers: int) -> None:
    before = Records(experience(f"p{place}", 2 + place, each) for place, each in enumerate(left_out))
    after, buffers = sent(before)
    assert buffers == num_buffers and isinstance(after, Records) and same(before, after)


def test_groups_of_passes_arrive_as_they_were_in_one_array() -> None:
    groups = [(prompt_ref(f"p{place}", row=place), [np.arange(3 + place), np.arange(1)]) for place in range(3)]
    before = Passes([groups[:2], [], groups[2:]])
    after, buffers = sent(before)
    assert buffers == 1 and same(before, after) and type(after[0][0][0]) is PromptRef
    assert [prompt.row for prompt, _ in after[0]] == [RowKey(0, 0), RowKey(0, 1)]
    assert sent(Passes())[0] == []


def test_a_row_of_two_epochs_travels_once() -> None:
    rows = [(prompt_ref(f"p{place}"), experience(f"p{place}", 2 + place, False)) for place in range(3)]
    once, again = (
        Minibatch((tuple(rows[:2]), (rows[2],)), Normalisers(7, 3)),
        Minibatch(((rows[1],),), Normalisers(2, 1)),
    )
    before = Minibatches([once, again])
    after, buffers = sent(before)
    assert buffers == 9 and same(before, after)
    assert after[1].passes[0][0] is after[0].passes[0][1]
