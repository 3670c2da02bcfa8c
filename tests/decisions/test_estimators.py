"""Golden values by hand.

Two actions, uniform logging (propensity 1/2), a target of (3/4, 1/4) in every context. Weights are 3/2 for action 0 and
1/2 for action 1.

    action  0    0    1    1
    reward  1    0    1    0      IPS terms 1.5, 0, 0.5, 0: value 0.5
                                  SNIPS: 2 / (1.5 + 1.5 + 0.5 + 0.5) = 0.5
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.decisions.estimators import (
    doubly_robust,
    estimate_examination,
    examined_rewards,
    folds,
    hall_interval,
    ips,
    snips,
)
from pipeline.decisions.records import Log, check_decision
from pipeline.evaluation.intervals import Z


def log_of(
    actions: list[int],
    rewards: list[float],
    *,
    propensities: list[float] | None = None,
    positions: list[int] | None = None,
    sessions: list[str] | None = None,
) -> Log:
    num = len(actions)
    return Log(
        actions=np.array(actions),
        propensities=np.array(propensities or [0.5] * num, np.float64),
        rewards=np.array(rewards, np.float64),
        positions=np.array(positions or [0] * num),
        groups=("",) * num,
        sessions=tuple(sessions or map(str, range(num))),
    )


LOG = log_of([0, 0, 1, 1], [1.0, 0.0, 1.0, 0.0])
TARGET: NDArray[np.float64] = np.tile([0.75, 0.25], (4, 1))


def test_ips_is_the_mean_of_weighted_rewards() -> None:
    assert ips(LOG, TARGET).value == pytest.approx(0.5)
    skewed = log_of([0, 1, 0], [1.0, 1.0, 0.5], propensities=[0.5, 0.25, 1.0])
    # Weights 1.5, 1, 0.75: (1.5 + 1 + 0.375) / 3.
    assert ips(skewed, TARGET[:3]).value == pytest.approx(2.875 / 3)


def test_snips_divides_by_the_weights_and_is_indifferent_to_a_constant() -> None:
    skewed = log_of([0, 1, 0], [1.0, 1.0, 0.5], propensities=[0.5, 0.25, 1.0])
    assert snips(skewed, TARGET[:3]).value == pytest.approx(2.875 / 3.25)
    moved = snips(skewed, TARGET[:3], rewards=skewed.rewards + 10)
    assert moved.value == pytest.approx(2.875 / 3.25 + 10)
    assert ips(skewed, TARGET[:3], rewards=skewed.rewards + 10).value != pytest.approx(2.875 / 3 + 10)


def test_doubly_robust_adds_weighted_errors_to_what_the_model_expects() -> None:
    predictions = np.tile([0.8, 0.4], (4, 1))
    # Expected 0.75 * 0.8 + 0.25 * 0.4 = 0.7; errors 0.2, -0.8, 0.6, -0.4 with weights 1.5, 1.5, 0.5, 0.5.
    terms = [0.7 + 0.3, 0.7 - 1.2, 0.7 + 0.3, 0.7 - 0.2]
    assert doubly_robust(LOG, TARGET, predictions=predictions).value == pytest.approx(sum(terms) / 4)


def test_doubly_robust_is_exact_where_the_model_is_though_propensities_are_wrong() -> None:
    truth = np.array([[0.9, 0.1], [0.2, 0.6], [0.5, 0.5], [0.0, 1.0]])
    actions = [0, 1, 0, 1]
    rewards = [float(truth[row, action]) for row, action in enumerate(actions)]
    wrong = log_of(actions, rewards, propensities=[0.9, 0.05, 0.3, 0.7])
    found = doubly_robust(wrong, TARGET, predictions=truth)
    assert found.value == pytest.approx(float((TARGET * truth).sum(axis=1).mean()))


def test_estimates_are_unbiased_over_all_logs_that_could_have_been() -> None:
    """The expectation over both actions of one context, weighted by their propensities, is the true value."""
    reward, propensity = [0.9, 0.2], [0.2, 0.8]
    target = np.array([[0.7, 0.3]])
    predictions = np.array([[0.5, 0.5]])
    truth = 0.7 * 0.9 + 0.3 * 0.2
    for estimate in (ips, lambda log, pi: doubly_robust(log, pi, predictions=predictions)):
        values = [
            estimate(log_of([action], [reward[action]], propensities=[propensity[action]]), target).value
            for action in (0, 1)
        ]
        assert propensity[0] * values[0] + propensity[1] * values[1] == pytest.approx(truth)


def test_the_interval_is_normal_where_terms_are_symmetric() -> None:
    log = log_of([0, 0], [1.0, 0.0], propensities=[0.5, 0.5])
    target = np.tile([0.5, 0.5], (2, 1))
    # Terms 1 and 0: deviations +-1/2, as parts of the mean +-1/4; s^2 = 2 (1/16 + 1/16) + 2 (1/2)^2.
    half = Z * math.sqrt(2 * (2 / 16) + 2 / 4)
    found = ips(log, target)
    assert (found.low, found.high) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))


def test_snips_has_the_interval_of_the_delta_method() -> None:
    # All weights 1: it is the mean, and its deviations are those of the rewards.
    log, target = log_of([0, 1], [1.0, 0.0]), np.tile([0.5, 0.5], (2, 1))
    assert (snips(log, target).low, snips(log, target).high) == (ips(log, target).low, ips(log, target).high)
    # Equal rewards: the self-normalised value is certain but for the width that all have; that of IPS is not.
    equal = log_of([0, 0, 1, 1], [1.0] * 4)
    assert snips(equal, TARGET).high - 1 == pytest.approx(Z * math.sqrt(2) / 4)
    assert ips(equal, TARGET).high - 1 > 1.2 * Z * math.sqrt(2) / 4


def test_a_skewed_log_moves_the_interval_to_where_the_rare_large_weights_are() -> None:
    parts = np.array([-1.0] * 9 + [9.0]) / 1000
    low, high = hall_interval(parts, largest=0.0)
    assert 0 < -low < high
    mirrored = hall_interval(-parts, largest=0.0)
    assert mirrored == (pytest.approx(-high), pytest.approx(-low))
    # By hand, of 9 parts of -1 and one of 9: variance 90 / 10, skewness 720 / 10 / 27 = 8 / 3.
    g, n = 8 / 3, 10
    inner = 1 + g * (-Z / math.sqrt(n) - g / (6 * n))
    cube_root = math.copysign(abs(inner) ** (1 / 3), inner)
    spread = math.sqrt(90 * 10 / 9) / 1000
    assert high == pytest.approx(-spread * math.sqrt(n) * 3 / g * (cube_root - 1))


def test_no_interval_is_of_no_width() -> None:
    found = ips(log_of([0] * 4, [0.0] * 4), TARGET)
    assert found.value == 0 and found.high == pytest.approx(Z * math.sqrt(2) / 4)


def test_decisions_of_one_session_are_one_unit() -> None:
    alone = ips(log_of([0] * 4, [1.0, 1.0, 0.0, 0.0]), TARGET)
    together = ips(log_of([0] * 4, [1.0, 1.0, 0.0, 0.0], sessions=["a", "a", "b", "b"]), TARGET)
    assert together.value == alone.value
    assert together.high - together.low > alone.high - alone.low
    # Sums of 2 * 0.75 a session, two sessions: s^2 = 2 * 2 * 1.5^2 + 2.
    assert together.high - together.value == pytest.approx(Z * math.sqrt(2 * 2 * 1.5**2 + 2) / 4)


def test_clipping_cuts_weights_and_counts_them() -> None:
    found = ips(LOG, TARGET, clip=1.0)
    assert found.value == pytest.approx((1 + 0.5) / 4)
    assert (found.num_clipped, found.largest_weight) == (2, 1.0)
    assert ips(LOG, TARGET).num_clipped == 0


def test_the_effective_size_is_kishs() -> None:
    assert ips(LOG, TARGET).effective_size == pytest.approx((1.5 + 1.5 + 0.5 + 0.5) ** 2 / (2 * 2.25 + 2 * 0.25))
    assert ips(LOG, np.full((4, 2), 0.5)).effective_size == pytest.approx(4)


def test_rewards_are_corrected_by_the_examination_of_their_place() -> None:
    log = log_of([0, 0, 1], [1.0, 1.0, 0.0], positions=[0, 2, 1])
    assert examined_rewards(log, np.array([1.0, 0.5, 0.25])).tolist() == [1.0, 4.0, 0.0]
    with pytest.raises(ConfigError, match=r"row 1: position=2, and examination has 2 places"):
        examined_rewards(log, np.array([1.0, 0.5]))
    with pytest.raises(ConfigError, match=r"examination\[1\]=0"):
        examined_rewards(log, np.array([1.0, 0.0, 0.5]))


def test_examination_is_found_where_items_were_at_several_places() -> None:
    # Attraction 0.8 and 0.4, examination 1 and 0.5; item 0 mostly at place 0, item 1 at place 1; clicks as expected.
    shown = {(0, 0): 90, (0, 1): 10, (1, 0): 10, (1, 1): 90}
    attraction, examination = [0.8, 0.4], [1.0, 0.5]
    rows = [
        (item, place, float(number < round(num * attraction[item] * examination[place])))
        for (item, place), num in shown.items()
        for number in range(num)
    ]
    items, places, clicks = zip(*rows, strict=True)
    log = log_of(list(items), list(clicks), positions=list(places))
    assert estimate_examination(log, num_positions=2, num_actions=2).tolist() == pytest.approx([1.0, 0.5], abs=1e-6)
    raw = [np.mean(log.rewards[log.positions == place]) for place in (0, 1)]
    assert raw[1] / raw[0] < 0.35  # what one would take without the items
    with pytest.raises(ConfigError, match="position 2: 0 decisions and no click"):
        estimate_examination(log, num_positions=3, num_actions=2)


def test_a_session_is_whole_in_one_fold() -> None:
    sessions = [f"s{number // 3}" for number in range(30)]
    found = folds(sessions, 3, seed=0)
    assert {name: len(set(found[np.array(sessions) == name])) for name in set(sessions)} == dict.fromkeys(sessions, 1)
    assert sorted(np.bincount(found).tolist()) == [9, 9, 12]
    with pytest.raises(ConfigError, match="num_folds=11"):
        folds(sessions, 11, seed=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"propensities": [0.5, 0.0, 0.5, 0.5]}, r"row 1: propensity=0; must be in \(0, 1\]"),
        ({"propensities": [0.5, 0.5, math.nan, 0.5]}, "row 2: propensity=nan"),
        ({"propensities": [0.5, 0.5, 0.5, 1.5]}, "row 3: propensity=1.5"),
        ({"actions": [0, 2, 0, 0]}, "row 1: action=2 is none of the 2 actions; they count from 0 to 1"),
        ({"actions": [0, -1, 0, 0]}, "row 1: action=-1"),
        ({"rewards": [0.0, 0.0, math.inf, 0.0]}, "row 2: reward=inf; must be finite"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(changed: dict[str, list[float]], message: str) -> None:
    given = {"actions": [0, 0, 1, 1], "rewards": [1.0, 0.0, 1.0, 0.0], "propensities": [0.5] * 4} | changed
    log = log_of(given.pop("actions"), given.pop("rewards"), **given)  # pyright: ignore[reportArgumentType]
    for estimate in (ips, snips, lambda each, pi: doubly_robust(each, pi, predictions=np.zeros((4, 2)))):
        with pytest.raises(ConfigError, match=message):
            estimate(log, TARGET)


def test_a_target_that_is_no_distribution_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"row 0: target=.*no distribution; give probabilities, not logits"):
        ips(LOG, np.tile([2.0, -1.0], (4, 1)))
    with pytest.raises(ConfigError, match=r"target: shape \(3, 2\)"):
        ips(LOG, TARGET[:3])
    with pytest.raises(ConfigError, match="row 0: target="):
        ips(LOG, np.full((4, 2), math.nan))
    with pytest.raises(ConfigError, match=r"predictions: shape \(4, 3\)"):
        doubly_robust(LOG, TARGET, predictions=np.zeros((4, 3)))
    with pytest.raises(ConfigError, match="clip=0"):
        ips(LOG, TARGET, clip=0.0)
    with pytest.raises(ConfigError, match="the log says nothing of it"):
        snips(log_of([1, 1], [1.0, 0.0]), np.tile([1.0, 0.0], (2, 1)))


def test_a_position_below_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="row 7: position=-1"):
        check_decision("row 7", action=0, propensity=0.5, reward=0.0, position=-1, num_actions=2)
