"""Built-in tables whose rows say one thing in several modalities, of which one is degraded: what fusion is for.

digit      the same digit, scanned and spoken   '<image><audio>Which digit is this?'          '7'
diagnosis  a case drawn, written and measured   '<image>Findings:\\ntexture: low ...'           'benign'

Degraded is a row's picture, sound, text or numbers, by noise or by being blank (numbers: missing). The column
`columns` says which (`degraded`), and holds the numbers. Sources belong to splits as in all built-in data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.classify import Paired, PairedTask
from pipeline.data.demo import cases, drawing, speech
from pipeline.data.demo.tasks import Draw, Split, picture_of, split_of
from pipeline.data.media import encode_wav
from pipeline.data.schema import KEPT, to_row
from pipeline.data.table import write_prompts
from pipeline.records import Audio, MediaKind, Medium, Message, Prompt

MEASURED: tuple[str, ...] = ("radius error", "mean smoothness", "mean symmetry", "mean fractal dimension")
"""Columns of the medical table that are a row's numbers: neither drawn nor written. They tell 84 of 100 cases."""

LOUDEST_NOISE_DB = 20.0
MOST_LETTERS = 0.5
NUMBERS_SPREAD = 3.0
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Degradation(StrEnum):
    """What is done to a modality of a row."""

    NONE = "none"
    NOISE = "noise"
    BLANK = "blank"


@dataclass(frozen=True)
class PairedRow:
    """A row before it has an id. columns: its numbers, where they are there."""

    question: str
    media: tuple[Medium, ...]
    answer: str
    sources: tuple[str, ...]
    columns: Mapping[str, float | None]


def build(directory: Path, *, settings: Paired, seed: int) -> dict[str, int]:
    """Writes `train.parquet`, `validation.parquet` and `test.parquet`; the same settings and seed give the same bytes.

    Returns the number of rows by `split/task`.

    Raises:
        ImportError: the extra `demo` is missing.
    """
    num_rows = {
        Split.TRAIN: settings.train_rows,
        Split.VALIDATION: settings.validation_rows,
        Split.TEST: settings.test_rows,
    }
    for place, (split, num) in enumerate(num_rows.items()):
        draw = Draw(split=split, rng=np.random.default_rng([seed, place]))
        write_prompts(directory / f"{split.value}.parquet", _rows(settings, draw, num))
    return {f"{split.value}/{settings.task.value}": num for split, num in num_rows.items()}


def _rows(settings: Paired, draw: Draw, num_rows: int) -> Iterator[dict[str, Any]]:
    make, modalities = _MAKERS[settings.task], _MODALITIES[settings.task]
    sources = _sources(settings.task, draw.split)
    order: list[int] = []
    for number in range(num_rows):
        # A source comes again only when all have come: rows are as independent as they can be.
        order = order or [int(each) for each in draw.rng.permutation(len(sources))]
        how = dict.fromkeys(modalities, Degradation.NONE)
        if draw.rng.random() < settings.degraded:
            how[draw.one_of(modalities)] = draw.one_of((Degradation.NOISE, Degradation.BLANK))
        row = make(draw, sources[order.pop()], how, settings.noise)
        bad = [f"{name} {each.value}" for name, each in how.items() if each is not Degradation.NONE]
        prompt = Prompt(
            id=f"{draw.split.value}-{settings.task.value}-{number:05d}",
            task=settings.task.value,
            messages=(Message(role="user", content=row.question),),
            media=row.media,
            answer=row.answer,
        )
        columns = {**row.columns, "degraded": bad[0] if bad else Degradation.NONE.value}
        yield {**to_row(prompt, row.sources), KEPT: json.dumps(columns)}


def _sources(task: PairedTask, split: Split) -> tuple[int, ...]:
    """What rows of a split are made of: scans, or cases."""
    name, num = ("scan", len(drawing.scanned_digits()[1])) if task is PairedTask.DIGIT else ("case", len(cases.cases()))
    return tuple(number for number in range(num) if split_of(f"{name}:{number}") is split)


def _digit(draw: Draw, scan: int, how: Mapping[str, Degradation], noise: float) -> PairedRow:
    scans, labels = drawing.scanned_digits()
    digit, voice = int(labels[scan]), draw.voice()
    pixels = spoilt_picture(drawing.draw_digit(scans[scan], draw.rng), how["image"], noise, draw.rng)
    sound = spoilt_sound(speech.speak(voice, (digit,), draw.rng), how["audio"], noise, draw.rng)
    media = (picture_of(pixels), Medium(kind=MediaKind.AUDIO, data=encode_wav(sound)))
    return PairedRow("<image><audio>Which digit is this?", media, str(digit), (f"scan:{scan}", voice.name), {})


def _diagnosis(draw: Draw, number: int, how: Mapping[str, Degradation], noise: float) -> PairedRow:
    case = cases.cases()[number]
    pixels = spoilt_picture(cases.draw_nucleus(case, draw.rng), how["image"], noise, draw.rng)
    findings = "\n".join(f"{name}: {level}" for name, level in case.findings.items())
    text = spoilt_text(findings, how["text"], noise, draw.rng)
    measured = cases.measurements(MEASURED)
    numbers = spoilt_numbers(measured[number], how["numbers"], noise * measured.std(0), draw.rng)
    columns: dict[str, float | None] = dict(zip(MEASURED, numbers, strict=True))
    return PairedRow(f"<image>Findings:\n{text}", (picture_of(pixels),), case.diagnosis, (f"case:{number}",), columns)


_MAKERS: Mapping[PairedTask, Callable[[Draw, int, Mapping[str, Degradation], float], PairedRow]] = {
    PairedTask.DIGIT: _digit,
    PairedTask.DIAGNOSIS: _diagnosis,
}
_MODALITIES: Mapping[PairedTask, tuple[str, ...]] = {
    PairedTask.DIGIT: ("image", "audio"),
    PairedTask.DIAGNOSIS: ("image", "text", "numbers"),
}


def spoilt_picture(
    pixels: NDArray[np.uint8], how: Degradation, noise: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] with Gaussian noise of a spread of `noise` times 255 in each pixel's grey level, or black."""
    if how is Degradation.NONE:
        return pixels
    if how is Degradation.BLANK:
        return np.zeros_like(pixels)
    noisy = pixels + rng.standard_normal((*pixels.shape[:2], 1)) * 255 * noise
    return np.clip(noisy, 0, 255).astype(np.uint8)


def spoilt_sound(audio: Audio, how: Degradation, noise: float, rng: np.random.Generator) -> Audio:
    """The sound in white noise, 20 dB above it where `noise` is 1, all at a peak of at most 1; or silence."""
    if how is Degradation.NONE:
        return audio
    if how is Degradation.BLANK:
        return Audio(np.zeros_like(audio.samples), audio.sampling_rate)
    level = np.sqrt(np.mean(audio.samples**2)) * noise * 10 ** (LOUDEST_NOISE_DB / 20)
    noisy = audio.samples + rng.standard_normal(len(audio.samples)) * level
    return Audio((noisy / max(1.0, np.abs(noisy).max())).astype(np.float32), audio.sampling_rate)


def spoilt_text(text: str, how: Degradation, noise: float, rng: np.random.Generator) -> str:
    """The text with half of its letters, times `noise`, drawn anew; or nothing but that there is nothing."""
    if how is Degradation.NONE:
        return text
    if how is Degradation.BLANK:
        return "none"
    drawn = rng.random(len(text)) < MOST_LETTERS * noise
    others = rng.integers(len(_LETTERS), size=len(text))
    spoil = zip(text, drawn, others, strict=True)
    return "".join(_LETTERS[other] if is_drawn and each.isalpha() else each for each, is_drawn, other in spoil)


def spoilt_numbers(
    numbers: NDArray[np.float64], how: Degradation, spread: NDArray[np.float64], rng: np.random.Generator
) -> Sequence[float | None]:
    """The numbers with Gaussian noise of three times `spread`, or none of them."""
    if how is Degradation.BLANK:
        return [None] * len(numbers)
    noise = rng.standard_normal(len(numbers)) * spread * NUMBERS_SPREAD if how is Degradation.NOISE else 0.0
    return [float(each) for each in numbers + noise]
