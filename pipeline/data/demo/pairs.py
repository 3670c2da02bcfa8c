"""Tasks whose picture and sound say the same, for joint embedding; `demo` describes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.data.demo import drawing, speech
from pipeline.data.demo.applications import CAPTION_RELATIONS
from pipeline.data.demo.tasks import Draw, Sample, picture_of
from pipeline.data.media import encode_wav
from pipeline.records import MediaKind, Medium

DESCRIBED = ("<image><audio>Describe the picture.", "<audio><image>Write a caption.")
NAMED = ("<image><audio>What digit is this?", "<audio><image>Read the digit.")
"""Questions of other tasks: those who answer them know the words."""


def _described(draw: Draw) -> Sample:
    """A scene, and a voice that describes it: of 264 descriptions, which begin with the upper or the left shape."""
    scene, source = draw.fresh(drawing.random_scene, lambda scene: scene.source)
    relation = CAPTION_RELATIONS[scene.relation]
    first, second = (scene.first, scene.second) if relation == scene.relation else (scene.second, scene.first)
    description = f"{first.name} {relation} {second.name}"
    voice = draw.voice()
    sound = Medium(MediaKind.AUDIO, encode_wav(speech.say(voice, description.split(), draw.rng)))
    question = draw.one_of(DESCRIBED)
    return Sample(
        question, _placed(question, picture_of(drawing.draw_scene(scene)), sound), description, (source, voice.name)
    )


def _named(draw: Draw) -> Sample:
    """A handwritten digit, and a voice that says it."""
    digit = draw.digit()
    picture, scan = draw.scan(digit)
    sound, voice = draw.utterance((digit,))
    question = draw.one_of(NAMED)
    return Sample(question, _placed(question, picture, sound), speech.DIGIT_WORDS[digit], (scan, voice))


def _placed(question: str, picture: Medium, sound: Medium) -> tuple[Medium, ...]:
    """The two in the order of their tags."""
    return (picture, sound) if question.startswith(MediaKind.IMAGE.tag) else (sound, picture)


TASKS: Mapping[str, Callable[[Draw], Sample]] = {"described": _described, "named": _named}
