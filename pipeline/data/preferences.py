"""Comparisons and judgements in TRL's formats: prompt, chosen, rejected; or prompt, completion, label.

Where a table has media, a message's content is a list of parts (`{"type": "image"}` where a picture belongs), which is
how TRL tells the place of each; without media it is text, which the chat templates of text models need.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.data.schema import MEDIA_COLUMNS, PROMPT_FEATURES, PROMPT_SCHEMA, split_content
from pipeline.records import MediaKind

Kinds = frozenset[MediaKind]

_PART = pa.struct([("type", pa.string()), ("text", pa.string())])
_PART_FEATURES = {"feature": {"type": PROMPT_FEATURES["id"], "text": PROMPT_FEATURES["id"]}, "_type": "List"}


def pair_schema(kinds: Kinds, *, has_margin: bool) -> pa.Schema:
    """The columns of comparisons whose prompts hold media of these kinds."""
    columns: dict[str, Any] = {"chosen": _turns(kinds), "rejected": _turns(kinds)}
    return _schema(kinds, columns | ({"margin": (pa.float64(), _value("float64"))} if has_margin else {}))


def judgement_schema(kinds: Kinds) -> pa.Schema:
    """The columns of judgements (good or bad) of single completions."""
    return _schema(kinds, {"completion": _turns(kinds), "label": (pa.bool_(), _value("bool"))})


def pair_row(staged: Mapping[str, Any], kinds: Kinds) -> dict[str, Any]:
    """The comparison in a staged row."""
    answers = {name: [_turn("assistant", staged[column], kinds)] for name, column in _ANSWERS.items()}
    return {**_prompt(staged, kinds), **answers, "margin": staged["margin"]}


def judgement_row(staged: Mapping[str, Any], kinds: Kinds) -> dict[str, Any]:
    """The judgement in a staged row."""
    completion = [_turn("assistant", staged["answer"], kinds)]
    return {**_prompt(staged, kinds), "completion": completion, "label": staged["label"]}


_ANSWERS = {"chosen": "answer", "rejected": "rejected"}


def _prompt(staged: Mapping[str, Any], kinds: Kinds) -> dict[str, Any]:
    return {**staged, "prompt": [_turn(turn["role"], turn["content"], kinds) for turn in staged["prompt"]]}


def _turn(role: str, content: str, kinds: Kinds) -> dict[str, Any]:
    if not kinds:
        return {"role": role, "content": content}
    parts = [
        {"type": part.value, "text": None} if isinstance(part, MediaKind) else {"type": "text", "text": part}
        for part in split_content(content)
    ]
    return {"role": role, "content": parts}


def _schema(kinds: Kinds, columns: Mapping[str, tuple[pa.DataType, Any]]) -> pa.Schema:
    media = [MEDIA_COLUMNS[kind] for kind in MediaKind if kind in kinds]
    shared = {
        name: (PROMPT_SCHEMA.field(name).type, PROMPT_FEATURES[name]) for name in ("id", "task", "dataset", *media)
    }
    every = {"prompt": _turns(kinds), **columns, **shared}
    features = {name: feature for name, (_, feature) in every.items()}
    return pa.schema(
        [(name, type) for name, (type, _) in every.items()],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def _turns(kinds: Kinds) -> tuple[pa.DataType, Any]:
    if not kinds:
        return PROMPT_SCHEMA.field("prompt").type, PROMPT_FEATURES["prompt"]
    content = pa.list_(_PART)
    feature = {"role": PROMPT_FEATURES["id"], "content": _PART_FEATURES}
    return pa.list_(pa.struct([("role", pa.string()), ("content", content)])), {"feature": feature, "_type": "List"}


def _value(dtype: str) -> dict[str, str]:
    return {"dtype": dtype, "_type": "Value"}
