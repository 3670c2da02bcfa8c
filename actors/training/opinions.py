"""What a reward model minimises: what raters say of the completions of a pass, against their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations

import torch
from torch import Tensor

from actors.roles.encoder import PromptRef
from pipeline.algorithms.ensemble import bootstrap_counts
from pipeline.algorithms.preference import bradley_terry_loss, plackett_luce_loss, rating_loss
from pipeline.models.forward import overall
from pipeline.records import Opinion, Preference, Ranking, Rating


@dataclass(frozen=True)
class Example:
    """An encoded prompt, and what a rater says of completions of it."""

    prompt: PromptRef
    opinion: Opinion


@dataclass(frozen=True)
class Totals:
    """What a whole optimizer step holds: the global normalisers.

    weight: of all choices and ratings. num_compared: pairs and rankings; num_rated: ratings, one a criterion.
    """

    weight: float
    num_compared: int
    num_rated: int

    @classmethod
    def of(cls, batch: Sequence[Example]) -> Totals:
        opinions = [each.opinion for each in batch]
        rated = [each.num_observations for each in opinions if isinstance(each, Rating)]
        weight = sum(each.weight * each.num_observations for each in opinions)
        return cls(weight, len(opinions) - len(rated), sum(rated))


Scores = Callable[[Sequence[Example]], Tensor]
"""Raw scores [N, C, M] of all completions of some examples, one example after the other."""


def compared(opinion: Opinion) -> list[tuple[int, int, bool]]:
    """Every two completions that are compared: the better one, the worse one, and whether they tie."""
    match opinion:
        case Preference():
            return [(0, 1, opinion.is_tie)]
        case Ranking(ranks=ranks):
            order = sorted(range(len(ranks)), key=lambda place: ranks[place])
            return [(one, other, ranks[one] == ranks[other]) for one, other in combinations(order, 2)]
        case Rating():
            return []


@dataclass(frozen=True)
class OpinionLosses:
    """The losses of a pass.

    criteria: of the scores; ratings of any other are of the overall score. weights: [C], of the criteria in that.
    margin_weight: what margins are multiplied by. seed: of what each member of the ensemble learns from.
    """

    scores: Scores
    criteria: Sequence[str]
    weights: Tensor
    margin_weight: float
    seed: int

    def __call__(self, batch: Sequence[Example], totals: Totals) -> dict[str, Tensor]:
        """What is minimised: the mean over the members, each on its own bootstrap sample.

        Beside it the share of pairs ranked as told (of a ranking, of its pairs; a tie counts as half) and the mean
        squared error of ratings, each where the step has some.
        """
        raw = self.scores(batch)
        whole = overall(raw, self.weights)
        starts = accumulate((len(each.opinion.completions) for each in batch), initial=0)
        said = [(start, each.opinion) for start, each in zip(starts, batch, strict=False)]
        pairs = [(start, each) for start, each in said if isinstance(each, Preference)]
        rankings = [(start, each) for start, each in said if isinstance(each, Ranking)]
        ratings = [(start, each) for start, each in said if isinstance(each, Rating)]
        # The overall score beside those of the criteria: it is rated too.
        columns = torch.cat([raw, whole[:, None]], 1)
        parts = [
            *([self._of_pairs(pairs, whole, totals.weight)] if pairs else []),
            *([self._of_rankings(rankings, whole, totals.weight)] if rankings else []),
            *([self._of_ratings(ratings, columns, totals.weight)] if ratings else []),
        ]
        found = {"loss": torch.stack(parts).sum()}
        if totals.num_compared:
            found["accuracy"] = _right(said, whole) / totals.num_compared
        if totals.num_rated:
            found["rating_error"] = self._squared_errors(ratings, columns) / totals.num_rated
        return found

    def _of_pairs(self, pairs: Sequence[tuple[int, Preference]], whole: Tensor, total_weight: float) -> Tensor:
        first = _indices([start for start, _ in pairs], whole)
        chosen, rejected = whole[first], whole[first + 1]
        margin = whole.new_tensor([self.margin_weight * each.margin for _, each in pairs])
        is_tie = torch.tensor([each.is_tie for _, each in pairs], device=whole.device)
        return bradley_terry_loss(
            chosen=chosen.flatten(),
            rejected=rejected.flatten(),
            margin=margin[:, None].expand_as(chosen).flatten(),
            is_tie=is_tie[:, None].expand_as(chosen).flatten(),
            weight=self._shares([each for _, each in pairs], whole).flatten(),
            total_weight=total_weight,
        )

    def _of_rankings(self, rankings: Sequence[tuple[int, Ranking]], whole: Tensor, total_weight: float) -> Tensor:
        width = max(len(each.ranks) for _, each in rankings)
        padding = [[0] * (width - len(each.ranks)) for _, each in rankings]
        ranks = _indices([[*each.ranks, *pad] for (_, each), pad in zip(rankings, padding, strict=True)], whole)
        places = [
            [*range(start, start + len(each.ranks)), *pad] for (start, each), pad in zip(rankings, padding, strict=True)
        ]
        scores = whole[_indices(places, whole)].transpose(1, 2)
        return plackett_luce_loss(
            scores=scores.flatten(0, 1),
            ranks=ranks.repeat_interleave(scores.shape[1], 0),
            weight=self._shares([each for _, each in rankings], whole).flatten(),
            total_weight=total_weight,
        )

    def _of_ratings(self, ratings: Sequence[tuple[int, Rating]], columns: Tensor, total_weight: float) -> Tensor:
        scores, values = self._rated(ratings, columns)
        shares = self._shares([each for _, each in ratings for _ in each.ratings], columns)
        return rating_loss(
            scores=scores.flatten(),
            values=values[:, None].expand_as(scores).flatten(),
            weight=shares.flatten(),
            total_weight=total_weight,
        )

    def _rated(self, ratings: Sequence[tuple[int, Rating]], columns: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [Q, M] of what is rated, and the ratings [Q]."""
        each = [(start, *item) for start, rating in ratings for item in rating.ratings.items()]
        known = {name: column for column, name in enumerate(self.criteria)}
        starts, places = ([row[0] for row in each], [known.get(name, len(known)) for _, name, _ in each])
        scores = columns[_indices(starts, columns), _indices(places, columns)]
        return scores, columns.new_tensor([value for _, _, value in each])

    def _squared_errors(self, ratings: Sequence[tuple[int, Rating]], columns: Tensor) -> Tensor:
        if not ratings:
            return columns.new_zeros(())
        scores, values = self._rated(ratings, columns)
        return (scores.mean(1).sigmoid() - values).square().sum()

    def _shares(self, opinions: Sequence[Opinion], scores: Tensor) -> Tensor:
        """How much each opinion counts for each member [R, M]; over the members its weight on average."""
        num_members = scores.shape[-1]
        keys = [f"{each.prompt_id}/{each.rater}/{each.completions}" for each in opinions]
        counts = [bootstrap_counts(key, num_members=num_members, seed=self.seed) for key in keys]
        weight = scores.new_tensor([each.weight / num_members for each in opinions])
        return weight[:, None] * scores.new_tensor(counts)


def _right(said: Sequence[tuple[int, Opinion]], whole: Tensor) -> Tensor:
    """For how many comparisons the better completion has the higher score: of a ranking a share, of a tie one half."""
    scores = whole.detach().mean(1).tolist()
    found = 0.0
    for start, opinion in said:
        rights = [0.5 if tie else scores[start + i] > scores[start + j] for i, j, tie in compared(opinion)]
        found += sum(rights) / max(len(rights), 1)
    return whole.new_tensor(found)


def _indices(values: Sequence[int] | Sequence[list[int]], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)
