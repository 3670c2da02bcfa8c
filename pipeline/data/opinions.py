"""The columns of the preference table, and the way between its rows and what a reward model learns.

A row is a comparison of two completions, a ranking of several, or a rating of one; columns of the other kinds are null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

from pipeline.records import Opinion, Preference, Ranking, RaterKind, Rating, Spans

_COMPLETION = pa.struct([("ids", pa.list_(pa.int64())), ("text", pa.string()), ("rank", pa.int64())])
_GIVEN = ("chosen_given", "rejected_given")
_RATING = pa.struct([("criterion", pa.string()), ("value", pa.float64())])

PREFERENCE_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("chosen_ids", pa.list_(pa.int64())),
        ("rejected_ids", pa.list_(pa.int64())),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("rater", pa.string()),
        ("rater_kind", pa.string()),
        ("error_rate", pa.float64()),
        ("margin", pa.float64()),
        ("is_tie", pa.bool_()),
        # Tables of before have no more columns than these. Here come the completions of a ranking, each with its rank,
        # or the one completion of a rating, without.
        ("completions", pa.list_(_COMPLETION)),
        ("ratings", pa.list_(_RATING)),
        ("weight", pa.float64()),
        # Of comparisons of several turns: where in the tokens the user speaks, a start and an end in turn.
        ("chosen_given", pa.list_(pa.int64())),
        ("rejected_given", pa.list_(pa.int64())),
    ]
)


def opinion_row(opinion: Opinion) -> dict[str, Any]:
    """The row of an opinion, for `PREFERENCE_SCHEMA`; the inverse of `opinion_of`."""
    row: dict[str, Any] = {**vars(opinion), "rater_kind": opinion.rater_kind.value}
    match opinion:
        case Preference():
            given = {name: [*chain.from_iterable(getattr(opinion, name))] or None for name in _GIVEN}
            return row | given
        case Ranking(completions=completions, texts=texts, ranks=ranks):
            several = zip(completions, texts, ranks, strict=True)
            return {**row, "completions": [{"ids": ids, "text": text, "rank": rank} for ids, text, rank in several]}
        case Rating(ratings=ratings):
            return {
                **row,
                "completions": [{"ids": opinion.token_ids, "text": opinion.text, "rank": None}],
                "ratings": [{"criterion": name, "value": value} for name, value in ratings.items()],
            }


def opinion_of(row: Mapping[str, Any]) -> Opinion:
    """The opinion in a row. Columns that are not there have their defaults.

    Raises:
        ValueError: it says what cannot be learned; see the records.
    """
    weight = row.get("weight")
    shared: dict[str, Any] = {
        "prompt_id": row["prompt_id"],
        "rater": row["rater"],
        "rater_kind": RaterKind(row["rater_kind"]),
        "weight": 1.0 if weight is None else weight,
    }
    several = row.get("completions")
    if not several:
        return Preference(
            chosen_ids=tuple(row["chosen_ids"]),
            rejected_ids=tuple(row["rejected_ids"]),
            chosen=row["chosen"],
            rejected=row["rejected"],
            error_rate=row.get("error_rate"),
            margin=row.get("margin") or 0.0,
            is_tie=bool(row.get("is_tie")),
            **{name: _spans(row.get(name) or ()) for name in _GIVEN},
            **shared,
        )
    ids, texts = tuple(tuple(each["ids"]) for each in several), tuple(each["text"] for each in several)
    if ratings := row.get("ratings"):
        (token_ids,), (text,) = ids, texts
        values = {each["criterion"]: each["value"] for each in ratings}
        return Rating(token_ids=token_ids, text=text, ratings=values, **shared)
    return Ranking(completions=ids, texts=texts, ranks=tuple(each["rank"] for each in several), **shared)


def _spans(ends: Sequence[int]) -> Spans:
    return tuple(zip(ends[::2], ends[1::2], strict=True))
