"""What people show without being asked, as comparisons that weigh less than what they say.

A completion that was chosen among several, copied or given a thumb up is taken to be better than those beside it, and
one that was regenerated or given a thumb down to be worse. A click is likelier where people look first, whatever
stands there. As completions are shown in random order, how likely it is at each place of the page can be told from
the clicks themselves; a click counts by the inverse of that.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from pipeline.feedback.aggregation import position_propensities, weak_label_weights
from pipeline.feedback.exchange.labels import Comparison
from pipeline.feedback.records import Act, EventKind, Item, Viewing
from pipeline.records import MediaKind

LEAST_S = 1.0
"""Seconds on an item, and of its sound or video, below which nothing is learned of it."""
PRIOR_CLICKS = 5.0
"""Clicks at each place before the first one: a few clicks do not make one place many times likelier than another."""
MAX_INVERSE = 4.0
"""What a click weighs at most, relative to one at the likeliest place."""

_GOOD = frozenset({EventKind.CHOSEN, EventKind.COPIED})
_SEEN = frozenset({EventKind.OPENED, EventKind.DWELT})
_HEARD = frozenset({MediaKind.AUDIO, MediaKind.VIDEO})


@dataclass(frozen=True)
class WeakComparison(Comparison):
    """Which of two completions somebody liked better by what he did; `judgement` is None, as he said nothing.

    weight: where a judgement weighs 1; not above 1.
    """

    rater: str | None = None
    weight: float = 0.0


def weak_comparisons(
    viewings: Iterable[Viewing], *, weight: float, aside: Collection[str] = ()
) -> list[tuple[Item, WeakComparison]]:
    """Comparisons out of clicks, of items to which the rater gave no answer; with the item of each.

    Of two completions that were shown together the one with the better click is chosen; there are no ties, as two
    clicks alike, or none, say little. Where it is known which completions were looked at (opened, dwelt on), the others
    are compared with none. Who has left after `LEAST_S` seconds, or has not played the sound or video, is not heard.

    A comparison has the weight of its click, that of the rarer place where both completions have one: see
    `weak_label_weights`, `weight` being the mean over all clicks. Propensities are those of `position_propensities`,
    for each number of completions on the page, with `PRIOR_CLICKS`.

    Args:
        viewings: as `FeedbackStore.viewings` gives them.
        weight: `feedback.weak_weight`; 0 gives nothing.
        aside: raters who are not heard, as in `overview.set_aside`.

    Raises:
        ValueError: `weight` is not between 0 and 1.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight}: 0 for no weak labels, and at most 1, the weight of a judgement")
    heard = [each for each in viewings if each.rater not in aside and _was_attentive(each)] if weight else []
    weights = _weights_by_place(heard, weight)
    found: list[tuple[Item, WeakComparison]] = []
    for each in heard:
        if each.has_answered:
            continue
        liked, shown_at = _liked(each.acts), {place: at for at, place in enumerate(each.order)}
        of_place = {place: weights[len(each.order)][shown_at[place]] for place in liked}
        for first, second in combinations(sorted(_looked_at(each, liked)), 2):
            one, other = liked.get(first, 0), liked.get(second, 0)
            if one != other:
                own = max(of_place[place] for place in (first, second) if place in liked)
                chosen = first if one > other else second
                found.append((each.item, WeakComparison(first, second, chosen, rater=each.rater, weight=own)))
    return found


def _was_attentive(viewing: Viewing) -> bool:
    """Whether somebody has stayed with an item, and has listened to it: as far as that was told."""
    lasted: defaultdict[EventKind, float] = defaultdict(float)
    for act in viewing.acts:
        lasted[act.kind] += act.value
    has_stayed = EventKind.DWELT not in lasted or lasted[EventKind.DWELT] >= LEAST_S
    is_heard = any(medium.kind in _HEARD for medium in viewing.item.media)
    return has_stayed and (not is_heard or lasted[EventKind.PLAYED] >= LEAST_S)


def _liked(acts: Sequence[Act]) -> dict[int, int]:
    """1 or -1 of each completion that was clicked; a thumb says more than the rest, and the last one counts."""
    found: dict[int, int] = {}
    thumbs: dict[int, int] = {}
    for act in acts:
        if act.place is None:
            continue
        if act.kind is EventKind.THUMB:
            thumbs[act.place] = int(np.sign(act.value))
        elif act.kind in _GOOD or act.kind is EventKind.REGENERATED:
            found[act.place] = 1 if act.kind in _GOOD else -1
    return {**found, **{place: value for place, value in thumbs.items() if value}}


def _looked_at(viewing: Viewing, liked: Mapping[int, int]) -> set[int]:
    """Places of completions that were looked at; all, where nothing is known of that."""
    seen = {act.place for act in viewing.acts if act.kind in _SEEN and act.place is not None}
    return seen | set(liked) if seen else set(viewing.order)


def _weights_by_place(viewings: Sequence[Viewing], weight: float) -> dict[int, dict[int, float]]:
    """Weights of a click by the number of completions on the page, and its place there."""
    num_shown = Counter(len(each.order) for each in viewings)
    clicks: defaultdict[int, list[int]] = defaultdict(list)
    for each in viewings:
        clicks[len(each.order)] += [each.order.index(place) for place in _liked(each.acts)]
    found: dict[int, dict[int, float]] = {}
    for num, at in clicks.items():
        clicked = np.bincount(np.array(at, np.int64), minlength=num) + PRIOR_CLICKS
        propensities = position_propensities(clicked, np.full(num, num_shown[num] + PRIOR_CLICKS))
        own = np.minimum(weak_label_weights(at, propensities, scale=weight, max_inverse=MAX_INVERSE), 1.0)
        found[num] = dict(zip(at, own.tolist(), strict=True))
    return found
