"""Rows that mean harm or nothing: each becomes a row of the table or a refusal with a reason, and nothing else."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import Recipe, Source, load_recipe
from pipeline.data.ingest.decisions import Decisions
from pipeline.data.ingest.index import Index
from pipeline.data.ingest.readers import read
from pipeline.data.ingest.rows import Prepared, RowPreparer
from pipeline.data.ingest.shards import shards_of
from pipeline.data.schema import STAGED_SCHEMA, Reason
from tests.data.ingest import samples

SEED = 20_241_124
NUM_ROWS = 1_500

POISON: tuple[Any, ...] = (
    None, True, 0, -1, 2**70, 1e308, float("nan"), float("inf"), "", " ", "\0", "\u202e", "\ud800", "x" * 20_000,
    "<image>", "<image><audio><video>" * 40, "[", "{}", "[[]]", "[" * 5_000, '{"role": "user"}',
    "../../etc/passwd", "/etc/passwd",
    "http://169.254.169.254/latest", "https://evil.example/x.png", "file:///etc/passwd", "data:image/png;base64,AAAA",
    "data:image/svg+xml,<svg/>", "s3://bucket/key", "C:\\x.png", "0.png/", "1.png\0.png", [], {}, [None], [[]], [{}],
    {"bytes": "text", "path": 3}, {"path": {"path": "0.png"}}, {"role": "user"}, {"role": "user", "content": {}},
    {"from": "gpt", "value": []}, [{"role": "user", "content": [{"type": "image", "image": [1]}]}],
    {"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}, {"type": "text", "text": {"type": "text"}},
)  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """One good row of each format, with pictures and sounds by path."""
    turn = {"role": "user", "content": "<image>What is it?"}
    reply = {"role": "assistant", "content": "a cat"}
    parts = [{"type": "image", "image": "1.png"}, {"type": "text", "text": "What?"}, {"type": "audio", "path": "0.wav"}]
    return [
        {"id": "a", "messages": [turn, reply], "images": ["0.png"], "task": "t", "split": "train"},
        {"image": "1.png", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "x"}]},
        {"id": "c", "messages": [{"role": "user", "content": parts}], "answer": "yes", "history": [["1", "2"]]},
        {"id": "d", "prompt": [turn], "chosen": [reply], "rejected": "a dog", "image": "2.png", "margin": 1},
        {"id": "e", "prompt": "Say hi", "completion": "hi", "label": True, "system": "Be brief."},
        {"id": "f", "instruction": "Add", "input": "1 and 2", "output": "3", "demonstration": "3 maybe"},
        {"id": "g", "file_name": "0.wav", "label": "low", "question": "<audio>?"},
    ]  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container inside a value, with each of its keys."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(entries):
        yield value, key
        yield from places(inner)


def mutated(rng: np.random.Generator) -> Iterator[Any]:
    """Good rows with one to three of their values replaced, removed or doubled."""
    good = rows()
    while True:
        row: Any = copy.deepcopy(good[rng.integers(len(good))])
        for _ in range(rng.integers(1, 4)):
            spots = list(places(row))
            if not spots:
                break
            container, key = spots[rng.integers(len(spots))]
            match int(rng.integers(8)):
                case 0:
                    del container[key]
                case 1 if isinstance(container, list):
                    container.append(copy.deepcopy(container[key]))
                case _:
                    container[key] = copy.deepcopy(POISON[rng.integers(len(POISON))])
        yield row


def write(path: Path, rng: np.random.Generator) -> int:
    """Lines of mutated rows, one in ten broken as JSON; returns how many there are."""
    lines = 0
    with path.open("wb") as file:
        for row, _ in zip(mutated(rng), range(NUM_ROWS), strict=False):
            line = bytearray(json.dumps(row).encode())
            if rng.random() < 0.1:
                if rng.random() < 0.5:
                    line = line[: rng.integers(1, len(line))]
                else:
                    line[rng.integers(len(line))] = rng.integers(256)
            line = bytearray(line.replace(b"\n", b" "))
            lines += bool(line.strip())
            file.write(line + b"\n")
    return lines


def recipe_of(source: Path, *overrides: str) -> Recipe:
    named = json.dumps([Source(path=str(source), name="hostile").model_dump(mode="json")])
    names = ("text.normalise", "text.remove_controls", "text.length, max_characters: 9000", "dedup.near_text")
    steps = ", ".join(f"{{step: {name}}}" for name in names)
    return load_recipe(None, [f"prepare.sources={named}", f"prepare.steps=[{steps}]", *overrides])


def test_over_a_thousand_hostile_rows_are_prepared_or_refused_with_a_reason(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(samples.digit(number)[0])
    (tmp_path / "0.wav").write_bytes(samples.tone(0))
    path = tmp_path / "rows.jsonl"
    num_lines = write(path, np.random.default_rng(SEED))
    recipe = recipe_of(path)
    prepare = RowPreparer(recipe, directory=tmp_path / "out", processor=None)
    found: Counter[str] = Counter()
    index: list[dict[str, Any]] = []
    for shard in shards_of(recipe.prepare.sources):
        for raw in read(shard, root=str(path)):
            row = prepare(raw, 0)
            found["prepared" if isinstance(row, Prepared) else row.reason] += 1
            if isinstance(row, Prepared):
                pa.Table.from_pylist([row.row], schema=STAGED_SCHEMA)
                index.append({**row.index})
            else:
                assert row.row_id and row.detail
                index.append({"id": row.row_id, "reason": row.reason, "detail": row.detail})
    decisions = Decisions(recipe.prepare, Index(":memory:"))
    for row in index:
        decisions.add({"shard": 0, "place": 0, "reason": None, **row})
    assert decisions.num_rows == num_lines
    print(found.most_common())
    assert found.total() == num_lines > 1_000
    assert set(found) <= {"prepared", *Reason}
    assert 100 < found["prepared"] < found.total() / 2
    for reason in (
        Reason.UNREADABLE,
        Reason.WRONG_TYPE,
        Reason.NO_MESSAGES,
        Reason.BAD_ROLE,
        Reason.EMPTY_ANSWER,
        Reason.PLACEHOLDER_MISMATCH,
        Reason.BAD_PREFERENCE,
        Reason.TEXT_TOO_LONG,
        Reason.OUTSIDE_ROOTS,
        Reason.HOST_NOT_ALLOWED,
        Reason.NOT_FOUND,
        Reason.BAD_ADDRESS,
    ):
        assert found[reason], f"no case of {reason}"
