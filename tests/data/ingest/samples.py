"""Small real sources in every form that `jobs.prepare` reads: scanned digits, tones and moving squares."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from pipeline.config import Source
from pipeline.data.demo import drawing
from pipeline.data.media import encode_png, encode_video, encode_wav
from pipeline.records import Audio

ROWS = 12
"""Rows of each source."""


def digit(index: int) -> tuple[bytes, str]:
    """A picture of a scanned digit, a different one for each index, and what it shows."""
    scans, labels = drawing.scanned_digits()
    return encode_png(drawing.draw_digit(scans[index], np.random.default_rng(index))), str(labels[index])


def tone(index: int) -> bytes:
    """Half a second of a sine, its pitch by the index."""
    times = np.arange(8_000) / 16_000
    return encode_wav(
        Audio(samples=(0.3 * np.sin(2 * np.pi * (300 + 40 * index) * times)).astype(np.float32), sampling_rate=16_000)
    )


def clip(index: int) -> bytes:
    """Four frames of a square that moves."""
    frames = np.zeros((4, 24, 24, 3), np.uint8)
    for time in range(4):
        frames[time, index : index + 6, 4 * time : 4 * time + 6] = 255
    return encode_video(frames, 4.0)


def hugging_face(directory: Path, start: int) -> Source:
    """A data set's Parquet files with an Image feature and messages, a file a split."""
    for split, count in (("train", ROWS - 4), ("validation", 2), ("test", 2)):
        pictures = [digit(index) for index in range(start, start + count)]
        start += count
        features = datasets.Features(
            {
                "images": datasets.List(datasets.Image()),
                "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
            }
        )
        rows = [
            {
                "images": [{"bytes": data, "path": None}],
                "messages": [
                    {"role": "user", "content": "What digit is this?"},
                    {"role": "assistant", "content": answer},
                ],
            }
            for data, answer in pictures
        ]
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(directory / "data" / f"{split}-00000-of-00001.parquet")
    return Source(path=str(directory), name="hugging_face")


def saved(directory: Path, start: int) -> Source:
    """What `datasets` saves to disk, a picture a row and a class label."""
    pictures = [digit(index) for index in range(start, start + ROWS)]
    names = [str(number) for number in range(10)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = [{"image": {"bytes": data, "path": None}, "label": int(answer)} for data, answer in pictures]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(directory)
    return Source(path=str(directory), name="saved", question="<image>Read the digit.")


def llava(directory: Path, start: int) -> Source:
    """A JSON array in LLaVA's format, pictures by path."""
    rows: list[dict[str, Any]] = []
    for index in range(start, start + ROWS):
        data, answer = digit(index)
        (directory / f"{index}.png").write_bytes(data)
        says = [{"from": "human", "value": "<image>\nWhat digit is this?"}, {"from": "gpt", "value": answer}]
        rows.append({"id": f"llava-{index}", "image": f"{index}.png", "conversations": says})
    (directory / "chat.json").write_text(json.dumps(rows))
    return Source(path=str(directory / "chat.json"), name="llava")


def swift(directory: Path, start: int) -> Source:
    """JSON Lines in ms-swift's format: sounds and videos by path, with tags."""
    with (directory / "rows.jsonl").open("w") as file:
        for index in range(ROWS):
            (directory / f"{index}.wav").write_bytes(tone(start + index))
            (directory / f"{index}.mp4").write_bytes(clip(index))
            messages = [
                {"role": "user", "content": "<video>And <audio>what is this?"},
                {"role": "assistant", "content": f"sound {index}"},
            ]
            row = {"messages": messages, "audios": [f"{index}.wav"], "videos": [f"{index}.mp4"]}
            file.write(json.dumps(row) + "\n")
    return Source(path=str(directory / "rows.jsonl"), name="swift")


def table(directory: Path, start: int) -> Source:
    """A CSV of text alone, with columns of its own names."""
    with (directory / "sums.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ask", "result"])
        writer.writerows([f"How much is {start + n} and {n}?", start + 2 * n] for n in range(ROWS))
    return Source(path=str(directory / "sums.csv"), name="table", map={"prompt": "ask", "answer": "result"})


def tar(directory: Path, start: int) -> Source:
    """A WebDataset shard of pictures and sounds with a JSON file each."""
    with tarfile.open(directory / "000.tar", "w") as archive:
        for index in range(start, start + ROWS):
            data, answer = digit(index)
            fields = {"question": "<audio><image>What digit is seen?", "answer": answer}
            parts = {"png": data, "wav": tone(index), "json": json.dumps(fields).encode()}
            for suffix, content in parts.items():
                info = tarfile.TarInfo(f"{index:05d}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return Source(path=str(directory), name="tar")


def folder(directory: Path, start: int) -> Source:
    """Sounds in directories that name what they are."""
    for index in range(ROWS):
        target = directory / ("high" if index % 2 else "low") / f"{index}.wav"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(tone(start + index + 100 * (index % 2)))
    return Source(path=str(directory), name="folder", question="<audio>Is it high or low?")


def preferences(directory: Path, start: int) -> Source:
    """Comparisons in TRL's conversational format, pictures embedded, with margins."""
    rows: list[dict[str, Any]] = []
    for index in range(start, start + ROWS):
        data, answer = digit(index)
        rows.append(
            {
                "images": [{"bytes": data, "path": None}],
                "prompt": [{"role": "user", "content": "What digit is this?"}],
                "chosen": [{"role": "assistant", "content": answer}],
                "rejected": [{"role": "assistant", "content": f"{answer} maybe"}],
                "margin": float(index % 3),
            }
        )
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            **{
                name: datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
                for name in ("prompt", "chosen", "rejected")
            },
            "margin": datasets.Value("float32"),
        }
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(directory / "pairs.parquet")
    return Source(path=str(directory / "pairs.parquet"), name="preferences")


def judgements(directory: Path, start: int) -> Source:
    """Single completions called good or bad, text alone."""
    rows = [
        {"prompt": f"Say {start + n}.", "completion": str(start + n + n % 2), "label": n % 2 == 0} for n in range(ROWS)
    ]
    (directory / "thumbs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(path=str(directory / "thumbs.jsonl"), name="judgements")


FORMS: tuple[Callable[[Path, int], Source], ...] = (
    hugging_face,
    saved,
    llava,
    swift,
    table,
    tar,
    folder,
    preferences,
    judgements,
)


def every_form(directory: Path) -> list[Source]:
    """A source of each form, no two with a medium in common."""
    sources: list[Source] = []
    for number, make in enumerate(FORMS):
        place = directory / make.__name__
        place.mkdir(parents=True)
        sources.append(make(place, number * ROWS))
    return sources
