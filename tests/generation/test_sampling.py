"""Filters by hand and against transformers'; draws against probabilities; the section of the recipe."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from pipeline.config import Sampling
from pipeline.generation.sampling import draw, likeliest, truncate

FILTERS = [
    {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    for top_k, top_p, min_p in itertools.product((None, 1, 7, 40, 1000), (1.0, 0.9, 0.5, 1e-6), (0.0, 0.05, 1.0))
]


def _kept(probabilities: list[float], **filters: Any) -> list[float]:
    """The distribution that the filters leave of these probabilities, rounded to what float32 logits can say."""
    filtered = truncate(torch.tensor([probabilities]).log(), **filters)
    return [round(value, 5) for value in filtered.softmax(-1)[0].tolist()]


def test_top_k_keeps_the_k_likeliest() -> None:
    assert _kept([0.1, 0.4, 0.3, 0.2], top_k=1) == [0, 1, 0, 0]
    assert _kept([0.1, 0.4, 0.3, 0.2], top_k=2) == [0, 0.57143, 0.42857, 0]
    assert _kept([0.1, 0.4, 0.3, 0.2], top_k=3) == [0, 0.44444, 0.33333, 0.22222]
    for all_of_them in (4, 5):
        assert _kept([0.1, 0.4, 0.3, 0.2], top_k=all_of_them) == [0.1, 0.4, 0.3, 0.2]


def test_top_k_keeps_whatever_ties_with_the_kth() -> None:
    assert _kept([0.125, 0.5, 0.125, 0.25], top_k=3) == [0.125, 0.5, 0.125, 0.25]
    assert _kept([0.25, 0.25, 0.25, 0.25], top_k=1) == [0.25, 0.25, 0.25, 0.25]


def test_top_p_keeps_the_token_that_crosses_the_mass() -> None:
    assert _kept([0.1, 0.4, 0.3, 0.2], top_p=0.39) == [0, 1, 0, 0]
    assert _kept([0.1, 0.4, 0.3, 0.2], top_p=0.41) == [0, 0.57143, 0.42857, 0]
    assert _kept([0.1, 0.4, 0.3, 0.2], top_p=0.89) == [0, 0.44444, 0.33333, 0.22222]
    assert _kept([0.1, 0.4, 0.3, 0.2], top_p=0.91) == [0.1, 0.4, 0.3, 0.2]
    assert _kept([0.1, 0.4, 0.3, 0.2], top_p=1e-9) == [0, 1, 0, 0]


def test_top_p_takes_the_lower_id_of_equals() -> None:
    assert _kept([0.125, 0.5, 0.125, 0.25], top_p=0.8) == [0.14286, 0.57143, 0, 0.28571]
    assert _kept([0.25, 0.25, 0.25, 0.25], top_p=0.6) == [0.33333, 0.33333, 0.33333, 0]


def test_min_p_asks_for_a_share_of_the_likeliest() -> None:
    assert _kept([0.1, 0.4, 0.3, 0.2], min_p=0.24) == [0.1, 0.4, 0.3, 0.2]
    assert _kept([0.1, 0.4, 0.3, 0.2], min_p=0.26) == [0, 0.44444, 0.33333, 0.22222]
    assert _kept([0.1, 0.4, 0.3, 0.2], min_p=0.76) == [0, 1, 0, 0]
    assert _kept([0.25, 0.25, 0.25, 0.25], min_p=1.0) == [0.25, 0.25, 0.25, 0.25]


def test_each_filter_sees_what_the_one_before_left() -> None:
    given_alone, after_top_k = {"top_p": 0.75}, {"top_p": 0.75, "top_k": 3}
    assert _kept([0.1, 0.4, 0.3, 0.2], **given_alone) == [0, 0.44444, 0.33333, 0.22222]  # 0.4 + 0.3 < 0.75
    assert _kept([0.1, 0.4, 0.3, 0.2], **after_top_k) == [0, 0.57143, 0.42857, 0]  # (0.4 + 0.3) / 0.9 > 0.75
    assert _kept([0.1, 0.4, 0.3, 0.2], **after_top_k, min_p=0.8) == [0, 1, 0, 0]  # 0.3 < 0.8 * 0.4
    # Were min-p first, it would leave 0.4, 0.3 and 0.2, of which top-p would drop the last.
    assert _kept([0.1, 0.4, 0.3, 0.2], top_p=0.75, min_p=0.4) == [0, 0.44444, 0.33333, 0.22222]


def _logits(seed: int, *, spread: float = 3.0) -> Tensor:
    logits = spread * torch.randn(32, 300, generator=torch.Generator().manual_seed(seed))
    logits[:, [5, 250]] = -1e9  # as forbidden tokens are
    return logits


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_filters_equal_those_of_transformers(filters: dict[str, Any]) -> None:
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    for seed, spread in itertools.product(range(3), (0.3, 3.0)):
        logits = expected = _logits(seed, spread=spread)
        ids: Any = torch.zeros(32, 0, dtype=torch.int64)
        if filters["top_k"] is not None:
            expected = TopKLogitsWarper(int(filters["top_k"]))(ids, expected)
        if filters["top_p"] < 1:
            expected = TopPLogitsWarper(filters["top_p"])(ids, expected)
        if filters["min_p"] > 0:
            expected = MinPLogitsWarper(filters["min_p"])(ids, expected)
        assert torch.equal(truncate(logits, **filters), expected)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-20, 20, width=32) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=30),
    st.none() | st.integers(1, 40),
    st.floats(1e-3, 1.0),
    st.floats(0.0, 1.0),
)
def test_a_filtered_distribution_is_a_part_of_the_whole(
    values: list[float], top_k: int | None, top_p: float, min_p: float
) -> None:
    logits = torch.tensor([values])
    filtered = truncate(logits, top_k=top_k, top_p=top_p, min_p=min_p)
    kept = filtered > -torch.inf
    assert torch.equal(filtered[kept], logits[kept])
    assert filtered.softmax(-1).sum().item() == pytest.approx(1, abs=1e-6)
    assert kept[0, logits[0].argmax()] or top_p < 1  # of equals, top-p keeps the first
    assert kept.any()
    if (~kept).any():
        assert logits[~kept].max() <= logits[kept].min()
    if top_k is None and min_p == 0:
        others = logits.double().softmax(-1)[kept]
        assert others.sum() >= top_p - 1e-6
        assert others.sum() - others.min() <= top_p + 1e-6


@pytest.mark.parametrize("filters", [{}, {"top_k": 12}, {"top_p": 0.8}, {"min_p": 0.1, "top_p": 0.95}], ids=str)
def test_draws_fit_the_filtered_distribution(filters: dict[str, Any]) -> None:
    num_draws = 20_000
    logits = truncate(_logits(3, spread=1.0)[:1], **filters)
    uniforms = torch.rand(num_draws, generator=torch.Generator().manual_seed(11))
    chosen, logprobs = draw(logits.expand(num_draws, -1), uniforms)
    expected = logits[0].double().softmax(-1) * num_draws
    assert torch.allclose(logprobs, torch.log_softmax(logits[0], -1)[chosen], atol=1e-6)
    seen = torch.bincount(chosen, minlength=len(expected)).double()
    assert not seen[expected == 0].any()
    possible = expected > 0
    freedom = int(possible.sum()) - 1
    statistic = ((seen - expected)[possible] ** 2 / expected[possible]).sum().item()
    # Chi-square has mean f and variance 2f: four standard deviations to either side.
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_draws_invert_the_cumulative_distribution() -> None:
    logits = torch.tensor([[0.25, 0.0, 0.5, 0.25, 0.0]]).log().expand(6, -1)
    uniforms = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2**-24])
    chosen, logprobs = draw(logits, uniforms)
    assert chosen.tolist() == [0, 0, 2, 2, 3, 3]
    assert logprobs.exp().tolist() == pytest.approx([0.25, 0.25, 0.5, 0.5, 0.25, 0.25])
    first_is_impossible = torch.tensor([[0.0, 1.0]]).log()
    assert draw(first_is_impossible, torch.zeros(1))[0].tolist() == [1]


def test_the_likeliest_comes_with_its_logprob() -> None:
    chosen, logprobs = likeliest(torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]]).log())
    assert chosen.tolist() == [1, 0]
    assert logprobs.exp().tolist() == pytest.approx([0.5, 0.4])


def test_only_filters_in_use_truncate() -> None:
    assert not Sampling().truncates
    assert not Sampling(temperature=0.5, stop=("x",), top_p=1.0, min_p=0.0).truncates
    assert all(Sampling.model_validate(change).truncates for change in ({"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}))


def test_greedy_sampling_keeps_length_and_stop_strings() -> None:
    sampling = Sampling(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, max_new_tokens=3, stop=("x", "y"))
    assert sampling.greedy == Sampling(temperature=0.0, max_new_tokens=3, stop=("x", "y"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 0}, "top_k\n  Input should be greater than 0"),
        ({"top_p": 0.0}, "top_p\n  Input should be greater than 0"),
        ({"top_p": 1.1}, "top_p\n  Input should be less than or equal to 1"),
        ({"min_p": -0.1}, "min_p\n  Input should be greater than or equal to 0"),
        ({"stop": [""]}, "stop holds an empty text, which every completion contains: leave it out"),
        ({"stop": ["\ufffd"]}, "stands for half a character: leave it out"),
        ({"temperature": 0.0, "top_p": 0.9}, "or use a temperature above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Sampling.model_validate(change)
    assert message in str(refusal.value)
