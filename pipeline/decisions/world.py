"""The recommender's world: a catalogue of pictures, users who say or write what they wish, and clicks.

A user wishes for a coloured shape ('a red ring, please', or two spoken words). An item is a picture of one, with a
description. Who examines an item clicks on it with a probability, its *relevance*: high where colour and shape fit,
some where one of the two does, little where none does. Users are of two groups that wish alike: those of the one settle
rather for the colour, those of the other for the shape. The model does not see the group.

Position bias: what is shown at place p is examined with probability 1 / (1 + p)^eta (Joachims et al. 2017, arXiv
1608.04468), and a click is an item that is examined and relevant. A page that logs has a usual place for each item, so
that raw clicks are mistaken about items at the bottom.

As in the demo data a source (text, voice setting) belongs to one split for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.data.demo import drawing, speech
from pipeline.data.demo.tasks import Draw, Split, split_of
from pipeline.decisions.records import LoggedDecision
from pipeline.models.fusion.samples import Sample
from pipeline.records import Audio, Image

GROUPS = ("colour first", "shape first")
"""What users settle for, where an item has one of the two."""

BOTH_FIT, PREFERRED_FITS, OTHER_FITS, NONE_FITS = 0.9, 0.4, 0.2, 0.05
"""Relevance of an item by what of it fits: the attribute that the group prefers, or the other one."""

SPOKEN, WRITTEN = 0.4, 0.4
"""Shares of the wishes that are only spoken, only written; the rest are both."""

USUAL_PLACE = 0.8
"""How often a page shows an item at its usual place; else at any."""

_GREETINGS = ("", "Hello! ", "Good morning. ", "Hi, ", "Dear shop, ", "Hey: ")
_ASKING = ("I want", "I would like", "please show me", "do you have", "I am looking for", "give me", "where is")
_ADJECTIVES = ("", "nice ", "cheap ", "new ", "little ", "good ")
_ENDINGS = ("", ".", " please.", " for my child.", " as a gift.", ", thank you.")
_DESCRIPTIONS = ("A {colour} {shape}.", "One {shape}, in {colour}.", "The {shape} that is {colour}.")

Probabilities = Callable[[Sequence["Wish"]], NDArray[np.float32]]
"""A logging policy: float32 [N, K] of N wishes, rows sum to 1. One that is learned sees `wish.sample` alone."""


@dataclass(frozen=True)
class Item:
    """What can be recommended."""

    id: str
    colour: str
    shape: str
    image: Image
    description: str


@dataclass(frozen=True)
class Wish:
    """What a user wishes. A decision sees `sample`; the rest is the world's own.

    relevance: float32 [K] in [0, 1], the probability of a click on each item once it is examined.
    """

    sample: Sample
    relevance: NDArray[np.float32]
    group: str
    colour: str
    shape: str

    @property
    def best(self) -> int:
        """The most relevant item; the first of equals."""
        return int(self.relevance.argmax())


class ClickWorld:
    """A catalogue and its users, all from one seed; the same on every machine."""

    def __init__(self, *, num_items: int = 12, num_positions: int = 5, eta: float = 1.0, seed: int = 0) -> None:
        """Draws the catalogue.

        Args:
            num_items: 2 to 12 different coloured shapes. With 12 each wish has an item that fits.
            num_positions: places of the page.
            eta: how steeply attention falls with the place; 0 examines all.
            seed: of the catalogue, of what lies where on the page, and of the wishes.

        Raises:
            ConfigError: a number is out of bounds.
        """
        names = [*product(drawing.COLOURS, drawing.SHAPES)]
        if not 2 <= num_items <= len(names):
            raise ConfigError(f"num_items={num_items}: there are {len(names)} coloured shapes; use 2 to {len(names)}")
        if num_positions < 1:
            raise ConfigError(f"num_positions={num_positions}: a page needs a place; use 1 or more")
        if not 0 <= eta < np.inf:
            raise ConfigError(f"eta={eta:g}: must be finite and at least 0, where 0 examines all places alike")
        rng = np.random.default_rng([seed, 0])
        chosen = rng.permutation(len(names))[:num_items]
        self.seed = seed
        self.items = tuple(
            _item(number, names[name][0], names[name][1], rng) for number, name in enumerate(chosen.tolist())
        )
        """The K items; an action is the number of one."""
        self.examination = ((1.0 + np.arange(num_positions)) ** -eta).astype(np.float64)
        """Float64 [P]: probability that what is shown at a place is examined."""
        self.usual_place: NDArray[np.int64] = rng.permutation(np.arange(num_items) % num_positions)
        """Int64 [K]: where the page mostly shows an item."""

    @property
    def num_actions(self) -> int:
        """K."""
        return len(self.items)

    def wishes(self, split: str, num: int, *, seed: int = 0) -> list[Wish]:
        """The first `num` wishes of a split; `seed` gives others. More of them begin with the same ones.

        Raises:
            ConfigError: there is no such split.
        """
        if split not in tuple(Split):
            raise ConfigError(f"split={split}: this world has {', '.join(Split)}")
        rng = np.random.default_rng([self.seed, 1, seed, tuple(Split).index(Split(split))])
        draw = Draw(split=Split(split), rng=rng)
        return [self._wish(f"{split}-{seed}-{number:06d}", draw) for number in range(num)]

    def relevance(self, colour: str, shape: str, group: str) -> NDArray[np.float32]:
        """Float32 [K]: the probability of a click on each item, once it is examined."""
        credit = {
            (True, True): BOTH_FIT,
            (True, False): PREFERRED_FITS if group == GROUPS[0] else OTHER_FITS,
            (False, True): OTHER_FITS if group == GROUPS[0] else PREFERRED_FITS,
            (False, False): NONE_FITS,
        }
        return np.array([credit[item.colour == colour, item.shape == shape] for item in self.items], np.float32)

    def click(self, wish: Wish, action: int, rng: np.random.Generator, *, position: int = 0) -> float:
        """1.0 where the user examines the place and clicks, else 0.0."""
        return float(rng.random() < self.examination[position] * wish.relevance[action])

    def logging_policy(self, *, skill: float = 3.0, habit: float = 1.0, exploration: float = 0.2) -> Probabilities:
        """What a page may do before anything is learned: softmax(skill * relevance + habit * popularity), mixed with
        the uniform distribution, so that each item has a propensity of exploration / K at least.

        skill: 0 knows nothing of the user. habit: how much it prefers the same items for all, by a standard normal
        popularity of each.

        Raises:
            ConfigError: exploration is not in (0, 1].
        """
        if not 0 < exploration <= 1:
            raise ConfigError(
                f"exploration={exploration:g}: must be in (0, 1]: what is never shown is never learned of"
            )
        popularity = np.random.default_rng([self.seed, 2]).standard_normal(self.num_actions)

        def probabilities(wishes: Sequence[Wish]) -> NDArray[np.float32]:
            scores = skill * relevances(wishes) + habit * popularity
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            return ((1 - exploration) * shares + exploration / self.num_actions).astype(np.float32)

        return probabilities

    def _wish(self, id: str, draw: Draw) -> Wish:
        colour, shape, group = draw.one_of(tuple(drawing.COLOURS)), draw.one_of(drawing.SHAPES), draw.one_of(GROUPS)
        form = draw.rng.random()
        audio = None if SPOKEN <= form < SPOKEN + WRITTEN else _spoken(colour, shape, draw)
        text = None if form < SPOKEN else _written(colour, shape, draw)
        sample = Sample(id=id, text=text, audio=audio)
        return Wish(sample, self.relevance(colour, shape, group), group, colour, shape)


def relevances(wishes: Sequence[Wish]) -> NDArray[np.float32]:
    """Float32 [N, K]."""
    return np.stack([wish.relevance for wish in wishes])


def true_value(wishes: Sequence[Wish], probabilities: NDArray[np.floating]) -> float:
    """What a policy, its probabilities [N, K] in these wishes, is worth: the mean of sum_k pi(k | wish) relevance_k."""
    return float((np.asarray(probabilities, np.float64) * relevances(wishes)).sum(axis=1).mean())


@dataclass(frozen=True)
class Draws:
    """Columns of simulated decisions: which wish, action, place (int64 [N]), propensity, click (float64 [N])."""

    wishes: NDArray[np.int64]
    actions: NDArray[np.int64]
    positions: NDArray[np.int64]
    propensities: NDArray[np.float64]
    clicks: NDArray[np.float64]


def draw_clicks(
    world: ClickWorld,
    *,
    relevance: NDArray[np.float32],
    probabilities: NDArray[np.floating],
    wishes: NDArray[np.int64],
    rng: np.random.Generator,
) -> Draws:
    """A decision for each of N `wishes`, numbers of M whose `relevance` and policy `probabilities` are [M, K]."""
    num, num_actions = len(wishes), relevance.shape[1]
    shares = np.asarray(probabilities, np.float64)[wishes]
    shares /= shares.sum(axis=1, keepdims=True)
    actions = np.minimum((shares.cumsum(axis=1) < rng.random((num, 1))).sum(axis=1), num_actions - 1)
    anywhere = rng.integers(len(world.examination), size=num)
    positions = np.where(rng.random(num) < USUAL_PLACE, world.usual_place[actions], anywhere)
    clicks = rng.random(num) < world.examination[positions] * relevance[wishes, actions]
    return Draws(wishes, actions, positions, shares[np.arange(num), actions], clicks.astype(np.float64))


def simulate_clicks(
    world: ClickWorld,
    *,
    policy: Probabilities | None = None,
    num: int,
    seed: int,
    split: str = "train",
    wishes: Sequence[Wish] | None = None,
) -> list[LoggedDecision]:
    """A log of `num` decisions by a policy whose propensities are known, each a session of its own.

    policy: None is the world's own `logging_policy()`.
    wishes: drawn from with replacement; None takes `num` fresh ones of the split, each once.
    """
    rng = np.random.default_rng([world.seed, 3, seed])
    asked = world.wishes(split, num, seed=seed) if wishes is None else wishes
    chosen = np.arange(num) if wishes is None else rng.integers(len(asked), size=num)
    shares = (policy or world.logging_policy())(asked)
    draws = draw_clicks(world, relevance=relevances(asked), probabilities=shares, wishes=chosen, rng=rng)
    return [
        LoggedDecision(
            context=asked[draws.wishes[row]].sample,
            action=int(draws.actions[row]),
            propensity=float(draws.propensities[row]),
            position=int(draws.positions[row]),
            reward=float(draws.clicks[row]),
            group=asked[draws.wishes[row]].group,
        )
        for row in range(num)
    ]


def _item(number: int, colour: str, shape: str, rng: np.random.Generator) -> Item:
    x, y = (int(place) for place in rng.integers(8, 17, size=2))
    drawn = drawing.Shape(colour=colour, kind=shape, x=x, y=y, radius=int(rng.integers(6, 8)))
    pixels = drawing.draw_portrait(drawing.Portrait(shape=drawn, background=int(rng.integers(0, 30))))
    words = _DESCRIPTIONS[int(rng.integers(len(_DESCRIPTIONS)))].format(colour=colour, shape=shape)
    return Item(f"item-{number:02d}", colour, shape, Image(pixels=pixels), words)


def _spoken(colour: str, shape: str, draw: Draw) -> Audio:
    return speech.say(draw.voice(), (colour, shape), draw.rng)


def _written(colour: str, shape: str, draw: Draw) -> str:
    while True:
        start, asking, adjective, ending = map(draw.one_of, (_GREETINGS, _ASKING, _ADJECTIVES, _ENDINGS))
        text = f"{start}{asking} a {adjective}{colour} {shape}{ending}"
        if split_of(f"wish:{text}") is draw.split.pool:
            return text
