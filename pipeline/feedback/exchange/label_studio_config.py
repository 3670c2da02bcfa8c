"""Labeling configurations of Label Studio: the XML that shows items and asks for judgements, written and understood.

Tags: https://labelstud.io/tags. An object tag shows `$key` of a task's data; a control tag asks about the objects that
its `toName` names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from pipeline.feedback.records import Item, Task
from pipeline.records import MediaKind

TIE = "tie"
HARMFUL = "harmful"

_MEDIA_TAGS = {MediaKind.IMAGE: "Image", MediaKind.AUDIO: "Audio", MediaKind.VIDEO: "Video"}
_KINDS = {tag.lower(): kind for kind, tag in _MEDIA_TAGS.items()} | {"audioplus": MediaKind.AUDIO}
_TASKS = {"pairwise": Task.PAIR, "ranker": Task.RANKING, "rating": Task.RATING}
"""Which control makes a task what it is, the most telling one first."""


@dataclass(frozen=True)
class Shape:
    """What items of one project have in common."""

    task: Task
    num_candidates: int
    media: tuple[MediaKind, ...]

    @classmethod
    def of(cls, item: Item) -> Shape:
        """The shape of an item."""
        return cls(item.task, len(item.candidates), tuple(medium.kind for medium in item.media))

    @property
    def name(self) -> str:
        """For files, for example `pair-2-image`."""
        return "-".join([self.task.value, str(self.num_candidates), *(kind.value for kind in self.media)])


def labeling_config(shape: Shape, criteria: Sequence[str] = ("overall",)) -> str:
    """The XML of a project with items of this shape. criteria: what is rated; of no use to other tasks.

    Data of its tasks: `prompt`; `media_0`, ... in order; `answer_0`, ..., or for rankings `answers`, a list.
    """
    root = ElementTree.Element("View")
    for place, kind in enumerate(shape.media):
        _add(root, _MEDIA_TAGS[kind], name=f"media_{place}", value=f"$media_{place}")
    _add(root, "Text", name="prompt", value="$prompt")
    if shape.task is Task.RANKING:
        _add(root, "List", name="answers", value="$answers", title="Completions")
        ranker = _add(root, "Ranker", name="ranking", toName="answers")
        for rank in range(1, shape.num_candidates + 1):
            _add(ranker, "Bucket", name=f"rank_{rank}", title=f"{rank}{' (best)' if rank == 1 else ''}")
    elif shape.task is Task.PAIR:
        _add(root, "Header", value="Which one is better?")
        _add(root, "Pairwise", name="pair", toName="answer_0,answer_1")
        _choice(root, "tie", "prompt", TIE)
    row = _add(root, "View", style="display: flex; gap: 1em")
    for place in range(shape.num_candidates):
        about, answer = "answers", _add(row, "View", style="flex: 1")
        if shape.task is Task.RANKING:
            _add(answer, "Header", value=f"Completion {place + 1}")
        else:
            about = f"answer_{place}"
            _add(answer, "Text", name=about, value=f"${about}")
        for name in criteria if shape.task is Task.RATING else ():
            _add(answer, "Header", value=name, size="5")
            _add(answer, "Rating", name=f"rating_{place}_{name}", toName=about, maxRating="5")
        _choice(answer, f"harmful_{place}", about, HARMFUL)
        _add(answer, "TextArea", name=f"correction_{place}", toName=about, placeholder="What it should have said")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode")


def _add(parent: ElementTree.Element, tag: str, **attributes: str) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag, attributes)


def _choice(parent: ElementTree.Element, name: str, about: str, value: str) -> None:
    choices = _add(parent, "Choices", name=name, toName=about, choice="multiple", showInline="true")
    _add(choices, "Choice", value=value)


@dataclass(frozen=True)
class Layout:
    """What a configuration says of a task's data."""

    task: Task
    prompt: Mapping[str, MediaKind | None]
    """The data's keys of what is shown beside the completions, in order; None is text."""
    answers: Mapping[str, int]
    """The objects that are judged, and their places; of rankings the one list."""
    keys: tuple[str, ...]
    """The data's keys of those objects."""

    @classmethod
    def of(cls, config: str) -> Layout:
        """Reads a configuration, ours or another's.

        Raises:
            ValueError: it is no XML, or asks for no comparison, ranking or rating.
        """
        try:
            tags = list(ElementTree.fromstring(config).iter())
        except ElementTree.ParseError as error:
            raise ValueError(
                f"config={config[:80]!r}: {error}; give the XML of Settings > Labeling Interface"
            ) from None
        controls = [(tag.tag.lower(), tag.get("toName", "")) for tag in tags]
        telling = next((name for name in _TASKS if any(name == tag for tag, _ in controls)), None)
        if telling is None:
            raise ValueError(f"config={config[:80]!r}: no Pairwise, Ranker or Rating in it; give that of the project")
        objects = {
            tag.get("name", ""): tag for tag in tags if tag.get("value", "")[:1] == "$" and not tag.get("toName")
        }
        judged = dict.fromkeys(name.strip() for tag, names in controls if tag == telling for name in names.split(","))
        if unknown := [name for name in judged if name not in objects]:
            raise ValueError(f"config: toName={unknown[0]!r}: no tag of this name shows a value ($key); name one")
        shown = {_key(tag): _KINDS.get(tag.tag.lower()) for name, tag in objects.items() if name and name not in judged}
        places = {name: place for place, name in enumerate(judged)}
        return cls(_TASKS[telling], shown, places, tuple(_key(objects[name]) for name in judged))

    def place(self, result: Mapping[str, Any]) -> int | None:
        """The completion that a result is about; None where it is about something else."""
        return self.answers.get(str(result.get("to_name")))


def _key(tag: ElementTree.Element) -> str:
    return tag.get("value", "")[1:]
