"""Results of Label Studio's annotations, and the judgements that they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pipeline.feedback.exchange.label_studio_config import HARMFUL, TIE, Layout
from pipeline.feedback.exchange.labels import Left, Report
from pipeline.feedback.records import Item, Judgement, JudgementKind, Task

_OURS = re.compile(r"(rating|harmful|correction)_(\d+)(?:_(.+))?", re.DOTALL)
_NUMBER = re.compile(r"[-_ ]?\d+$")

Said = tuple[JudgementKind, dict[str, Any]]
"""The kind and the content of a judgement."""


def results_of(judgement: Judgement, item: Item) -> list[dict[str, Any]] | None:
    """The results of an annotation that says this; None for what has no control."""

    def about(place: int) -> str:
        return "answers" if item.task is Task.RANKING else f"answer_{place}"

    match judgement.kind, judgement.content:
        case JudgementKind.PAIR, {"chosen": None}:
            return [_result("tie", "prompt", "choices", choices=[TIE])]
        case JudgementKind.PAIR, {"chosen": chosen}:
            # The editor has Pairwise results be about their own control.
            return [_result("pair", "pair", "pairwise", selected=("left", "right")[chosen])]
        case JudgementKind.RANKING, {"ranks": ranks}:
            buckets: dict[str, list[str]] = {f"rank_{rank}": [] for rank in range(1, len(ranks) + 1)}
            for place, rank in enumerate(ranks):
                buckets[f"rank_{rank}"].append(str(place))
            return [_result("ranking", "answers", "ranker", ranker=buckets)]
        case JudgementKind.RATING, {"ratings": ratings}:
            return [
                _result(f"rating_{place}_{name}", about(place), "rating", rating=score)
                for place, rating in enumerate(ratings)
                for name, score in rating.items()
            ]
        case JudgementKind.SKIP, _:
            return []
        case JudgementKind.CORRECTION, {"place": place, "text": text}:
            return [_result(f"correction_{place}", about(place), "textarea", text=[text])]
        case JudgementKind.HARMFUL, {"place": place}:
            return [_result(f"harmful_{place}", about(place), "choices", choices=[HARMFUL])]
        case _:
            return None


def _result(control: str, about: str, type: str, **value: Any) -> dict[str, Any]:
    return {"id": control, "from_name": control, "to_name": about, "type": type, "value": value, "origin": "manual"}


@dataclass(frozen=True)
class Asked:
    """What the results of a task's annotations are about.

    ids: of the completions in a list that is ranked, by their places. ties: choices that say that both are as good.
    """

    item: Item
    layout: Layout
    ids: Sequence[str]
    ties: frozenset[str]

    def said(self, results: Sequence[Mapping[str, Any]], report: Report) -> list[Said]:
        """What an annotation says: the answer to the item first, then corrections and what is harmful.

        An answer that leaves something open, or that contradicts another one, is left out and counted.
        """
        answers: list[dict[str, Any]] = []
        ratings: list[dict[str, int]] = [{} for _ in self.item.candidates]
        beside: list[Said] = []
        for result in results:
            place = self._place(result)
            match result.get("type"), result.get("value"), self.item.task:
                case "pairwise", {"selected": "left" | "right" as side}, Task.PAIR:
                    answers.append({"chosen": int(side == "right")})
                case "choices", {"choices": [str(choice)]}, Task.PAIR if choice.casefold() in self.ties:
                    answers.append({"chosen": None})
                case "choices", {"choices": [str(choice)]}, _ if choice == HARMFUL and place is not None:
                    beside.append((JudgementKind.HARMFUL, {"place": place}))
                case "textarea", {"text": str(text) | [str(text)]}, _ if place is not None and _is_ours(result):
                    beside.append((JudgementKind.CORRECTION, {"place": place, "text": text}))
                case "rating", {"rating": int(score)}, Task.RATING if place is not None:
                    ratings[place][_criterion(result)] = score
                case "ranker", {"ranker": dict(buckets)}, Task.RANKING:
                    ranks = self._ranks(cast("dict[str, list[str]]", buckets), str(result.get("from_name")))
                    answers += [{"ranks": ranks}] if ranks else []
                case type_, _, _:
                    report[f"result {type_}"] += 1
        answers += [{"ratings": ratings}] if all(ratings) else []
        if not answers and not beside:
            report[Left.UNFINISHED] += 1
        elif any(answer != answers[0] for answer in answers):
            report[Left.CONTRADICTION] += 1
            answers = []
        return [*((JudgementKind(self.item.task.value), answer) for answer in answers[:1]), *beside]

    def _place(self, result: Mapping[str, Any]) -> int | None:
        """The completion that a result is about: its object says it, or in a list the control's name."""
        name = _OURS.fullmatch(str(result.get("from_name")))
        place = int(name[2]) if name else self.layout.place(result)
        return place if place is not None and place < len(self.item.candidates) else None

    def _ranks(self, buckets: Mapping[str, Sequence[str]], control: str) -> list[int] | None:
        """The rank of each completion: of its bucket by the number in its name, without buckets of its place in the
        order; None where a completion has none."""
        if set(buckets) == {control}:
            ranks = {id: rank for rank, id in enumerate(buckets[control], 1)}
        else:
            numbers = {name: re.search(r"\d+$", name) for name in buckets}
            ranks = {id: int(number[0]) for name, number in numbers.items() if number for id in buckets[name]}
        return [ranks[id] for id in self.ids] if set(self.ids) <= set(ranks) else None


def _is_ours(result: Mapping[str, Any]) -> bool:
    return bool(_OURS.fullmatch(str(result.get("from_name"))))


def _criterion(result: Mapping[str, Any]) -> str:
    """What is rated: in a control's name what is left of it without the number of the completion."""
    name = str(result.get("from_name"))
    ours = _OURS.fullmatch(name)
    return (ours[3] if ours else None) or _NUMBER.sub("", name) or name
