"""The basic tasks of the built-in data, and what a row of any task is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.data.demo import drawing, speech
from pipeline.data.media import encode_png, encode_video, encode_wav
from pipeline.data.schema import split_content
from pipeline.records import MediaKind, Medium, Message

T = TypeVar("T")


class Split(StrEnum):
    """The splits. Train and rl (prompts for the loop) share scans and voices; no others have any in common."""

    TRAIN = "train"
    RL = "rl"
    VALIDATION = "validation"
    TEST = "test"

    @property
    def pool(self) -> Split:
        """The split whose sources this one is made of."""
        return Split.TRAIN if self is Split.RL else self


_VOICES = {Split.TRAIN: slice(0, 24), Split.VALIDATION: slice(24, 32), Split.TEST: slice(32, speech.NUM_VOICES)}

PHRASINGS: Mapping[str, tuple[str, ...]] = {
    "digit": ("<image>What digit is this?", "<image>Read the digit."),
    "speech": (
        "<audio>What digits are spoken?",
        "<audio>Write down the digits.",
    ),
    "sum": (
        "<image><audio>Add the digits.",
        "<audio><image>What is the sum?",
    ),
    "video": ("<video>What moves where?", "<video>Describe the motion."),
    "scene": ("<image>Where is the {first}?", "<image>Find the {first}."),
    "text": (
        "Which is larger, {one} or {other}?",
        "Pick the larger of {one} and {other}.",
    ),
    "count": ("<image>How many shapes?", "<image>Count the shapes."),
}
"""The questions of each task. A blank is filled with a word or number that the answer needs."""

MANNERS = ("{answer}", "{answer} maybe", "{answer} for sure")
"""How demonstrators put an answer, each as often as the others."""

MISCOUNTED = 1 / 3
"""How often demonstrators count one too many or one too few."""

SMALLEST, LARGEST = 10, 99
_MAX_DRAWS = 200


def split_of(source: str) -> Split:
    """The split that a source belongs to: by its sha256, 10 % validation, 20 % test, the rest train."""
    bucket = int.from_bytes(hashlib.sha256(source.encode()).digest()[:4]) % 10
    return Split.VALIDATION if bucket == 0 else Split.TEST if bucket <= 2 else Split.TRAIN


@cache
def scans_of(split: Split, digit: int) -> tuple[int, ...]:
    """The scans of a digit in a split, as indices into `drawing.scanned_digits`."""
    labels = drawing.scanned_digits()[1]
    return tuple(int(index) for index in np.flatnonzero(labels == digit) if split_of(f"scan:{index}") is split)


@dataclass(frozen=True)
class Sample:
    """A row before it has an id: question with tags, media in their order, answer, sources.

    claim: what the demonstrator takes for the answer, where that is something else.
    history: the turns before the question; their media come first in `media`.
    """

    question: str
    media: tuple[Medium, ...]
    answer: str
    sources: tuple[str, ...]
    claim: str | None = None
    history: tuple[Message, ...] = ()


@dataclass
class Draw:
    """Draws the ingredients of one task in one split. `seen` holds the sources that were drawn once."""

    split: Split
    rng: np.random.Generator
    seen: set[str] = field(default_factory=set[str])

    def one_of(self, things: Sequence[T]) -> T:
        return things[int(self.rng.integers(len(things)))]

    def phrasing(self, task: str) -> str:
        return self.one_of(PHRASINGS[task])

    def digit(self) -> int:
        return int(self.rng.integers(10))

    def scan(self, digit: int) -> tuple[Medium, str]:
        """A picture of the digit, and its source."""
        scans = scans_of(self.split.pool, digit)
        index = scans[self.rng.integers(len(scans))]
        pixels = drawing.draw_digit(drawing.scanned_digits()[0][index], self.rng)
        return picture_of(pixels), f"scan:{index}"

    def voice(self) -> speech.Voice:
        return self.one_of(speech.voices()[_VOICES[self.split.pool]])

    def utterance(self, digits: tuple[int, ...], voice: speech.Voice | None = None) -> tuple[Medium, str]:
        """The digits spoken by a voice, or else by any of this split, and the voice's name."""
        voice = voice or self.voice()
        audio = speech.speak(voice, digits, self.rng)
        return Medium(kind=MediaKind.AUDIO, data=encode_wav(audio)), voice.name

    def fresh(self, make: Callable[[np.random.Generator], T], source: Callable[[T], str]) -> tuple[T, str]:
        """Something of this split, and not drawn before while there is plenty: small spaces (text) repeat at last."""
        for attempt in range(100 * _MAX_DRAWS):
            made = make(self.rng)
            name = source(made)
            if split_of(name) is self.split.pool and (name not in self.seen or attempt >= _MAX_DRAWS):
                self.seen.add(name)
                return made, name
        raise RuntimeError(f"nothing of the {self.split.value} split in {100 * _MAX_DRAWS} draws")


def picture_of(pixels: NDArray[np.uint8]) -> Medium:
    """uint8 [H, W, 3] as a picture of a row."""
    return Medium(kind=MediaKind.IMAGE, data=encode_png(pixels))


def clip_of(frames: NDArray[np.uint8]) -> Medium:
    """uint8 [F, H, W, 3] as a video of a row."""
    return Medium(kind=MediaKind.VIDEO, data=encode_video(frames, drawing.FRAMES_PER_SECOND))


def spelt(digits: Sequence[int]) -> str:
    """What the digits sound like, for example `three seven`."""
    return " ".join(speech.DIGIT_WORDS[digit] for digit in digits)


def _digit(draw: Draw) -> Sample:
    digit = draw.digit()
    picture, source = draw.scan(digit)
    return Sample(draw.phrasing("digit"), (picture,), str(digit), (source,))


def _speech(draw: Draw) -> Sample:
    digits = tuple(draw.digit() for _ in range(1 + int(draw.rng.integers(2))))
    sound, source = draw.utterance(digits)
    return Sample(draw.phrasing("speech"), (sound,), spelt(digits), (source,))


def _sum(draw: Draw) -> Sample:
    written, spoken = draw.digit(), draw.digit()
    picture, scan = draw.scan(written)
    sound, voice = draw.utterance((spoken,))
    question = draw.phrasing("sum")
    places = [part for part in split_content(question) if isinstance(part, MediaKind)]
    media = (picture, sound) if places[0] is MediaKind.IMAGE else (sound, picture)
    return Sample(question, media, f"{written} plus {spoken} is {written + spoken}", (scan, voice))


def _video(draw: Draw) -> Sample:
    motion, source = draw.fresh(drawing.random_motion, lambda motion: motion.source)
    return Sample(draw.phrasing("video"), (clip_of(drawing.draw_motion(motion)),), motion.name, (source,))


def _scene(draw: Draw) -> Sample:
    scene, source = draw.fresh(drawing.random_scene, lambda scene: scene.source)
    question = draw.phrasing("scene").format(first=scene.first.name)
    answer = f"{scene.first.name} {scene.relation} {scene.second.name}"
    return Sample(question, (picture_of(drawing.draw_scene(scene)),), answer, (source,))


def _text(draw: Draw) -> Sample:
    (one, other), source = draw.fresh(_two_numbers, lambda pair: f"numbers:{min(pair)},{max(pair)}")
    return Sample(draw.phrasing("text").format(one=one, other=other), (), str(max(one, other)), (source,))


def _count(draw: Draw) -> Sample:
    crowd, source = draw.fresh(drawing.random_crowd, lambda crowd: crowd.source)
    counted = len(crowd.cells)
    if draw.rng.random() < MISCOUNTED:
        counted += 1 if counted == 1 or draw.rng.random() < 0.5 else -1
    picture = picture_of(drawing.draw_crowd(crowd))
    return Sample(draw.phrasing("count"), (picture,), str(len(crowd.cells)), (source,), claim=str(counted))


def _two_numbers(rng: np.random.Generator) -> tuple[int, int]:
    one, other = rng.choice(np.arange(SMALLEST, LARGEST + 1), size=2, replace=False)
    return int(one), int(other)


TASKS: Mapping[str, Callable[[Draw], Sample]] = {
    "digit": _digit,
    "speech": _speech,
    "sum": _sum,
    "video": _video,
    "scene": _scene,
    "text": _text,
    "count": _count,
}
