"""Tasks that stand for applications, each with a recipe of its own in `jobs/recipes/`; `demo` describes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import product

import numpy as np

from pipeline.data.demo import cases, drawing, speech
from pipeline.data.demo.tasks import Draw, Sample, Split, clip_of, picture_of, spelt, split_of
from pipeline.records import Medium, Message

CAPTION = ("<image>Describe the picture.", "<image>Write a caption.")
COLOUR = ("<image>What colour is the {kind}?", "<image>Name the colour of the {kind}.")
SHAPE = ("<image>Which shape is {colour}?", "<image>Name the shape that is {colour}.")
TRANSCRIPT = ("<audio>Write down what is said.", "<audio>Transcribe the recording.")
EVENTS = ("<video>What happens in the video?", "<video>Summarise the video.")
SHOWN, HEARD = ("<image>What is this?", "<image>And what is this?"), ("<audio>Listen to this.", "<audio>Hear me.")
SHOWN_REPLY, HEARD_REPLY = "a {kind}", "a digit"
RECALL_COLOUR = ("What colour was the {kind}?", "Which colour did the {kind} have?")
RECALL_DIGIT = ("What digit did I say?", "Which digit did you hear?")
DIAGNOSIS = (
    "<image>Findings:\n{findings}\nBenign or malignant?",
    "<image>Findings:\n{findings}\nWhat is the diagnosis?",
)

CAPTION_RELATIONS = {"above": "above", "left of": "left of", "below": "above", "right of": "left of"}
"""Captions begin with the upper or the left shape, so that a picture has one caption."""
MOST_EVENTS = 3


def _caption(draw: Draw) -> Sample:
    scene, source = draw.fresh(drawing.random_scene, lambda scene: scene.source)
    relation = CAPTION_RELATIONS[scene.relation]
    first, second = (scene.first, scene.second) if relation == scene.relation else (scene.second, scene.first)
    answer = f"a {first.name} {relation} a {second.name}"
    return Sample(draw.one_of(CAPTION), (picture_of(drawing.draw_scene(scene)),), answer, (source,))


def _attribute(draw: Draw) -> Sample:
    scene, source = draw.fresh(_scene_of_unlike_shapes, lambda scene: scene.source)
    asked = draw.one_of((scene.first, scene.second))
    phrasing, answer = draw.one_of(((COLOUR, asked.colour), (SHAPE, asked.kind)))
    question = draw.one_of(phrasing).format(kind=asked.kind, colour=asked.colour)
    return Sample(question, (picture_of(drawing.draw_scene(scene)),), answer, (source,))


def _scene_of_unlike_shapes(rng: np.random.Generator) -> drawing.Scene:
    while True:
        scene = drawing.random_scene(rng)
        if scene.first.colour != scene.second.colour and scene.first.kind != scene.second.kind:
            return scene


def _transcript(draw: Draw) -> Sample:
    voice = draw.voice()
    digits = tuple(draw.digit() for _ in range(draw.one_of((3, 4))))
    digits = digits if speech.fits(voice, digits) else digits[:3]
    sound, source = draw.utterance(digits, voice)
    return Sample(draw.one_of(TRANSCRIPT), (sound,), spelt(digits), (source,))


def _events(draw: Draw) -> Sample:
    events, source = draw.fresh(_random_events, lambda events: f"events:{[event.source for event in events]}")
    frames = np.concatenate([drawing.draw_motion(event) for event in events])
    return Sample(draw.one_of(EVENTS), (clip_of(frames),), " then ".join(event.name for event in events), (source,))


def _random_events(rng: np.random.Generator) -> tuple[drawing.Motion, ...]:
    """Two or three motions, no shape twice in a row: one sees where an event ends."""
    events: list[drawing.Motion] = []
    num_events = int(rng.integers(2, MOST_EVENTS + 1))
    while len(events) < num_events:
        motion = drawing.random_motion(rng)
        if not events or motion.shape.name != events[-1].shape.name:
            events.append(motion)
    return tuple(events)


def _assistant(draw: Draw) -> Sample:
    """Two pictures and a sound, each in a turn of its own and in any order; then a question about one of them.

    What the assistant said in the earlier turns names the shapes, and tells neither a colour nor the digit.
    """
    one, one_source = draw.fresh(drawing.random_portrait, lambda portrait: portrait.source)
    other, other_source = draw.fresh(lambda rng: _portrait_unlike(one, rng), lambda portrait: portrait.source)
    digit = draw.digit()
    sound, voice = draw.utterance((digit,))
    turns: list[tuple[Medium, str, str]] = [
        (
            picture_of(drawing.draw_portrait(portrait)),
            draw.one_of(SHOWN),
            SHOWN_REPLY.format(kind=portrait.shape.kind),
        )
        for portrait in (one, other)
    ]
    turns.append((sound, draw.one_of(HEARD), HEARD_REPLY))
    turns = [turns[place] for place in draw.rng.permutation(len(turns))]
    questions = [
        *((draw.one_of(RECALL_COLOUR).format(kind=each.shape.kind), each.shape.colour) for each in (one, other)),
        (draw.one_of(RECALL_DIGIT), speech.DIGIT_WORDS[digit]),
    ]
    question, answer = draw.one_of(questions)
    history = tuple(
        message
        for _, said, reply in turns
        for message in (Message(role="user", content=said), Message(role="assistant", content=reply))
    )
    sources = (one_source, other_source, voice)
    return Sample(question, tuple(medium for medium, _, _ in turns), answer, sources, history=history)


def _portrait_unlike(one: drawing.Portrait, rng: np.random.Generator) -> drawing.Portrait:
    while True:
        other = drawing.random_portrait(rng)
        if one.shape.colour != other.shape.colour and one.shape.kind != other.shape.kind:
            return other


def _diagnosis(draw: Draw) -> Sample:
    number = draw.one_of(cases_of(draw.split))
    case = cases.cases()[number]
    question = draw.one_of(DIAGNOSIS).format(findings=_table(case.findings))
    return Sample(question, (picture_of(cases.draw_nucleus(case, draw.rng)),), case.diagnosis, (f"case:{number}",))


def _table(findings: Mapping[str, str]) -> str:
    return "\n".join(f"{name}: {level}" for name, level in findings.items())


@cache
def cases_of(split: Split) -> tuple[int, ...]:
    """The cases of a split. A patient is no other drawing of a patient: train and rl have cases of their own."""
    pool = [number for number in range(len(cases.cases())) if split_of(f"case:{number}") is split.pool]
    if split not in (Split.TRAIN, Split.RL):
        return tuple(pool)
    for_rl = [hashlib.sha256(f"case:{number}".encode()).digest()[4] % 2 == 1 for number in pool]
    return tuple(number for number, is_rl in zip(pool, for_rl, strict=True) if is_rl is (split is Split.RL))


def texts() -> Iterator[str]:
    """Every question and every answer with every word that can stand in it, tags and all."""
    names = [f"{colour} {kind}" for colour in drawing.COLOURS for kind in drawing.SHAPES]
    words = {"kind": drawing.SHAPES, "colour": tuple(drawing.COLOURS)}
    for phrasing in (*CAPTION, *TRANSCRIPT, *EVENTS, *SHOWN, *HEARD, HEARD_REPLY, *RECALL_DIGIT):
        yield phrasing
    for phrasing in (*COLOUR, *SHAPE, SHOWN_REPLY, *RECALL_COLOUR):
        yield from (
            phrasing.format(kind=kind, colour=colour) for kind, colour in product(words["kind"], words["colour"])
        )
    for phrasing, level in product(DIAGNOSIS, cases.LEVELS):
        yield phrasing.format(findings=_table(dict.fromkeys(cases.WRITTEN, level)))
    yield from (*drawing.COLOURS, *drawing.SHAPES, *cases.DIAGNOSES)
    yield from (
        f"a {first} {relation} a {second}" for first in names for relation in drawing.RELATIONS for second in names
    )
    yield from (f"{first} moves up then {second} moves down" for first in names for second in names)


TASKS: Mapping[str, Callable[[Draw], Sample]] = {
    "caption": _caption,
    "attribute": _attribute,
    "transcript": _transcript,
    "events": _events,
    "assistant": _assistant,
    "diagnosis": _diagnosis,
}
