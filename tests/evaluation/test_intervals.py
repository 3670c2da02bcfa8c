"""Intervals against numbers worked out by hand, published values, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.evaluation.intervals import Estimate, Z, jackknife, paired, proportion, wilson


@pytest.mark.parametrize(
    ("successes", "num", "low", "high"),
    [
        (0, 64, 0.0, 0.0566),  # z^2 / (n + z^2) = 3.8415 / 67.8415
        (64, 64, 0.9434, 1.0),
        (5, 10, 0.2366, 0.7634),  # these as statsmodels' proportion_confint(method="wilson") gives them
        (1, 10, 0.0179, 0.4042),
        (50, 100, 0.4038, 0.5962),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_of_zeros_and_ones_it_is_wilsons_interval(successes: int, num: int, low: float, high: float) -> None:
    assert wilson(successes / num, num) == pytest.approx((low, high), abs=5.1e-5)
    found = proportion([1.0] * successes + [0.0] * (num - successes))
    assert found is not None and (found.value, found.num_prompts) == (successes / num, num)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5.1e-5)


def test_several_completions_count_as_much_as_they_differ_within_a_prompt() -> None:
    # p = 1/2. Of 8 prompts with 4 completions each, whose means are 1/4 and 3/4: s^2 = 1/16, n = 1/4 * 8 * 16 = 32.
    apart = proportion([0.25, 0.75] * 4, num_samples=32)
    assert apart is not None
    assert (apart.low, apart.high) == pytest.approx(wilson(0.5, 32))
    # Means of 0, 1/2 and 1, two completions each: s^2 = 1/8, n = 1/4 * 8 * 8 = 16.
    some = proportion([0.0, 0.5, 0.5, 1.0] * 2, num_samples=16)
    assert some is not None and (some.low, some.high) == pytest.approx(wilson(0.5, 16))
    # Two alike in each prompt say no more than one.
    alike = proportion([0.0, 1.0] * 4, num_samples=16)
    assert alike is not None and (alike.low, alike.high) == pytest.approx(wilson(0.5, 8))
    # Never more than there are, however even the prompts; and where all are equal, as many as prompts.
    even = proportion([0.49, 0.51] * 4, num_samples=16)
    assert even is not None and (even.low, even.high) == pytest.approx(wilson(0.5, 16))
    assert proportion([0.5] * 8, num_samples=16) == Estimate(0.5, *wilson(0.5, 8), 8)


def test_no_interval_is_without_width_and_each_holds_its_value() -> None:
    for found in (proportion([0.0]), proportion([1.0] * 9), paired([0.0]), paired([1.0] * 5), paired([-0.5] * 7)):
        assert found is not None and found.high - found.low > 0.1
        assert found.low <= found.value <= found.high and found.low >= -1 and found.high <= 1
    assert proportion([]) is None and paired([]) is None


def test_the_paired_interval_by_hand() -> None:
    # 62 zeros: m = 0, v = 2/64, half a width z sqrt(2/64 / 64) = z sqrt(2) / 64.
    zero = paired([0.0] * 62)
    assert zero is not None
    assert (zero.value, zero.low, zero.high) == pytest.approx((0.0, -Z * math.sqrt(2) / 64, Z * math.sqrt(2) / 64))
    # Of 98 prompts 30 won and 10 lost: m = 20/100, v = (30 + 10 + 2)/100 - 0.04 = 0.38.
    won = paired([1.0] * 30 + [-1.0] * 10 + [0.0] * 58)
    assert won is not None and won.value == pytest.approx(20 / 98)
    assert (won.low, won.high) == pytest.approx((0.2 - Z * math.sqrt(0.0038), 0.2 + Z * math.sqrt(0.0038)))
    # Halves: m = (4 - 2) / 2 / 10 = 0.1, v = (6/4 + 2)/10 - 0.01 = 0.34.
    halves = paired([0.5] * 4 + [-0.5] * 2 + [0.0] * 2)
    assert halves is not None and halves.value == 0.125
    assert (halves.low, halves.high) == pytest.approx((0.1 - Z * math.sqrt(0.034), 0.1 + Z * math.sqrt(0.034)))


def test_the_jackknife_of_a_mean_is_the_paired_interval() -> None:
    differences = [1.0, 0.5, 0.0, -0.5, 0.0]
    whole = sum(differences) / 5
    without = [(sum(differences) - each) / 4 for each in differences]
    found, expected = jackknife(whole, without=without), paired(differences)
    assert expected is not None and vars(found) == pytest.approx(vars(expected))
    alone = jackknife(0.5, without=[math.inf])
    assert alone.value == 0.5 and -1 <= alone.low < alone.high <= 1


def test_the_other_way_round_a_difference_and_a_share_have_the_mirrored_interval() -> None:
    one, other = paired([1.0, 0.5, 0.0, 0.0, -0.5]), paired([-1.0, -0.5, 0.0, 0.0, 0.5])
    assert one is not None and other is not None
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
    right, wrong = proportion([1.0, 0.5, 0.0, 0.0], num_samples=8), proportion([0.0, 0.5, 1.0, 1.0], num_samples=8)
    assert right is not None and wrong is not None
    assert (right.value, right.low, right.high) == pytest.approx((1 - wrong.value, 1 - wrong.high, 1 - wrong.low))


@pytest.mark.parametrize(("rate", "spread"), [(0.02, 0.0), (0.1, 0.05), (0.5, 0.4)])
def test_they_hold_the_truth_about_as_often_as_they_say(rate: float, spread: float) -> None:
    """1,000 evaluations of 64 prompts, two completions each; a prompt's skill is `rate` +- `spread`."""
    dice = np.random.default_rng(0)
    skill = rate + spread * dice.choice([-1, 1], size=(2, 1000, 64))
    shares = dice.binomial(2, np.clip(skill, 0, 1)) / 2
    held = [proportion(list(row), num_samples=128) for row in shares[0]]
    gains = [paired(list(row)) for row in shares[1] - shares[0]]
    assert np.mean([each is not None and each.low <= rate <= each.high for each in held]) >= 0.935
    assert np.mean([each is not None and each.low <= 0 <= each.high for each in gains]) >= 0.935


def test_what_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.5 is no share"):
        proportion([0.5, 1.5])
    with pytest.raises(ValueError, match=r"nan is no difference of shares"):
        paired([0.5, math.nan])
