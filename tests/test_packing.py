"""Passes by tokens: the budget holds, nothing is lost, and ranks have equal work in equally many passes."""

from __future__ import annotations

import random
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from pipeline.packing import GroupSize, Pass, plan_passes

SIZES = st.lists(
    st.builds(GroupSize, prompt=st.integers(1, 60), num_completions=st.integers(1, 8), longest=st.integers(1, 20)),
    min_size=1,
    max_size=24,
)
RANKS = st.integers(1, 6)
BUDGETS = st.integers(1, 600)


def _text(prompt: int) -> GroupSize:
    """A group of `prompt` + 1 tokens."""
    return GroupSize(prompt, num_completions=1, longest=1)


def _load(passes: list[Pass], sizes: list[GroupSize]) -> int:
    return sum(sizes[index].tokens for each in passes if each.counts for index in each.groups)


def _padded(sizes: list[GroupSize]) -> int:
    """Tokens of a pass: prompts as long as the longest, completions as long as the longest."""
    prompts = len(sizes) * max(size.prompt for size in sizes)
    return prompts + sum(size.num_completions for size in sizes) * max(size.longest for size in sizes)


def test_padding_counts_by_hand() -> None:
    long, short = GroupSize(prompt=10, num_completions=2, longest=4), GroupSize(prompt=6, num_completions=3, longest=5)
    assert (long.tokens, short.tokens) == (10 + 2 * 4, 6 + 3 * 5)
    # Both prompts take 10 tokens, all five completions take 5: 2 * 10 + 5 * 5.
    assert plan_passes([long, short], num_ranks=1, budget=45) == [[Pass((1, 0))]]
    assert plan_passes([long, short], num_ranks=1, budget=44) == [[Pass((1,)), Pass((0,))]]


def test_a_plan_by_hand() -> None:
    sizes = [_text(9), _text(4), _text(4), _text(9)]
    (passes,) = plan_passes(sizes, num_ranks=1, budget=20)
    # Prompts of one length lie together, so that nothing is padded.
    assert passes == [Pass((1, 2)), Pass((0, 3))]
    assert plan_passes(sizes, num_ranks=2, budget=20) == [[Pass((1, 0))], [Pass((2, 3))]]


@given(sizes=SIZES, num_ranks=RANKS, budget=BUDGETS)
def test_every_group_counts_exactly_once(sizes: list[GroupSize], num_ranks: int, budget: int) -> None:
    plan = plan_passes(sizes, num_ranks=num_ranks, budget=budget)
    counted = [index for passes in plan for each in passes if each.counts for index in each.groups]
    assert sorted(counted) == list(range(len(sizes)))


@given(sizes=SIZES, num_ranks=RANKS, budget=BUDGETS)
def test_all_ranks_have_equally_many_passes_and_none_is_empty(
    sizes: list[GroupSize], num_ranks: int, budget: int
) -> None:
    plan = plan_passes(sizes, num_ranks=num_ranks, budget=budget)
    assert len(plan) == num_ranks
    assert len({len(passes) for passes in plan}) == 1
    assert all(each.groups for passes in plan for each in passes)


@given(sizes=SIZES, num_ranks=RANKS, budget=BUDGETS)
def test_a_pass_of_several_groups_keeps_the_budget(sizes: list[GroupSize], num_ranks: int, budget: int) -> None:
    for passes in plan_passes(sizes, num_ranks=num_ranks, budget=budget):
        for each in passes:
            assert len(each.groups) == 1 or _padded([sizes[index] for index in each.groups]) <= budget


@given(sizes=SIZES, num_ranks=RANKS, budget=BUDGETS)
def test_no_rank_has_more_than_an_even_share_and_one_group(sizes: list[GroupSize], num_ranks: int, budget: int) -> None:
    # Graham (1966): max <= sum / m + (1 - 1 / m) * largest, for groups handed out in any order.
    plan = plan_passes(sizes, num_ranks=num_ranks, budget=budget)
    total, largest = sum(size.tokens for size in sizes), max(size.tokens for size in sizes)
    bound = total / num_ranks + (1 - 1 / num_ranks) * largest
    assert max(_load(passes, sizes) for passes in plan) <= bound + 1e-6


@given(sizes=st.lists(st.builds(_text, st.integers(1, 40)), min_size=1, max_size=7), num_ranks=st.integers(2, 3))
def test_the_largest_load_is_within_a_third_of_the_best_possible(sizes: list[GroupSize], num_ranks: int) -> None:
    # Graham (1969): largest first gives at most 4/3 - 1/(3 m) of the optimum, found here by trying everything.
    best = min(
        max(
            sum(size.tokens for size, seat in zip(sizes, seats, strict=True) if seat == rank)
            for rank in range(num_ranks)
        )
        for seats in product(range(num_ranks), repeat=len(sizes))
    )
    plan = plan_passes(sizes, num_ranks=num_ranks, budget=100)
    assert max(_load(passes, sizes) for passes in plan) <= (4 / 3 - 1 / (3 * num_ranks)) * best + 1e-6


@given(sizes=SIZES, num_ranks=RANKS, budget=BUDGETS, seed=st.integers(0, 2**32))
def test_the_order_of_the_groups_does_not_change_the_loads(
    sizes: list[GroupSize], num_ranks: int, budget: int, seed: int
) -> None:
    def loads(of: list[GroupSize]) -> list[int]:
        return [_load(passes, of) for passes in plan_passes(of, num_ranks=num_ranks, budget=budget)]

    shuffled = sizes.copy()
    random.Random(seed).shuffle(shuffled)
    assert loads(shuffled) == loads(sizes)


def test_ranks_beyond_the_groups_repeat_the_smallest_without_weight() -> None:
    plan = plan_passes([_text(9), _text(3)], num_ranks=4, budget=100)
    assert plan == [[Pass((0,))], [Pass((1,))], [Pass((1,), counts=False)], [Pass((1,), counts=False)]]


def test_a_group_beyond_the_budget_goes_alone_and_the_other_rank_splits_its_passes() -> None:
    # One rank gets the huge group, the other the six small ones, which would fit into two passes of three.
    sizes = [_text(1000), *(_text(4) for _ in range(6))]
    assert plan_passes(sizes, num_ranks=2, budget=15) == [
        [Pass((0,)), Pass((1,), counts=False)],
        [Pass((1, 2, 3)), Pass((4, 5, 6))],
    ]
    # Where a rank needs more passes than another has groups in one, those are cut in halves.
    halved = plan_passes([*(_text(30) for _ in range(4)), *(_text(9) for _ in range(12))], num_ranks=2, budget=31)
    assert {len(passes) for passes in halved} == {len(halved[0])}
    assert all(each.counts for passes in halved for each in passes)
