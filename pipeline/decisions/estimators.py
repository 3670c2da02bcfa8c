"""What a policy would earn, told from another policy's log, before anything goes live: IPS, SNIPS, doubly robust.

With weights w = pi(a | x) / p of N logged decisions (x, a, r) of propensity p, and a model q(x, a) of the reward:

- IPS (Horvitz and Thompson 1952):              V = mean(w r)
- SNIPS (Swaminathan and Joachims 2015):        V = sum(w r) / sum(w)
- doubly robust (Dudik et al. 2011, 1103.4601): V = mean(sum_k pi(k | x) q(x, k) + w (r - q(x, a)))

IPS and doubly robust are unbiased where p is right and positive wherever pi is; the latter varies less the better q is,
which must be predicted for a decision by a model that has not learned from it (cross-fitting: `folds`). SNIPS is
consistent, and indifferent to a constant added to rewards. Clipping weights at `clip` trades variance for bias
downwards (where rewards are at least 0), and what was clipped is counted.

The policy must not have learned from the decisions that judge it: it would have fitted their noise (`held_out`).

Intervals are of 95 %, that of SNIPS by the delta method: from the terms V + w (r - V) / mean(w). Decisions of one
session depend on each other: sums over sessions are the independent units (cluster-robust, with C / (C - 1)). Weights
are skewed, so that a normal interval lies too low: Hall's (1992) transformation of the studentised mean corrects for
that. As in `evaluation.intervals` none has no width: to the sum of squares 2 R^2 is added, R the largest reward (at
least 1), which is what one decision more to each side would do (Bonett and Price 2012).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.decisions.records import Log, check_decision
from pipeline.evaluation.intervals import Z

_ROUNDS = 200
_SUM_TOLERANCE = 1e-3
_SYMMETRIC = 1e-6


@dataclass(frozen=True)
class ValueEstimate:
    """A policy's estimated mean reward with the bounds of its 95 % interval, and how much of the log speaks of it."""

    value: float
    low: float
    high: float
    num_decisions: int
    effective_size: float
    """(sum w)^2 / sum w^2 (Kish 1965): so many decisions of the policy's own would say as much. Far below
    `num_decisions`: the log is of another policy, and the interval rests on few rows."""
    largest_weight: float
    num_clipped: int
    """Decisions whose weight was cut."""


def ips(
    log: Log, target: NDArray[np.floating], *, rewards: NDArray[np.floating] | None = None, clip: float | None = None
) -> ValueEstimate:
    """Inverse propensity scoring.

    target: [N, K], the policy's probabilities of all actions in each decision's context.
    rewards: [N] in place of the logged ones, such as `examined_rewards`.
    clip: the largest weight; None cuts none.

    Raises:
        ConfigError: a shape is wrong, `target` is no distribution, or a row of the log cannot be used.
    """
    log, target, weights, rewards = _weighted(log, target, rewards, clip)
    return _estimate(weights * rewards, log, target, weights, rewards, clip)


def snips(
    log: Log, target: NDArray[np.floating], *, rewards: NDArray[np.floating] | None = None, clip: float | None = None
) -> ValueEstimate:
    """Self-normalised inverse propensity scoring; arguments and errors are those of `ips`.

    Raises:
        ConfigError: besides, the policy takes none of the logged actions: all weights are 0.
    """
    log, target, weights, rewards = _weighted(log, target, rewards, clip)
    if not weights.any():
        raise ConfigError("target: it gives no logged action any probability, so that the log says nothing of it")
    mean_weight = weights.mean()
    value = float((weights * rewards).mean() / mean_weight)
    # Terms whose mean is the value, and whose deviations are those of the delta method.
    return _estimate(value + weights * (rewards - value) / mean_weight, log, target, weights, rewards, clip)


def doubly_robust(
    log: Log,
    target: NDArray[np.floating],
    *,
    predictions: NDArray[np.floating],
    rewards: NDArray[np.floating] | None = None,
    clip: float | None = None,
) -> ValueEstimate:
    """A reward model, set right by the log where it errs; the other arguments and errors are those of `ips`.

    predictions: [N, K], each row by a model that has not learned from it.
    """
    log, target, weights, rewards = _weighted(log, target, rewards, clip)
    predicted = np.asarray(predictions, np.float64)
    if predicted.shape != target.shape:
        raise ConfigError(f"predictions: shape {predicted.shape}; must be that of target, {target.shape}")
    _check_finite("predictions", predicted)
    errors = rewards - predicted[np.arange(len(rewards)), log.actions]
    return _estimate((target * predicted).sum(axis=1) + weights * errors, log, target, weights, rewards, clip)


def folds(sessions: Sequence[str], num_folds: int, *, seed: int) -> NDArray[np.int64]:
    """Int64 [N]: the fold of each decision, for cross-fitting. A session is whole in one fold.

    Raises:
        ConfigError: there are fewer sessions than folds.
    """
    names, number = np.unique(np.asarray(sessions), return_inverse=True)
    if not 2 <= num_folds <= len(names):
        raise ConfigError(f"num_folds={num_folds}: must be from 2 to the number of sessions, {len(names)}")
    return (np.random.default_rng(seed).permutation(len(names)) % num_folds)[number]


def held_out(sessions: Sequence[str], share: float, *, seed: int) -> NDArray[np.bool_]:
    """Bool [N]: the decisions that judge, where the others are learned from. A session is on one side.

    Raises:
        ConfigError: one of the sides would be empty.
    """
    names, number = np.unique(np.asarray(sessions), return_inverse=True)
    num = round(share * len(names))
    if not 0 < num < len(names):
        raise ConfigError(f"share={share:g} of {len(names)} sessions: none would be left on one side; log more")
    return (np.random.default_rng(seed).permutation(len(names)) < num)[number]


def examined_rewards(log: Log, examination: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rewards float64 [N] as if all had been examined: r / examination[position] (Joachims et al. 2017, 1608.04468).

    Right on average where what is not examined is not rewarded, and a place changes nothing but the examination.
    examination: [P], the probability in (0, 1] that each place is examined.

    Raises:
        ConfigError: a probability is outside (0, 1], or a decision has a place beyond.
    """
    for place, share in enumerate(examination):
        if not 0 < share <= 1:
            raise ConfigError(f"examination[{place}]={share:g}; must be in (0, 1]: leave out rows nobody can see")
    if log.positions.max() >= len(examination):
        row = int(log.positions.argmax())
        raise ConfigError(
            f"row {row}: position={log.positions[row]}, and examination has {len(examination)} places; name them all"
        )
    return log.rewards / np.asarray(examination, np.float64)[log.positions]


def estimate_examination(log: Log, *, num_positions: int, num_actions: int) -> NDArray[np.float64]:
    """Float64 [P]: how often each place is examined, relative to place 0, from clicks on items that were at several.

    Maximum likelihood of clicks ~ Poisson(attraction_a examination_p), by alternating its two closed forms. It is right
    where the place was drawn at random given the action, as with randomised positions (Agarwal et al. 2019,
    arXiv 1812.05161, harvest the same from interventions).

    Raises:
        ConfigError: a place was never shown or never clicked.
    """
    shown, clicked = np.zeros((2, num_actions, num_positions))
    np.add.at(shown, (log.actions, log.positions), 1.0)
    np.add.at(clicked, (log.actions, log.positions), log.rewards)
    for place in range(num_positions):
        if not clicked[:, place].sum() > 0:
            raise ConfigError(
                f"position {place}: {int(shown[:, place].sum())} decisions and no click; show items there, at random, "
                "or give its examination probability"
            )
    examination = np.ones(num_positions)
    for _ in range(_ROUNDS):
        expected = shown @ examination
        attraction = np.divide(clicked.sum(axis=1), expected, out=np.zeros(num_actions), where=expected > 0)
        examination = clicked.sum(axis=0) / np.maximum(attraction @ shown, np.finfo(float).tiny)
        examination /= examination[0]
    return examination


def hall_interval(parts: NDArray[np.floating], *, largest: float) -> tuple[float, float]:
    """Bounds, below and above 0, of what a sum of C independent parts may be off by, at 95 %.

    parts: float64 [C], their mean taken off. largest: what a part can be at most, by which no interval has no width.

    With s^2 = C / (C - 1) sum d^2 + 2 largest^2 and skewness g of the parts, Hall (1992, "On the removal of skewness by
    transformation", JRSS B 54) turns the normal quantile z into
    t(z) = sqrt(C) (3 / g) ((1 + g (z / sqrt(C) - g / (6 C)))^(1/3) - 1),
    which is z where g is 0; the bounds are -s t(z) and -s t(-z).
    """
    num = len(parts)
    squares = float((parts**2).sum())
    spread = math.sqrt(squares * (num / (num - 1) if num > 1 else 1.0) + 2 * largest**2)
    skewness = float((parts**3).mean()) / (squares / num) ** 1.5 if squares else 0.0
    if abs(skewness) < _SYMMETRIC:
        return -spread * Z, spread * Z

    def quantile(z: float) -> float:
        inner = 1 + skewness * (z / math.sqrt(num) - skewness / (6 * num))
        return math.sqrt(num) * 3 / skewness * (math.copysign(abs(inner) ** (1 / 3), inner) - 1)

    return -spread * quantile(Z), -spread * quantile(-Z)


def _weighted(
    log: Log, target: NDArray[np.floating], rewards: NDArray[np.floating] | None, clip: float | None
) -> tuple[Log, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Checks everything: the log, target, weights and rewards, all float64."""
    num = len(log.actions)
    target = np.asarray(target, np.float64)
    if target.ndim != 2 or len(target) != num:
        raise ConfigError(f"target: shape {target.shape}; must be [{num}, K]: a row for each of the {num} decisions")
    used = np.asarray(log.rewards if rewards is None else rewards, np.float64)
    if used.shape != (num,):
        raise ConfigError(f"rewards: shape {used.shape}; must be ({num},): one for each decision")
    if clip is not None and not clip > 0:
        raise ConfigError(f"clip={clip:g}: must be above 0; null cuts no weight")
    for row in range(num):
        check_decision(
            f"row {row}",
            action=int(log.actions[row]),
            propensity=float(log.propensities[row]),
            reward=float(used[row]),
            num_actions=target.shape[1],
        )
    _check_finite("target", target)
    sums = target.sum(axis=1)
    wrong = (np.abs(sums - 1) > _SUM_TOLERANCE) | (target < 0).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise ConfigError(
            f"row {row}: target={target[row].tolist()} is no distribution; give probabilities, not logits"
        )
    weights = target[np.arange(num), log.actions] / log.propensities
    return log, target, weights if clip is None else np.minimum(weights, clip), used


def _check_finite(name: str, values: NDArray[np.float64]) -> None:
    rows = ~np.isfinite(values).all(axis=1)
    if rows.any():
        row = int(rows.argmax())
        raise ConfigError(f"row {row}: {name}={values[row].tolist()}; must be finite: look at the model that gave it")


def _estimate(
    terms: NDArray[np.float64],
    log: Log,
    target: NDArray[np.float64],
    weights: NDArray[np.float64],
    rewards: NDArray[np.float64],
    clip: float | None,
) -> ValueEstimate:
    """The mean of the terms, with the interval of its sessions."""
    num, value = len(terms), float(terms.mean())
    names, number = np.unique(np.asarray(log.sessions), return_inverse=True)
    sums = np.zeros(len(names))
    np.add.at(sums, number, terms - value)
    low, high = hall_interval(sums / num, largest=max(1.0, float(np.abs(rewards).max())) / num)
    raw = target[np.arange(num), log.actions] / log.propensities
    total = float((weights**2).sum())
    return ValueEstimate(
        value=value,
        low=value + low,
        high=value + high,
        num_decisions=num,
        effective_size=float(weights.sum()) ** 2 / total if total else 0.0,
        largest_weight=float(weights.max()),
        num_clipped=0 if clip is None else int((raw > clip).sum()),
    )
