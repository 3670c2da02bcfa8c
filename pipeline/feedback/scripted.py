"""A rater that is a script: it knows the reference answer and errs at a stated rate. Named so wherever it is shown."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import chain, combinations, zip_longest
from typing import NamedTuple

from pipeline.records import Completion, FinishReason, Preference, RaterKind, Rollout
from pipeline.rewards.contains import contains
from pipeline.rewards.distance import distance_reward, is_integer
from pipeline.rewards.exact_match import exact_match
from pipeline.rewards.normalise import normalise
from pipeline.rewards.wer import wer, wer_reward

Closeness = Callable[[str, str], float]
"""(completion, answer) -> how near a wrong completion comes, in [0, 1]; more is nearer."""


def closeness(completion: str, answer: str) -> float:
    """How near a wrong completion comes: by the numbers where the answer is a whole number, else by wrong words.

    Both are bounded: beyond `distance.FULL_DIFFERENCE`, or as many wrong words as the answer has, all are alike.
    """
    return distance_reward(completion, answer) if is_integer(answer) else wer_reward(completion, answer)


class Quality(NamedTuple):
    """What the rater looks at, the most important first. More is better."""

    right: float
    """Whether it says the answer, whatever it says beside it."""
    closeness: float
    """How near a wrong one comes; right ones are all alike."""
    tries: bool
    """Whether it says anything: of two that are equally far off, the one that is silent is worse."""
    finished: bool
    """Whether it ended by itself."""
    plain: float
    """Whether it says the answer and nothing else."""
    spareness: float
    """Minus the words beside the answer, in words of the answer; wrong ones are all alike."""


class ScriptedRater:
    """Prefers what is right, then what is finished, then what is plain.

    Content goes first: a completion that says the answer is better than any that does not, and of two wrong ones that
    which comes nearer. Of equal content, a finished completion is better than one that was cut off, and of those the
    one that says the answer and nothing else, then the one with fewer words beside it. Wrong completions that are
    equally far off are equally good, whatever their manner, except that silence is worse than an attempt. A completion
    that lists several answers counts as right where one of them is: only its manner tells against it.

    Args:
        error_rate: probability of preferring the worse one of a pair.
        pairs_per_prompt: pairs of a group that are compared, at most.
        ties: whether it says of two equally good completions that they are.
        closeness: how near a wrong completion comes to an answer; see `closeness`.
    """

    def __init__(
        self,
        *,
        error_rate: float,
        seed: int,
        pairs_per_prompt: int = 1,
        ties: bool = False,
        closeness: Closeness = closeness,
    ):
        self.error_rate = error_rate
        self._seed = seed
        self._pairs_per_prompt = pairs_per_prompt
        self._ties = ties
        self._closeness = closeness

    @property
    def name(self) -> str:
        """How tables and reports call this rater: what it ranks by, and how often it errs."""
        return f"scripted (right, then finished, then plain; error rate {self.error_rate:g})"

    def quality(self, completion: Completion, *answers: str) -> Quality:
        """How good a completion is, by that of several right answers which suits it best; equal means that the rater
        does not choose."""
        return max(self._quality(completion, answer) for answer in answers)

    def _quality(self, completion: Completion, answer: str) -> Quality:
        text = completion.text
        is_right = bool(contains(text, answer))
        return Quality(
            right=float(is_right),
            closeness=1.0 if is_right else self._closeness(text, answer),
            tries=bool(normalise(text)),
            finished=completion.finish_reason is FinishReason.STOP,
            plain=exact_match(text, answer),
            spareness=-wer(text, answer) if is_right else 0.0,
        )

    def compare(self, rollout: Rollout, *answers: str) -> list[Preference]:
        """Comparisons in a group, `pairs_per_prompt` at most, those that tell most first.

        The best with the worst; then pairs drawn at random, in turn of those that differ in content and those that
        differ in manner alone; then ties, if they are asked for. Of completions that are equally good one stands for
        all. None where all are equally good and ties are not asked for.
        """
        alike: dict[Quality, list[Completion]] = {}
        for completion in rollout.completions:
            alike.setdefault(self.quality(completion, *answers), []).append(completion)
        # What it draws and where it errs on a prompt does not depend on which prompts came before.
        draw = random.Random(f"{self._seed}:{rollout.prompt_id}")
        found = [
            self._preference(rollout.prompt_id, draw, alike[better][0], alike[worse][0])
            for better, worse in _in_turn(sorted(alike, reverse=True), draw)[: self._pairs_per_prompt]
        ]
        if self._ties:
            equals = chain.from_iterable(map(_different, alike.values()))
            found += [self._record(rollout.prompt_id, *pair, is_tie=True) for pair in equals]
        return found[: self._pairs_per_prompt]

    def _preference(self, prompt_id: str, draw: random.Random, better: Completion, worse: Completion) -> Preference:
        if draw.random() < self.error_rate:
            better, worse = worse, better
        return self._record(prompt_id, better, worse, is_tie=False)

    def _record(self, prompt_id: str, chosen: Completion, rejected: Completion, *, is_tie: bool) -> Preference:
        return Preference(
            prompt_id=prompt_id,
            chosen_ids=tuple(chosen.token_ids.tolist()),
            rejected_ids=tuple(rejected.token_ids.tolist()),
            chosen=chosen.text,
            rejected=rejected.text,
            rater=self.name,
            rater_kind=RaterKind.SCRIPTED,
            error_rate=self.error_rate,
            is_tie=is_tie,
        )


def _in_turn(ranked: Sequence[Quality], draw: random.Random) -> list[tuple[Quality, Quality]]:
    """All pairs (better, worse) of qualities ranked from the best: the two ends, then both kinds of others in turn."""
    pairs = list(combinations(ranked, 2))
    if not pairs:
        return []
    ends = (ranked[0], ranked[-1])
    others = draw.sample([pair for pair in pairs if pair != ends], k=len(pairs) - 1)
    # A reward model that was shown one kind alone cannot tell the other: the kind that the ends are not goes first.
    kinds = [[pair for pair in others if _same_content(*pair) is same] for same in (True, False)]
    first, second = reversed(kinds) if _same_content(*ends) else kinds
    return [ends, *(pair for pair in chain.from_iterable(zip_longest(first, second)) if pair)]


def _same_content(better: Quality, worse: Quality) -> bool:
    return better[:3] == worse[:3]


def _different(completions: Sequence[Completion]) -> list[tuple[Completion, Completion]]:
    """The first completion with each other one that says something else."""
    first = completions[0]
    others = {each.text: each for each in completions[1:] if each.text != first.text}
    return [(first, each) for each in others.values()]
