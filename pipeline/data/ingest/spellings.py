"""What others call our columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from pipeline.data.schema import MEDIA_COLUMNS
from pipeline.records import MediaKind

_STEMS = {MediaKind.IMAGE: ("image", "img"), MediaKind.AUDIO: ("audio", "wav"), MediaKind.VIDEO: ("video",)}
_ENDS = (
    *("s", "", "_paths", "_path", "_files", "_file", "_filepath", "_filename", "_filenames", "_file_name"),
    *("_file_names", "_list", "_bytes", "_urls", "_url"),
)
"""What is at hand comes before what must be fetched."""
_OTHERS = {
    MediaKind.IMAGE: ("pictures", "picture", "photos", "photo"),
    MediaKind.AUDIO: ("sounds", "sound", "speech"),
    MediaKind.VIDEO: ("clips", "clip"),
}

LOOSE = frozenset({"imgs", "img", "wavs", "wav", *(name for names in _OTHERS.values() for name in names)})
"""Names that may well hold something else: they are taken where their value names a medium or is one."""

OTHER_TEXTS = ("caption", "text", "transcription", "transcript", "sentence")
"""Names of answers that, beside a conversation with an answer, are something else: what the picture shows, or the
conversation once more."""

NAMES: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "uid", "__key__"),
    "task": ("task",),
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("prompt", "question", "query", "instruction", "problem"),
    "input": ("input",),
    "choices": ("choices", "options"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "answer": (
        *("answer", "completion", "response", "output", "solution", "ground_truth", *OTHER_TEXTS),
        *("answerKey", "answer_idx", "correct_choice_idx", "answers"),
    ),
    "demonstration": ("demonstration",),
    "chosen": ("chosen",),
    "rejected": ("rejected", "rejected_response", "rejected_messages"),
    "label": ("label", "kto_tag"),
    "margin": ("margin",),
    **{
        MEDIA_COLUMNS[kind]: (*(stem + end for end in _ENDS for stem in stems), *_OTHERS[kind])
        for kind, stems in _STEMS.items()
    },
    "file": ("file_name", "file_names", "file", "filename", "file_path", "filepath", "path"),
    "split": ("split",),
    "group": ("group",),
}
"""Our names of columns, and under which names each is looked for."""

_NUMBERED = {
    kind: re.compile(rf"(?:{'|'.join(stems)})_?(\d{{1,3}})(?:_path|_file|_url)?") for kind, stems in _STEMS.items()
}


@lru_cache(1024)
def number_in(column: str, kind: MediaKind) -> int | None:
    """The number in the name of a column that holds one medium of several (MMMU's `image_1` to `image_7`)."""
    found = _NUMBERED[kind].fullmatch(column)
    return int(found[1]) if found else None


def media_kind_of(column: str) -> MediaKind | None:
    """The kind of media that a column of this name holds."""
    return next((kind for kind in MediaKind if column in NAMES[MEDIA_COLUMNS[kind]] or number_in(column, kind)), None)
