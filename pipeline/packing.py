"""Which groups go into which forward pass of which rank: little padding, even work, equally many passes everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GroupSize:
    """Tokens of a prompt, number of its completions, and tokens of the longest of them."""

    prompt: int
    num_completions: int
    longest: int

    @property
    def tokens(self) -> int:
        """Tokens of a pass with this group alone."""
        return self.prompt + self.num_completions * self.longest


@dataclass(frozen=True)
class Pass:
    """The groups (by index) of one forward pass. Where not `counts`, it only evens out the work of the ranks."""

    groups: tuple[int, ...]
    counts: bool = True


def plan_passes(sizes: Sequence[GroupSize], *, num_ranks: int, budget: int) -> list[list[Pass]]:
    """For each rank its passes, each of at most `budget` tokens unless one group alone is larger.

    Groups go to the rank with the least work, largest first (Graham 1969), and in a rank to passes by length of the
    prompt. All ranks get equally many passes, since a sharded forward waits for everybody: who has fewer splits a pass,
    or repeats the smallest group without weight.
    """
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for index in sorted(range(len(sizes)), key=lambda each: (-sizes[each].tokens, each)):
        rank = loads.index(min(loads))
        shares[rank].append(index)
        loads[rank] += sizes[index].tokens
    plans = [_fill(share, sizes, budget) for share in shares]
    longest = max(map(len, plans))
    smallest = min(range(len(sizes)), key=lambda each: sizes[each].tokens)
    return [_stretch(plan, longest, smallest) for plan in plans]


def _fill(share: Sequence[int], sizes: Sequence[GroupSize], budget: int) -> list[list[int]]:
    passes: list[list[int]] = []
    num_completions = longest = 0
    for index in sorted(share, key=lambda each: (sizes[each].prompt, sizes[each].longest, each)):
        size = sizes[index]
        num_completions, longest = num_completions + size.num_completions, max(longest, size.longest)
        # With padding: prompts as long as the longest, which comes last; completions as long as the longest.
        if passes and (len(passes[-1]) + 1) * size.prompt + num_completions * longest <= budget:
            passes[-1].append(index)
        else:
            passes.append([index])
            num_completions, longest = size.num_completions, size.longest
    return passes


def _stretch(passes: list[list[int]], num_passes: int, smallest: int) -> list[Pass]:
    while len(passes) < num_passes and any(len(groups) > 1 for groups in passes):
        largest = max(range(len(passes)), key=lambda each: len(passes[each]))
        groups = passes[largest]
        passes[largest : largest + 1] = [groups[: len(groups) // 2], groups[len(groups) // 2 :]]
    return [
        *(Pass(tuple(groups)) for groups in passes),
        *(Pass((smallest,), counts=False) for _ in range(num_passes - len(passes))),
    ]
