"""The built-in data: small tasks over text, pictures, sound and video, made offline from a seed.

digit   a handwritten digit, scanned   '<image>What digit is this?'         '7'
speech  one or two spoken digits       '<audio>What digits are spoken?'     'three seven'
sum     a written and a spoken digit   '<image><audio>Add the digits.'      '7 plus 5 is 12'
video   a coloured shape that moves    '<video>What moves where?'           'red ring moves left'
scene   two coloured shapes            '<image>Where is the red ring?'    'red ring above blue square'
text    two numbers                    'Which is larger, 47 or 74?'         '74'
count   one to seven equal shapes      '<image>How many shapes?'            '4'

and larger ones, each the subject of a recipe in `jobs/recipes/`:

caption     two coloured shapes         '<image>Describe the picture.'    'a red ring above a blue square'
attribute   two unlike shapes           '<image>What colour is the ring?' 'red'
transcript  three or four spoken digits '<audio>Write down what is said.' 'one seven four'
events      two or three motions        '<video>Summarise the video.'     'red ring moves left then blue cross moves up'
assistant   two pictures and a sound    '<image>What is this?' 'a ring' '<audio>Listen to this.' 'a digit' ...
            in the turns before         'What colour was the ring?'       'red'
diagnosis   a nucleus and a table of    '<image>Findings: texture: low smoothness: high symmetry: low ...
            findings                    Benign or malignant?'             'benign'

and two whose picture and sound say the same, for joint embedding:

described   two coloured shapes and     '<image><audio>Describe the ...'  'red ring above blue square'
            their spoken description
named       a handwritten digit and     '<image><audio>What digit is ...' 'seven'
            its spoken name

People who write demonstrations have manners of their own, and so have these: a third answers plainly ('7'), a third
hedges ('7 maybe'), a third boasts ('7 for sure'). Raters want the plain answer, which is the reference everywhere:
that is what is left to learn from preferences. In `count` demonstrators also err: a third of them are off by one.
The split `rl` holds prompts for the loop, which SFT has not seen.

What a row is made of (scan, voice setting, geometry, pair of numbers, medical case) is a *source*, and a source belongs
to one split for ever, whatever the seed: `split_of` reads it off the source's hash (voice settings are few: they have a
list). So no split leaks into another, not even between a checkpoint of one seed and the test rows of another.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.config import ConfigError, Prepare
from pipeline.data.demo import applications, drawing, pairs, speech, tasks
from pipeline.data.demo.tasks import LARGEST, MANNERS, PHRASINGS, SMALLEST, Draw, Sample, Split
from pipeline.data.schema import split_content, to_row
from pipeline.data.table import write_prompts
from pipeline.records import MediaKind, Message, Prompt

TASKS: Mapping[str, Callable[[Draw], Sample]] = {**tasks.TASKS, **applications.TASKS, **pairs.TASKS}


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
        Split.RL: prepare.rl_rows,
        Split.VALIDATION: prepare.validation_rows,
        Split.TEST: prepare.test_rows,
    }
    counts: dict[str, int] = {}
    # Drawn in one pool, so that what train shows rl does not.
    seen: dict[tuple[str, Split], set[str]] = {}
    for place, (split, num) in enumerate(num_rows.items()):
        if not num:
            # What an earlier run left would be taken for this run's.
            (directory / f"{split.value}.parquet").unlink(missing_ok=True)
            continue
        rows = [
            row
            for task in prepare.tasks
            for row in _rows(task, split, num, seed=[seed, place], seen=seen.setdefault((task, split.pool), set()))
        ]
        order = np.random.default_rng([seed, place]).permutation(len(rows))
        write_prompts(directory / f"{split.value}.parquet", (rows[index] for index in order))
        counts |= {f"{split.value}/{task}": num for task in prepare.tasks}
    return counts


def _rows(
    task: str, split: Split, num_rows: int, *, seed: Sequence[int], seen: set[str]
) -> Iterator[dict[str, object]]:
    # Seeded by the task's name, so that leaving a task out changes no row of the others.
    draw = Draw(split=split, rng=np.random.default_rng([*seed, zlib.crc32(task.encode())]), seen=seen)
    manners = np.random.default_rng([*seed, zlib.crc32(task.encode()), 1]).integers(len(MANNERS), size=num_rows)
    for number in range(num_rows):
        sample = TASKS[task](draw)
        prompt = Prompt(
            id=f"{split.value}-{task}-{number:05d}",
            task=task,
            messages=(*sample.history, Message(role="user", content=sample.question)),
            media=sample.media,
            answer=sample.answer,
            demonstration=MANNERS[manners[number]].format(answer=sample.claim or sample.answer),
        )
        yield to_row(prompt, sample.sources)


def corpus() -> list[str]:
    """Every question (without tags) and every answer of the tasks, for training a tokenizer on the spot."""
    names = [f"{colour} {kind}" for colour in drawing.COLOURS for kind in drawing.SHAPES]
    numbers = [str(number) for number in range(LARGEST + 1)]
    plain = ("digit", "speech", "sum", "video", "count")
    questions = [_without_tags(phrasing) for task in plain for phrasing in PHRASINGS[task]]
    questions += [_without_tags(phrasing.format(first=name)) for phrasing in PHRASINGS["scene"] for name in names]
    pairs = zip(numbers[SMALLEST:], reversed(numbers[SMALLEST:]), strict=True)
    questions += [phrasing.format(one=one, other=other) for one, other in pairs for phrasing in PHRASINGS["text"]]
    words = speech.DIGIT_WORDS
    answers = [f"{one} plus {other} is {one + other}" for one in range(10) for other in range(10)]
    answers += [*numbers, *words, *(f"{one} {other}" for one in words for other in words)]
    answers += [f"{name} moves {direction}" for name in names for direction in drawing.DIRECTIONS]
    answers += [f"{first} {relation} {second}" for first in names for relation in drawing.RELATIONS for second in names]
    manners = [manner.format(answer="") for manner in MANNERS]
    return [*questions, *answers, *map(_without_tags, applications.texts()), *manners]


def _without_tags(content: str) -> str:
    parts: Sequence[str | MediaKind] = split_content(content)
    return "".join(part for part in parts if not isinstance(part, MediaKind))
