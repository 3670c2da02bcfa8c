"""Tags that name their medium by its number, as MMMU's `<image 2>` does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pipeline.data.ingest.draft import MediumSource
from pipeline.data.ingest.turns import Slot
from pipeline.data.schema import Reason, RowError, split_content
from pipeline.records import MediaKind, Message

_TAG = re.compile(r"<\|?(image|audio|video)[ _-]?(\d{1,3})\|?>")

Media = Mapping[MediaKind, Mapping[int, MediumSource]]
"""The media of a row by their numbers, from 1 where they are a list."""


def placed(turns: Sequence[tuple[Message, list[Slot]]], media: Media) -> tuple[list[tuple[Message, list[Slot]]], Media]:
    """Turns with plain tags in place of `<image 2>`, each filled, and the media that are left.

    Raises:
        RowError: there is no medium of a number.
    """
    named: set[tuple[MediaKind, int]] = set()

    def filled(message: Message, slots: list[Slot]) -> tuple[Message, list[Slot]]:
        given, texts, found = iter(slots), list[str](), list[Slot]()

        def plain(tag: re.Match[str]) -> str:
            kind, number = MediaKind(tag[1]), int(tag[2])
            if number not in media[kind]:
                there = ", ".join(map(str, media[kind])) or "none"
                raise RowError(Reason.PLACEHOLDER_MISMATCH, f"the text names {tag[0]}; numbers of media: {there}")
            named.add((kind, number))
            found.append(media[kind][number])
            return kind.tag

        for part in split_content(message.content):
            if isinstance(part, MediaKind):
                texts.append(part.tag)
                found += [slot for slot, _ in zip(given, (1,), strict=False)]
            else:
                texts.append(_TAG.sub(plain, part))
        return Message(message.role, "".join(texts)), [*found, *given]

    done = [filled(*turn) if _TAG.search(turn[0].content) else turn for turn in turns]
    left = {
        kind: {n: each for n, each in by_number.items() if (kind, n) not in named} for kind, by_number in media.items()
    }
    return done, left
