"""95 % intervals of means over prompts: closed formulas, the same at every call, and never of no width.

Prompts are the independent units: several completions of one prompt are averaged first. A bootstrap of 64 zeros, or of
64 equal differences, would claim certainty; what stands here does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float
    num_prompts: int


def wilson(share: float, num: float) -> tuple[float, float]:
    """Wilson's score interval (1927) of a proportion `share` in `num` > 0 independent trials.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    """
    centre = share + Z**2 / (2 * num)
    half = Z * math.sqrt(share * (1 - share) / num + Z**2 / (4 * num**2))
    scale = 1 + Z**2 / num
    # Both ends of the formula are exact at 0 and 1; floats are not.
    return max(0.0, min(share, (centre - half) / scale)), min(1.0, max(share, (centre + half) / scale))


def proportion(values: Sequence[float], *, num_samples: int | None = None) -> Estimate | None:
    """Mean of one value in [0, 1] a prompt, with Wilson's interval at the effective sample size; None for no values.

    A value is 0 or 1 (one completion a prompt) or the mean of several completions, which are alike within a prompt.
    The effective size is that of independent trials whose share varies as the mean of the N prompts does (Kish 1965;
    with Wilson's interval: Dean and Pagano 2015): n = p(1-p) / (s^2/N), s^2 the variance between prompts. It is N for
    zeros and ones, so that this is Wilson's own interval there. It lies between N and the number of completions, and is
    N where all prompts are equal, as then nothing tells how alike their completions are.

    num_samples: completions over all prompts; None is one a prompt.

    Raises:
        ValueError: a value is outside [0, 1].
    """
    if not values:
        return None
    outside = [value for value in values if not 0 <= value <= 1]
    if outside:
        raise ValueError(f"{outside[0]} is no share: an interval of a proportion needs values from 0 to 1")
    num, mean = len(values), fmean(values)
    spread = fmean((value - mean) ** 2 for value in values)
    most = max(num, num_samples or num)
    effective = min(max(mean * (1 - mean) * num / spread, num), most) if spread > 0 else num
    low, high = wilson(mean, effective)
    return Estimate(mean, low, high, num)


def paired(differences: Sequence[float]) -> Estimate | None:
    """Mean of one difference in [-1, 1] a prompt, with the adjusted Wald interval for pairs; None for none.

    Bonett and Price (2012) add one pair to each side, +1 and -1, to the N differences d: with
    m = sum(d) / (N+2) and v = (sum(d^2) + 2) / (N+2) - m^2 the interval is m +- z sqrt(v / (N+2)).
    For single 0/1 answers that is their interval; for means of several answers a prompt, sum(d^2) is the same estimate
    with prompts as clusters. Where all N differences are 0 it is +- z sqrt(2) / (N+2): like the rule of three for zero
    events, it says what N prompts could have missed.

    Raises:
        ValueError: a difference is outside [-1, 1].
    """
    if not differences:
        return None
    outside = [value for value in differences if not -1 <= value <= 1]
    if outside:
        raise ValueError(f"{outside[0]} is no difference of shares: a paired interval needs values from -1 to 1")
    return _adjusted(fmean(differences), differences)


def jackknife(value: float, *, without: Sequence[float]) -> Estimate:
    """Of a difference in [-1, 1] that is no mean over prompts, from what it is without each of them.

    Its pseudo-values N value - (N-1) without_i are to it what the differences of the prompts are to their mean (Tukey
    1958; Miller 1974), and get the same interval: of a mean this is `paired`. A quotient of means has intervals of the
    delta method so, up to O(1/N).

    without: one a prompt, the same of the other N-1; of one prompt alone it does not count.
    """
    num = len(without)
    return _adjusted(value, [num * value - (num - 1) * each for each in without])


def _adjusted(value: float, differences: Sequence[float]) -> Estimate:
    """Bonett and Price's interval, see `paired`."""
    num = len(differences) + 2
    middle = math.fsum(differences) / num
    variance = (math.fsum(each**2 for each in differences) + 2) / num - middle**2
    half = Z * math.sqrt(variance / num)
    return Estimate(value, max(-1.0, middle - half), min(1.0, middle + half), len(differences))
