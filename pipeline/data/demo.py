"""The built-in data: six small tasks over text, pictures, sound and video, made offline from a seed.

digit   a handwritten digit, scanned   '<image>What digit is this?'         '7'
speech  one or two spoken digits       '<audio>What digits are spoken?'     'three seven'
sum     a written and a spoken digit   '<image><audio>Add the digits.'      '7 plus 5 is 12'
video   a coloured shape that moves    '<video>What moves where?'           'red ring moves left'
scene   two coloured shapes            '<image>Where is the red ring?'    'red ring above blue square'
text    two numbers                    'Which is larger, 47 or 74?'         '74'

People who write demonstrations have manners of their own, and so have these: a third answers plainly ('7'), a third
hedges ('7 maybe'), a third boasts ('7 for sure'). Raters want the plain answer, which is the reference everywhere:
that is what is left to learn from preferences.

What a row is made of (scan, voice setting, geometry, pair of numbers) is a *source*, and a source belongs to one split
for ever, whatever the seed: `split_of` reads it off the source's hash (voice settings are few: they have a list).
So no split leaks into another, not even between a checkpoint of one seed and the test rows of another.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError, Prepare
from pipeline.data import drawing, speech
from pipeline.data.media import encode_png, encode_video, encode_wav
from pipeline.data.schema import split_content, to_row
from pipeline.data.table import write_prompts
from pipeline.records import MediaKind, Medium, Message, Prompt

T = TypeVar("T")


class Split(StrEnum):
    """The splits; no source image and no voice is in two of them."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


_VOICES = {Split.TRAIN: slice(0, 24), Split.VALIDATION: slice(24, 32), Split.TEST: slice(32, speech.NUM_VOICES)}

PHRASINGS: dict[str, tuple[str, ...]] = {
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
}
"""The questions of each task. A blank is filled with a word or number that the answer needs."""

MANNERS = ("{answer}", "{answer} maybe", "{answer} for sure")
"""How demonstrators put an answer, each as often as the others."""

_SMALLEST, _LARGEST = 10, 99
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
    """A row before it has an id: question with tags, media in their order, answer, sources."""

    question: str
    media: tuple[Medium, ...]
    answer: str
    sources: tuple[str, ...]


@dataclass
class Draw:
    """Draws the ingredients of one task in one split. `seen` holds the sources that were drawn once."""

    split: Split
    rng: np.random.Generator
    seen: set[str] = field(default_factory=set[str])

    def phrasing(self, task: str) -> str:
        return PHRASINGS[task][self.rng.integers(len(PHRASINGS[task]))]

    def digit(self) -> int:
        return int(self.rng.integers(10))

    def scan(self, digit: int) -> tuple[Medium, str]:
        """A picture of the digit, and its source."""
        scans = scans_of(self.split, digit)
        index = scans[self.rng.integers(len(scans))]
        pixels = drawing.draw_digit(drawing.scanned_digits()[0][index], self.rng)
        return _picture(pixels), f"scan:{index}"

    def utterance(self, digits: tuple[int, ...]) -> tuple[Medium, str]:
        """The digits spoken by a voice of this split, and the voice's name."""
        voices = speech.voices()[_VOICES[self.split]]
        voice = voices[self.rng.integers(len(voices))]
        audio = speech.speak(voice, digits, self.rng)
        return Medium(kind=MediaKind.AUDIO, data=encode_wav(audio)), voice.name

    def fresh(self, make: Callable[[np.random.Generator], T], source: Callable[[T], str]) -> tuple[T, str]:
        """Something of this split, and not drawn before while there is plenty: small spaces (text) repeat at last."""
        for attempt in range(100 * _MAX_DRAWS):
            made = make(self.rng)
            name = source(made)
            if split_of(name) is self.split and (name not in self.seen or attempt >= _MAX_DRAWS):
                self.seen.add(name)
                return made, name
        raise RuntimeError(f"nothing of the {self.split.value} split in {100 * _MAX_DRAWS} draws")


def _picture(pixels: NDArray[np.uint8]) -> Medium:
    return Medium(kind=MediaKind.IMAGE, data=encode_png(pixels))


def _digit(draw: Draw) -> Sample:
    digit = draw.digit()
    picture, source = draw.scan(digit)
    return Sample(draw.phrasing("digit"), (picture,), str(digit), (source,))


def _speech(draw: Draw) -> Sample:
    digits = tuple(draw.digit() for _ in range(1 + int(draw.rng.integers(2))))
    sound, source = draw.utterance(digits)
    return Sample(draw.phrasing("speech"), (sound,), " ".join(speech.DIGIT_WORDS[digit] for digit in digits), (source,))


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
    clip = Medium(MediaKind.VIDEO, encode_video(drawing.draw_motion(motion), drawing.FRAMES_PER_SECOND))
    return Sample(draw.phrasing("video"), (clip,), f"{motion.shape.name} moves {motion.direction}", (source,))


def _scene(draw: Draw) -> Sample:
    scene, source = draw.fresh(drawing.random_scene, lambda scene: scene.source)
    question = draw.phrasing("scene").format(first=scene.first.name)
    answer = f"{scene.first.name} {scene.relation} {scene.second.name}"
    return Sample(question, (_picture(drawing.draw_scene(scene)),), answer, (source,))


def _text(draw: Draw) -> Sample:
    (one, other), source = draw.fresh(_two_numbers, lambda pair: f"numbers:{min(pair)},{max(pair)}")
    return Sample(draw.phrasing("text").format(one=one, other=other), (), str(max(one, other)), (source,))


def _two_numbers(rng: np.random.Generator) -> tuple[int, int]:
    one, other = rng.choice(np.arange(_SMALLEST, _LARGEST + 1), size=2, replace=False)
    return int(one), int(other)


TASKS: dict[str, Callable[[Draw], Sample]] = {
    "digit": _digit,
    "speech": _speech,
    "sum": _sum,
    "video": _video,
    "scene": _scene,
    "text": _text,
}


def build(directory: Path, *, prepare: Prepare, seed: int) -> dict[str, int]:
    """Writes `train.parquet`, `validation.parquet` and `test.parquet`, the tasks of each in a random order.

    The same `prepare` and `seed` give the same bytes. Returns the number of rows by `split/task`.

    Raises:
        ConfigError: `prepare.tasks` names a task that is not built in.
        ImportError: the extra `demo` is missing and a task needs it.
    """
    unknown = [task for task in prepare.tasks if task not in TASKS]
    if unknown or not prepare.tasks:
        raise ConfigError(f"prepare.tasks: {', '.join(unknown) or 'empty'}; built in are {', '.join(TASKS)}")
    num_rows = {
        Split.TRAIN: prepare.train_rows,
        Split.VALIDATION: prepare.validation_rows,
        Split.TEST: prepare.test_rows,
    }
    counts: dict[str, int] = {}
    for place, (split, num) in enumerate(num_rows.items()):
        rows = [row for task in prepare.tasks for row in _rows(task, split, num, seed=[seed, place])]
        order = np.random.default_rng([seed, place]).permutation(len(rows))
        write_prompts(directory / f"{split.value}.parquet", (rows[index] for index in order))
        counts |= {f"{split.value}/{task}": num for task in prepare.tasks}
    return counts


def _rows(task: str, split: Split, num_rows: int, seed: Sequence[int]) -> Iterator[dict[str, object]]:
    # Seeded by the task's name, so that leaving a task out changes no row of the others.
    draw = Draw(split=split, rng=np.random.default_rng([*seed, zlib.crc32(task.encode())]))
    manners = np.random.default_rng([*seed, zlib.crc32(task.encode()), 1]).integers(len(MANNERS), size=num_rows)
    for number in range(num_rows):
        sample = TASKS[task](draw)
        prompt = Prompt(
            id=f"{split.value}-{task}-{number:05d}",
            task=task,
            messages=(Message(role="user", content=sample.question),),
            media=sample.media,
            answer=sample.answer,
            demonstration=MANNERS[manners[number]].format(answer=sample.answer),
        )
        yield to_row(prompt, sample.sources)


def corpus() -> list[str]:
    """Every question (without tags) and every answer of the six tasks, for training a tokenizer on the spot."""
    names = [f"{colour} {kind}" for colour in drawing.COLOURS for kind in drawing.SHAPES]
    numbers = [str(number) for number in range(_LARGEST + 1)]
    plain = ("digit", "speech", "sum", "video")
    questions = [_without_tags(phrasing) for task in plain for phrasing in PHRASINGS[task]]
    questions += [_without_tags(phrasing.format(first=name)) for phrasing in PHRASINGS["scene"] for name in names]
    pairs = zip(numbers[_SMALLEST:], reversed(numbers[_SMALLEST:]), strict=True)
    questions += [phrasing.format(one=one, other=other) for one, other in pairs for phrasing in PHRASINGS["text"]]
    words = speech.DIGIT_WORDS
    answers = [f"{one} plus {other} is {one + other}" for one in range(10) for other in range(10)]
    answers += [*numbers, *words, *(f"{one} {other}" for one in words for other in words)]
    answers += [f"{name} moves {direction}" for name in names for direction in drawing.DIRECTIONS]
    answers += [f"{first} {relation} {second}" for first in names for relation in drawing.RELATIONS for second in names]
    return [*questions, *answers, *(manner.format(answer="") for manner in MANNERS)]


def _without_tags(content: str) -> str:
    parts: Sequence[str | MediaKind] = split_content(content)
    return "".join(part for part in parts if not isinstance(part, MediaKind))
