"""Records on their way between processes: the same on arrival, in few arrays."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from pipeline.records import Arrays, Completion, Experience, FinishReason, Rollout


def sent(record: Any) -> tuple[Any, int]:
    """A record as it arrives, and in how many buffers it travelled."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(record, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=buffers), len(buffers)


def completion(length: int, *, is_filtered: bool) -> Completion:
    logprobs = -np.arange(length, dtype=np.float32)
    raw = 2 * logprobs if is_filtered else None
    return Completion(np.arange(length) + 7, logprobs, FinishReason.LENGTH, length, f"{length} words", raw)


@pytest.mark.parametrize(("filtered", "num_buffers"), [((False, False), 2), ((True, True), 3), ((True, False), 3)])
def test_a_group_arrives_as_it_was(filtered: tuple[bool, bool], num_buffers: int) -> None:
    group = Rollout("a", tuple(completion(3 + place, is_filtered=each) for place, each in enumerate(filtered)))
    arrived, buffers = sent(group)
    assert buffers == num_buffers and isinstance(arrived, Rollout) and arrived.prompt_id == "a"
    for before, after in zip(group.completions, arrived.completions, strict=True):
        for name, value in vars(before).items():
            found = getattr(after, name)
            assert type(found) is type(value)
            assert np.array_equal(found, value) and getattr(found, "dtype", None) == getattr(value, "dtype", None)
    assert sent(Rollout("a", ()))[0] == Rollout("a", ())


def test_token_ids_of_a_group_travel_as_one() -> None:
    arrived, buffers = sent([Arrays([np.array([1, 2, 3]), np.array([], np.int64), np.array([4])]), Arrays()])
    assert buffers == 1 and [[each.tolist() for each in group] for group in arrived] == [[[1, 2, 3], [], [4]], []]


@pytest.mark.parametrize("left_out", [None, np.array([True, False])])
def test_experience_arrives_as_it_was(left_out: np.ndarray[Any, Any] | None) -> None:
    floats = np.random.default_rng(0).standard_normal((6, 2, 5)).astype(np.float32)
    mask = np.array([[True] * 5, [True] * 3 + [False] * 2])
    before = Experience("a", np.arange(10).reshape(2, 5), mask, *floats, weight=0.0, left_out=left_out)
    after, buffers = sent(before)
    assert buffers == 3 + (left_out is not None)
    assert vars(after).keys() == vars(before).keys()
    for name, value in vars(before).items():
        assert np.array_equal(getattr(after, name), value), name
