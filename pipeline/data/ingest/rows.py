"""From a raw row to a row of the table: understood, its media fetched and decoded, its steps run, its tokens counted.

Everything that can be wrong with a row by itself shows here, and comes back as a refusal with its reason.
"""

from __future__ import annotations

import json
import posixpath
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Answers, Ids, MediaAs, Recipe, Source, SplitBy
from pipeline.config.steps import TextPart, VideoKeepSound
from pipeline.data.access import Reader
from pipeline.data.duplicates import conversation_text, fingerprint, text_key
from pipeline.data.ingest.draft import Draft, MediumSource
from pipeline.data.ingest.formats import draft_of
from pipeline.data.ingest.readers import Raw, Unreadable
from pipeline.data.ingest.shards import split_in
from pipeline.data.ingest.spellings import NAMES
from pipeline.data.ingest.splits import split_of
from pipeline.data.ingest.unread import note
from pipeline.data.isolated import Decoder
from pipeline.data.media import content_key, encode_png, encode_video, encode_wav, flat
from pipeline.data.media_store import MediaStore
from pipeline.data.schema import (
    KEPT,
    MEDIA_COLUMNS,
    Reason,
    RowError,
    check_words,
    checked_medium,
    split_content,
    to_row,
    turn_cells,
)
from pipeline.data.steps import apply_features, apply_medium, apply_text
from pipeline.records import Audio, DecodedMedium, Image, MediaKind, Medium, Message, Prompt, Quarantined, Video

if TYPE_CHECKING:  # It brings torch and transformers.
    from pipeline.models.processing import PromptProcessor

NUM_TOKENS = "num_tokens"
"""What `prepare.sort_by` may name beside columns of the sources."""


@dataclass(frozen=True)
class Prepared:
    """A row that is good by itself: for `schema.STAGED_SCHEMA`, and what the driver learns of it (`INDEX_COLUMNS`)."""

    split: str
    row: dict[str, Any]
    index: dict[str, Any]


@dataclass(frozen=True)
class _Medium:
    """A medium after its steps, as a file and as arrays; `original` is what it was before them, `key` its content."""

    file: Medium
    decoded: DecodedMedium
    original: DecodedMedium
    key: str


class RowPreparer:
    """Prepares the rows of all sources of a recipe; each worker has one.

    Args:
        directory: the table's.
        processor: the model's own, which counts tokens; None counts none.
    """

    def __init__(self, recipe: Recipe, *, directory: Path, processor: PromptProcessor | None) -> None:
        self._recipe = recipe
        self._settings = recipe.prepare
        self._decoder = Decoder(recipe.data.limits)
        self._readers: dict[tuple[str, str], Reader] = {}
        self._datasets = [dataset_name(recipe, number) for number in range(len(recipe.prepare.sources))]
        self._terms = [self._terms_of(*each) for each in zip(recipe.prepare.sources, self._datasets, strict=True)]
        self._store = MediaStore(str(directory)) if self._settings.media is MediaAs.REFERENCES else None
        self._keeps_sound = any(isinstance(step, VideoKeepSound) for step in self._settings.steps)
        self._text_steps = [step for step in self._settings.steps if step.step.startswith("text.")]
        self._processor = processor

    def __call__(self, raw: Raw, source: int) -> Prepared | Quarantined:
        """The row for the table, or why there is none."""
        # Names of files need not be text.
        place = f"{self._datasets[source]}/{raw.place}".encode("utf-8", "replace").decode()
        if isinstance(raw, Unreadable):
            reason = Reason.LOST_ROWS if raw.is_rest else Reason.UNREADABLE
            return Quarantined(place, reason.value, raw.detail)
        name = place
        try:
            draft = self._with_text_steps(self._draft(raw.values, raw.path, place, source))
            name = draft.id
            return self._prepared(draft, self._checked(draft, raw.path, source), place)
        except RowError as error:
            if raw.may_be_many and error.reason in (Reason.NO_MESSAGES, Reason.WRONG_TYPE):
                detail = f'no row, and it may hold many ({error.detail}); write an array of rows, or {{"data": [rows]}}'
                return Quarantined(name, Reason.LOST_ROWS.value, detail)
            return error.quarantined(name)

    def _draft(self, values: Mapping[str, Any], path: str, place: str, source: int) -> Draft:
        settings = self._settings.sources[source]
        return draft_of(values, id=place, split=stated_split(settings.path, path), **self._terms[source])

    def _terms_of(self, settings: Source, dataset: str) -> dict[str, Any]:
        """What `draft_of` is told of all rows of a source."""
        splitting = self._settings.split
        names = {**self._settings.map, **settings.map}
        unasked = (names.get("id"), *NAMES["id"]) if (settings.ids or self._settings.ids) is Ids.PLACE else ()
        return {
            "names": names,
            "dataset": dataset,
            "task": settings.task or dataset,
            "question": settings.question,
            "group_column": splitting.column if splitting.by is SplitBy.GROUP else None,
            "split_column": splitting.column if splitting.by is SplitBy.COLUMN else None,
            "sort_column": self._settings.sort_by,
            "split_by": splitting.by,
            "ignored": (*self._settings.ignore, *unasked),
            "kept": self._recipe.data.columns,
        }

    def _prepared(self, draft: Draft, prompt: Prompt, place: str) -> Prepared:
        steps = self._settings.steps
        decoded = [self._decoder.decode(medium) for medium in prompt.media]
        keys = [content_key(each) for each in decoded]
        split = split_of(
            self._settings.split,
            id=draft.id,
            place=place,
            stated=draft.split,
            group=draft.group,
            first_medium=keys[0] if keys else None,
            seed=self._recipe.run.seed,
        )
        media = [
            self._stepped(_Medium(file, arrays, arrays, key), draft.id, index, split)
            for index, (file, arrays, key) in enumerate(zip(prompt.media, decoded, keys, strict=True))
        ]
        if self._keeps_sound:
            prompt, media = self._with_sound_tracks(prompt, media, split)
        prompt = replace(prompt, media=tuple(each.file for each in media))
        num_tokens, num_answer_tokens = self._count(prompt, media, draft)
        features = [
            {"name": name, "medium": index, "values": values.tolist()}
            for index, each in enumerate(media)
            for name, values in apply_features(steps, each.decoded).items()
        ]
        row = {
            **self._stored(to_row(prompt, [each.key for each in media])),
            "dataset": draft.dataset,
            "num_tokens": num_tokens,
            "features": features or None,
            KEPT: json.dumps(draft.columns, default=str) if draft.columns else None,
            "rejected": draft.rejected,
            "chosen_then": turn_cells(draft.chosen_then),
            "rejected_then": turn_cells(draft.rejected_then),
            "margin": draft.margin,
            "label": draft.label,
        }
        found = fingerprint(
            steps,
            messages=prompt.messages,
            media=[each.original for each in media],
            media_keys=[each.key for each in media],
            answer=prompt.answer or "",  # which no row has that has an answer
        )
        index = {
            "id": prompt.id,
            "split": split,
            "dataset": draft.dataset,
            "task": prompt.task,
            "modalities": [kind.value for kind in MediaKind if any(each.file.kind is kind for each in media)],
            "num_tokens": num_tokens,
            "num_answer_tokens": num_answer_tokens,
            "has_answer": prompt.answer is not None,
            "seconds": sum(map(_seconds, (each.decoded for each in media))),
            "is_pair": draft.rejected is not None,
            "has_margin": draft.margin is not None,
            "label": draft.label,
            "sort_value": num_tokens if self._settings.sort_by == NUM_TOKENS else draft.sort_value,
            "media_keys": [each.key for each in media],
            "unread": draft.unread,
            "files": self._store and [posixpath.basename(each["path"]) for each in _files(row)],
            "prompt_key": text_key(conversation_text(prompt.messages)),
            "row_key": found.key,
            "signature": None if found.signature is None else found.signature.tobytes(),
            "picture_group": found.picture_group,
            "picture_hashes": list(found.picture_hashes),
        }
        return Prepared(split, row, index)

    def _with_text_steps(self, draft: Draft) -> Draft:
        def stepped(text: str | None, part: TextPart) -> str | None:
            return text if text is None or not self._text_steps else apply_text(self._text_steps, text, part=part)

        answer, rejected = stepped(draft.answer, TextPart.ANSWER), stepped(draft.rejected, TextPart.ANSWER)

        def stepped_turns(turns: Sequence[Message]) -> tuple[Message, ...]:
            part = {"assistant": TextPart.ANSWER}
            return tuple(
                Message(turn.role, stepped(turn.content, part.get(turn.role, TextPart.MESSAGE)) or "") for turn in turns
            )

        chosen_then, rejected_then = stepped_turns(draft.chosen_then), stepped_turns(draft.rejected_then)
        if rejected is not None and (rejected, rejected_then) == (answer, chosen_then):
            raise RowError(Reason.BAD_PREFERENCE, "chosen and rejected are equal")
        if rejected is not None and not rejected.strip():
            raise RowError(Reason.EMPTY_ANSWER, "rejected is empty")
        if not all(turn.content.strip() for turn in (*chosen_then, *rejected_then)):
            raise RowError(Reason.EMPTY_ANSWER, "a turn after the first answer of chosen or rejected is empty")
        if not self._text_steps:
            return draft
        return replace(
            draft,
            messages=tuple(
                Message(turn.role, stepped(turn.content, TextPart.MESSAGE) or "") for turn in draft.messages
            ),
            chosen_then=chosen_then,
            rejected_then=rejected_then,
            answer=answer,
            accepted=tuple(stepped(each, TextPart.ANSWER) or "" for each in draft.accepted),
            demonstration=stepped(draft.demonstration, TextPart.ANSWER),
            rejected=rejected,
        )

    def _checked(self, draft: Draft, path: str, source: int) -> Prompt:
        """The draft as a prompt, its media fetched last: what is wrong with its text costs no fetch."""
        answers = draft.answer, draft.demonstration or None, draft.accepted
        words = Prompt(draft.id, draft.task, draft.messages, (), *answers)
        check_words(words)
        if draft.answer is None and self._settings.answers is Answers.REQUIRED:
            cure = "prepare.answers=optional keeps prompts without one"
            raise RowError(Reason.EMPTY_ANSWER, f"no answer; {cure}{note(draft.unread)}")
        root = directory_of(self._settings.sources[source].path, path)
        media = tuple(self._fetched(medium, path, root) for medium in draft.media)
        return replace(words, media=media)

    def _fetched(self, medium: MediumSource, path: str, root: str) -> Medium:
        if medium.data is not None:
            return checked_medium(medium.kind, medium.data, medium.path)
        address, base = medium.path or "", posixpath.dirname(path)
        name = None if address.startswith("data:") else address
        return checked_medium(medium.kind, self._reader(base, root).read(address), name)

    def _reader(self, base: str, root: str) -> Reader:
        if (base, root) not in self._readers:
            access = self._recipe.data.access
            access = access.model_copy(update={"roots": (root, *access.roots)})
            self._readers[base, root] = Reader(access, self._recipe.data.limits, base=base)
        return self._readers[base, root]

    def _stepped(self, medium: _Medium, id: str, index: int, split: str) -> _Medium:
        seed = (self._recipe.run.seed, zlib.crc32(id.encode("utf-8", "replace")), index)
        changed = apply_medium(self._settings.steps, medium.decoded, seed=seed, is_training=split == "train")
        if changed is medium.decoded:
            return medium
        return _Medium(_encoded(changed, medium.file), changed, medium.original, medium.key)

    def _with_sound_tracks(self, prompt: Prompt, media: Sequence[_Medium], split: str) -> tuple[Prompt, list[_Medium]]:
        """The prompt with an `<audio>` after each `<video>` that has a sound track, and its media with those sounds."""
        given = iter(zip(prompt.media, media, strict=True))
        messages: list[Message] = []
        every: list[_Medium] = []
        for message in prompt.messages:
            content: list[str] = []
            for part in split_content(message.content):
                if not isinstance(part, MediaKind):
                    content.append(part)
                    continue
                file, medium = next(given)
                every.append(medium)
                content.append(part.tag)
                track = self._decoder.sound_track(file) if part is MediaKind.VIDEO else None
                if track is not None:
                    encoded = _encoded(track, replace(file, kind=MediaKind.AUDIO))
                    sound = _Medium(encoded, track, track, content_key(track))
                    every.append(self._stepped(sound, prompt.id, len(media) + len(every), split))
                    content.append(MediaKind.AUDIO.tag)
            messages.append(replace(message, content="".join(content)))
        return replace(prompt, messages=tuple(messages)), every

    def _count(self, prompt: Prompt, media: Sequence[_Medium], draft: Draft) -> tuple[int | None, int | None]:
        """Tokens of the prompt, placeholders included, and of its answer if it has one; all its texts are checked."""
        if self._processor is None:
            return None, None
        self._processor.check_learned(draft.rejected, "rejected")
        for turn in (*draft.chosen_then, *draft.rejected_then):
            self._processor.check_learned(turn.content, f"a turn of the {turn.role} after the first answer")
        kinds, decoded = [each.file.kind for each in media], [each.decoded for each in media]
        processed = self._processor.process(prompt.id, self._processor.template(prompt), kinds, decoded)
        if prompt.answer is None:
            return len(processed.input_ids), None
        answer = self._processor.processor.tokenizer(prompt.answer, add_special_tokens=False).input_ids
        return len(processed.input_ids), len(answer) + 1  # and the end token

    def _stored(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._store is None:
            return row
        for kind, column in MEDIA_COLUMNS.items():
            row[column] = [
                {"bytes": None, "path": self._store.put(Medium(kind, file["bytes"], file["path"]))}
                for file in row[column]
            ]
        return row


def _files(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [file for column in MEDIA_COLUMNS.values() for file in row[column]]


def dataset_name(recipe: Recipe, source: int) -> str:
    """The name of a source; the second one of the same name ends in `-2`: ids of rows begin with it."""
    names = [
        each.name or posixpath.basename(each.path.rstrip("/")).split(".")[0] or "data"
        for each in recipe.prepare.sources
    ]
    before = names[:source].count(names[source])
    return f"{names[source]}-{before + 1}" if before else names[source]


@lru_cache(64)
def stated_split(source: str, path: str) -> str | None:
    """The split that the name of a source's file says, or a directory above it."""
    return split_in(posixpath.relpath(path, posixpath.dirname(directory_of(source, path)) or "."))


def directory_of(source: str, path: str) -> str:
    """The directory of a source with a file at `path`."""
    return posixpath.dirname(path) if path == source else source.rstrip("/")


def _encoded(decoded: DecodedMedium, like: Medium) -> Medium:
    """A file of a medium that a step has changed: PNG, WAV or MP4."""
    stem = None if like.path is None else posixpath.splitext(like.path)[0]
    match decoded:
        case Image(pixels=pixels):
            data, suffix = encode_png(pixels), "png"
        case Audio():
            data, suffix = encode_wav(decoded), "wav"
        case Video(frames=frames, frames_per_second=rate):
            data, suffix = encode_video(frames, rate), "mp4"
    return Medium(like.kind, data, None if stem is None else f"{stem}.{suffix}")


def _seconds(decoded: DecodedMedium) -> float:
    _, array, rate = flat(decoded)
    return len(array) / rate if rate else 0.0
