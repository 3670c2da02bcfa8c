"""One answer out of many judgements: strengths of completions, true labels behind erring raters, and weights of clicks.

Strengths are on a log scale with a mean of zero: of two completions whose strengths differ by d the stronger one wins
with probability sigmoid(d), as it does with the scores of a reward model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, permutations
from typing import NamedTuple

import choix
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.special import softmax

MAX_ITERATIONS = 1000


class Comparison(NamedTuple):
    """Which of two items won; of a tie, both in any order. The weight is 1 for one judgement that is fully believed."""

    winner: int
    loser: int
    weight: float = 1.0
    is_tie: bool = False


def bradley_terry(num_items: int, comparisons: Sequence[Comparison], *, prior: float = 0.5) -> NDArray[np.float64]:
    """Strengths s [N] of N items out of pairs (Bradley and Terry 1952): P(i beats j) = sigmoid(s_i - s_j).

    s maximises the sum of weight * log P(winner beats loser), where a tie is half a win of each. Before it, every item
    has won `prior` times and lost as often, against all others alike: so there is a maximum where an item never lost,
    and where some were never compared. Of two items it is s_1 - s_2 = log (wins_1 + prior) / (wins_2 + prior).

    Found by iterative Luce spectral ranking (Maystre and Grossglauser 2015); it costs N^3 an iteration.

    Raises:
        ValueError: `prior` is not above 0, an item is none of the N, is compared with itself, or a weight is negative.
        RuntimeError: no convergence.
    """
    _check_prior(prior)
    wins = np.full((num_items, num_items), prior / max(num_items - 1, 1))
    np.fill_diagonal(wins, 0.0)
    for winner, loser, weight, is_tie in comparisons:
        _check_items((winner, loser), num_items)
        if winner == loser or not 0 <= weight < math.inf:
            raise ValueError(f"comparison of {winner} and {loser}, weight {weight}: give two items and a weight >= 0")
        wins[winner, loser] += weight / 2 if is_tie else weight
        wins[loser, winner] += weight / 2 if is_tie else 0.0
    return choix.ilsr_pairwise_dense(wins, max_iter=MAX_ITERATIONS)


def plackett_luce(
    num_items: int, rankings: Sequence[Sequence[int | None]], *, prior: float = 0.5
) -> NDArray[np.float64]:
    """Strengths s [N] of N items out of rankings (Luce 1959; Plackett 1975), the best of what is left chosen each time.

    P(order i_1, i_2, ...) = prod_k exp(s_{i_k}) / (exp(s_{i_k}) + exp(s_{i_k+1}) + ...), so that any two of them are a
    pair of Bradley and Terry. s maximises the sum of the rankings' log P; before them every item was chosen `prior`
    times as the best of all N (a Dirichlet prior: Caron and Doucet 2012).

    A ranking with ties leaves open in which order those that tie would come. Its log P is the mean over all orders
    that agree with it (where six or more tie, over some that favour none of them): a tie of two is half a win of each,
    as in `bradley_terry`. Allison and Christakis (1994) take the log of the sum of P instead, which learns nothing from
    a tie of two, and need not have one maximum.

    Found by iterative Luce spectral ranking (Maystre and Grossglauser 2015).

    Args:
        rankings: each the ranks of all N items: 1 is best, equal ranks are ties, None was not ranked.

    Raises:
        ValueError: `prior` is not above 0, or a ranking has not N ranks.
        RuntimeError: no convergence.
    """
    _check_prior(prior)
    for ranks in rankings:
        if len(ranks) != num_items:
            raise ValueError(f"a ranking has {len(ranks)} ranks, num_items is {num_items}: give one, or None, an item")
    orders = [[_orders(group) for group in _groups(ranks)] for ranks in rankings]
    # Every ranking must stand for equally many. Terms of log P depend on the order within one group only: so the groups
    # need not be combined, and it is enough that each goes through all of its orders.
    repeats = math.lcm(*(len(each) for groups in orders for each in groups))
    spread = [[each * (repeats // len(each)) for each in groups] for groups in orders]
    whole = [tuple(chain(*parts)) for groups in spread for parts in zip(*groups, strict=True)]
    # With alpha, each item has been chosen alpha * N times.
    return choix.ilsr_rankings(num_items, whole, alpha=prior * repeats / num_items, max_iter=MAX_ITERATIONS)


def _groups(ranks: Sequence[int | None]) -> list[tuple[int, ...]]:
    """Items that share a rank, from the best rank on."""
    found = sorted({rank for rank in ranks if rank is not None})
    return [tuple(item for item, each in enumerate(ranks) if each == rank) for rank in found]


def _orders(group: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All orders of up to four items; of more, the turns of a ring at every stride that meets all of its items.

    What counts is which items are left after each choice. With the turns all are left equally often, and of five items
    (prime: two strides) every two and every three are, too: those ten orders have the mean over all 120.
    """
    num = len(group)
    if num <= 4:
        return list(permutations(group))
    strides = [stride for stride in range(1, num // 2 + 1) if math.gcd(stride, num) == 1]
    return [tuple(group[(start + stride * k) % num] for k in range(num)) for stride in strides for start in range(num)]


def _check_prior(prior: float) -> None:
    if not prior > 0:
        raise ValueError(f"prior is {prior}: it must be above 0, or there may be no estimate (0.5 is a weak one)")


def _check_items(items: Sequence[int], num_items: int) -> None:
    outside = [item for item in items if not 0 <= item < num_items]
    if outside:
        raise ValueError(f"item {outside[0]} is none of num_items = {num_items}: items are 0 to {num_items - 1}")


@dataclass(frozen=True, eq=False)
class TrueLabels:
    """What `dawid_skene` holds to be true of I items, R raters and C classes."""

    items: tuple[str, ...]
    """In the order in which they came, as are the raters."""
    raters: tuple[str, ...]
    posteriors: NDArray[np.float64]
    """[I, C]: probability of each class."""
    confusion: NDArray[np.float64]
    """[R, C, C]: probability with which a rater gives a label (last axis) to an item of a class (the one before)."""
    class_prior: NDArray[np.float64]
    """[C]: share of each class."""
    has_converged: bool


def dawid_skene(
    labels: Sequence[tuple[str, str, int]],
    num_classes: int,
    *,
    prior: float = 0.5,
    tolerance: float = 1e-6,
    max_iterations: int = MAX_ITERATIONS,
) -> TrueLabels:
    """True classes of items and error rates of raters, each found by the other (Dawid and Skene 1979), by EM.

    From the share of votes for each class (their equation 3.1) on, in turn, with n_irl how often rater r gave label l
    to item i and q_ic the posterior:

    - confusion_rcl ~ prior * (1 + [c = l]) + sum_i q_ic n_irl, class_prior_c ~ prior + sum_i q_ic (2.3 and 2.4)
    - q_ic ~ class_prior_c * prod_rl confusion_rcl^n_irl (2.5)

    `prior` is the smoothing (a Dirichlet prior, EM then finds the posterior's mode; towards 0, the paper's maximum
    likelihood). A label that is right has twice as much of it, as a rater of whom little is known errs less than
    chance would. One whose labels are worse than chance is turned around, not only left out. Raters are taken to err
    independently, and most of them to know better than chance.

    Args:
        labels: (item, rater, label from 0 to C - 1), in any number and order; a rater may judge an item repeatedly.
        tolerance: has converged where no posterior changes by more.

    Raises:
        ValueError: no labels, a label is none of the C, or `prior` is not above 0.
    """
    _check_prior(prior)
    if not labels:
        raise ValueError("labels is empty: there is nothing to be learned of items or raters")
    for item, rater, label in labels:
        if not 0 <= label < num_classes:
            raise ValueError(f"label {label} of {item} by {rater}: of {num_classes} classes it is one from 0 on")
    items = {item: place for place, item in enumerate(dict.fromkeys(item for item, _, _ in labels))}
    raters = {rater: place for place, rater in enumerate(dict.fromkeys(rater for _, rater, _ in labels))}
    columns = [items[item] for item, _, _ in labels]
    answers = [raters[rater] * num_classes + label for _, rater, label in labels]
    shape = (len(raters) * num_classes, len(items))
    given = csr_array((np.ones(len(labels)), (answers, columns)), shape=shape)

    # The share of votes: all raters' answers of a label together.
    votes = given.T @ np.tile(np.eye(num_classes), (len(raters), 1))
    posteriors = votes / votes.sum(axis=1, keepdims=True)
    smoothing = prior * (1 + np.eye(num_classes))
    confusion, class_prior = _rates(given, posteriors, smoothing)
    has_converged = False
    for _ in range(max_iterations):
        before, posteriors = posteriors, _posteriors(given, confusion, class_prior)
        confusion, class_prior = _rates(given, posteriors, smoothing)
        has_converged = bool(np.abs(posteriors - before).max() <= tolerance)
        if has_converged:
            break
    return TrueLabels(tuple(items), tuple(raters), posteriors, confusion, class_prior, has_converged)


def _rates(
    given: csr_array, posteriors: NDArray[np.float64], smoothing: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The M step: confusion [R, C, C] and class prior [C] of posteriors [I, C]; given is n [R * C, I]."""
    num_classes = len(smoothing)
    counts = (given @ posteriors).reshape(-1, num_classes, num_classes).transpose(0, 2, 1) + smoothing
    shares = posteriors.sum(axis=0) + smoothing.min()
    return counts / counts.sum(axis=2, keepdims=True), shares / shares.sum()


def _posteriors(
    given: csr_array, confusion: NDArray[np.float64], class_prior: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The E step: posteriors [I, C] of confusion [R, C, C] and class prior [C]; given is n [R * C, I]."""
    by_answer = np.log(confusion).transpose(0, 2, 1).reshape(-1, len(class_prior))
    return softmax(np.log(class_prior) + given.T @ by_answer, axis=1)


def reliability(posteriors: NDArray[np.float64], confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Expected accuracy [R] of each rater on items such as these: sum_c mean_i q_ic * confusion_rcc.

    Both as in `TrueLabels`: posteriors q [I, C], confusion [R, C, C]. Chance has 1 / C where classes are equally many.
    """
    return np.diagonal(confusion, axis1=1, axis2=2) @ posteriors.mean(axis=0)


def position_propensities(num_chosen: ArrayLike, num_shown: ArrayLike) -> NDArray[np.float64]:
    """How likely each place of the page is to be looked at, relative to the likeliest one: [K], 0 to 1.

    Where completions are shown in random order, what stands at a place is no better than elsewhere. The share chosen
    there is then proportional to the probability that the place is looked at (position-based model: Joachims,
    Swaminathan and Schnabel 2017, arXiv 1608.04468): p_k = r_k / max_j r_j, r_k = num_chosen_k / num_shown_k.
    Count pages with K completions only: with other numbers on the page, places are looked at differently.

    Raises:
        ValueError: a place was never shown, nothing was chosen at all, or the counts do not fit each other.
    """
    chosen, shown = np.asarray(num_chosen, np.float64), np.asarray(num_shown, np.float64)
    if chosen.shape != shown.shape or not (shown > 0).all() or not ((chosen >= 0) & (chosen <= shown)).all():
        raise ValueError(f"num_chosen {chosen}, num_shown {shown}: each place needs 0 <= num_chosen <= num_shown > 0")
    if not chosen.any():
        raise ValueError("num_chosen is 0 at every place: propensities need clicks; wait for some")
    rates = chosen / shown
    return rates / rates.max()


def weak_label_weights(
    places: ArrayLike, propensities: ArrayLike, *, scale: float, max_inverse: float = 10.0
) -> NDArray[np.float64]:
    """Weights [N] of clicks by the places at which they fell: a click where few look says more.

    w_n = scale * v_n / mean(v), v_n = min(1 / p_{places_n}, max_inverse): inverse propensities (Joachims, Swaminathan
    and Schnabel 2017, arXiv 1608.04468), clipped, which trades a bias for less variance (Ionides 2008), and
    self-normalised (Swaminathan and Joachims 2015), so that relative propensities will do.

    Args:
        places: of each click, from 0; [N].
        propensities: as of `position_propensities`; [K].
        scale: what a click weighs on average where an explicit judgement weighs 1.

    Raises:
        ValueError: a place is none of the K, a propensity is not in [0, 1], or `scale` or `max_inverse` are too small.
    """
    at, looked_at = np.asarray(places, np.int64), np.asarray(propensities, np.float64)
    _check_items(at.tolist(), len(looked_at))
    if not ((looked_at >= 0) & (looked_at <= 1)).all():
        raise ValueError(f"propensities are {looked_at}: each lies between 0 and 1")
    if not scale > 0 or not max_inverse >= 1:
        raise ValueError(f"scale is {scale} and max_inverse {max_inverse}: above 0, and 1 or more")
    inverse = 1 / np.maximum(looked_at[at], 1 / max_inverse)
    return scale * inverse / inverse.mean() if len(inverse) else inverse
