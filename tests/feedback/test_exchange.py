"""What judgements say in the terms that formats share; and the judged items that the formats are tested with."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from pipeline.feedback.exchange.labels import comparisons, gathered, majority, verdicts, without_nothing
from pipeline.feedback.records import Candidate, Item, Judged, Judgement, JudgementKind, MediumRef, Task
from pipeline.records import MediaKind, Message

KIND = JudgementKind
NOW = 1_790_000_000.25
"""A time that a float and microseconds both hold."""


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(file, "PNG")
    return file.getvalue()


def wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(800) / 10) / 2, 8_000, format="WAV")
    return file.getvalue()


class Files:
    """Media in memory, by their keys."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def keep(self, kind: MediaKind, data: bytes) -> MediumRef:
        ref = MediumRef.of(kind, data)
        self.files[ref.key] = data
        return ref

    def media(self, ref: MediumRef) -> bytes:
        return self.files[ref.key]


def files() -> Files:
    """With a picture and a sound in it."""
    kept = Files()
    kept.keep(MediaKind.IMAGE, png())
    kept.keep(MediaKind.AUDIO, wav())
    return kept


IMAGE, AUDIO = MediumRef.of(MediaKind.IMAGE, png()), MediumRef.of(MediaKind.AUDIO, wav())


def item(task: Task = Task.PAIR, *texts: str, **fields: Any) -> Item:
    shown: dict[str, Any] = {"messages": (Message("user", "Was ist das? 是什么 🎈"),), "media": (), **fields}
    candidates = tuple(map(Candidate, texts or ("größer 🐘", "kleiner, \"x\"\n'y'")))
    return Item(task, "row-1", "colour", candidates=candidates, **shown)


def with_media(task: Task = Task.PAIR, *texts: str) -> Item:
    messages = (
        Message("system", "Be brief."),
        Message("user", "<image>Look."),
        Message("assistant", "Yes?"),
        Message("user", "Is <audio> in it?"),
    )
    return item(task, *texts, messages=messages, media=(IMAGE, AUDIO))


def judged(of: Item, *said: tuple[JudgementKind, dict[str, Any]], raters: str = "abcdefgh") -> Judged:
    """An item and judgements of it, one a rater."""
    judgements = [
        Judgement(f"key-{rater}-{number}", of.id, rater, kind, content, NOW + number, 1.5 + number)
        for number, (rater, (kind, content)) in enumerate(zip(raters, said, strict=False))
    ]
    return Judged(of, tuple(judgements))


def pair(chosen: int | None) -> tuple[JudgementKind, dict[str, Any]]:
    return KIND.PAIR, {"chosen": chosen}


def ranking(*ranks: int) -> tuple[JudgementKind, dict[str, Any]]:
    return KIND.RANKING, {"ranks": list(ranks)}


def rating(*ratings: dict[str, int]) -> tuple[JudgementKind, dict[str, Any]]:
    return KIND.RATING, {"ratings": list(ratings)}


def outcomes(of: Judged, *, aggregate: bool = False) -> tuple[list[tuple[int, int, int | None]], dict[str, int]]:
    report: Counter[str] = Counter()
    found = [(each.first, each.second, each.chosen) for each in comparisons(of, report, aggregate=aggregate)]
    return found, dict(without_nothing(report))


def test_a_ranking_says_one_comparison_of_every_two_completions_and_equal_ranks_are_ties() -> None:
    three = item(Task.RANKING, "a", "b", "c")
    assert outcomes(judged(three, ranking(2, 1, 2))) == ([(0, 1, 1), (0, 2, None), (1, 2, 1)], {})


def test_ratings_compare_by_the_mean_of_their_criteria() -> None:
    three = item(Task.RATING, "a", "b", "c")
    said = rating({"true": 5, "short": 2}, {"true": 3, "short": 4}, {"true": 4})
    assert outcomes(judged(three, said)) == ([(0, 1, None), (0, 2, 2), (1, 2, 2)], {})


def test_of_votes_the_most_win_and_as_many_for_each_are_a_tie() -> None:
    votes = {(0, 0, 1): 0, (0, 1): None, (1, None, None): None, (1, 1, None, 0): 1, (1, 1, None, None): None}
    assert {given: majority(given) for given in votes} == votes
    for given, expected in votes.items():
        found, _ = outcomes(judged(item(), *map(pair, given)), aggregate=True)
        assert found == [(0, 1, expected)], given


def test_each_rater_has_one_vote_and_it_is_the_last() -> None:
    said = judged(item(), pair(0), pair(0), pair(1), pair(1), raters="aabc")
    assert outcomes(said)[0] == [(0, 1, 0), (0, 1, 0), (0, 1, 1), (0, 1, 1)]
    assert outcomes(said, aggregate=True) == ([(0, 1, 1)], {"repeated": 1})
    forgotten = Judged(said.item, tuple(replace(each, rater=None) for each in said.judgements))
    assert outcomes(forgotten, aggregate=True) == ([(0, 1, None)], {}), "nobody knows that two are of one rater"


def test_what_was_withdrawn_or_skipped_or_says_nothing_of_two_is_counted() -> None:
    said = judged(
        item(),
        pair(0),
        pair(1),
        (KIND.SKIP, {"reason": "unsure"}),
        (KIND.CORRECTION, {"place": 0, "text": "better"}),
        (KIND.HARMFUL, {"place": 1}),
        (KIND.REWARD, {"place": 1, "value": 0.5}),
        (KIND.WITHDRAWAL, {}),
    )
    last = replace(said.judgements[-1], withdraws=said.judgements[0].key)
    found, report = outcomes(Judged(said.item, (*said.judgements[:-1], last)))
    assert found == [(0, 1, 1)]
    assert report == {"correction": 1, "harmful": 1, "reward": 1, "skip": 1, "withdrawal": 1, "withdrawn": 1}


def test_a_mean_rating_of_4_is_good_one_of_2_is_bad_and_others_are_counted() -> None:
    three = item(Task.RATING, "a", "b", "c")
    first = rating({"x": 3, "y": 5}, {"x": 1, "y": 3}, {"x": 3, "y": 4})
    said = judged(three, first, rating({"x": 1}, {"x": 2}, {"x": 4}))
    report: Counter[str] = Counter()
    assert sorted(verdicts(said, report)) == [(0, False), (0, True), (1, False), (1, False), (2, True)]
    assert without_nothing(report) == {"undecided": 1}
    report = Counter()
    assert verdicts(said, report, aggregate=True) == [(1, False)]
    assert without_nothing(report) == {"undecided": 2}, "one for, one against; and one for, one between"


def test_pairs_and_rankings_say_nothing_of_one_completion() -> None:
    report: Counter[str] = Counter()
    assert verdicts(judged(item(), pair(0)), report) == []
    assert without_nothing(report) == {"pair": 1}


@pytest.mark.parametrize(
    ("of", "said", "message"),
    [
        (item(), pair(2), "chosen|place=2"),
        (item(), ranking(1, 2), "kind=ranking"),
        (item(Task.RANKING, "a", "b", "c"), ranking(1, 2), "ranks=\\[1, 2\\]"),
        (item(Task.RATING), rating({"x": 6}, {"x": 1}), "ratings=.*1 to 5"),
        (item(Task.RATING), (KIND.RATING, {"ratings": "good"}), "ratings='good'"),
        (item(Task.PAIR, "a", "b", "c"), pair(1), "3 candidates"),
    ],
)
def test_a_judgement_that_its_item_does_not_ask_for_is_refused_by_name(of: Item, said: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        outcomes(judged(of, said))
    assert of.id in str(caught.value)


def test_tags_that_are_not_those_of_the_media_are_refused() -> None:
    with pytest.raises(ValueError, match=r"media=\['image'\], tags in messages=\[\]"):
        outcomes(judged(item(media=(IMAGE,)), pair(0)))


def test_judgements_of_one_item_meet_and_a_second_answer_of_a_rater_is_a_repeat() -> None:
    first, second = judged(item(), pair(0), pair(1), pair(1), raters="aba"), judged(item(Task.PAIR, "x", "y"), pair(0))
    found = gathered([*((first.item, each) for each in first.judgements), (second.item, second.judgements[0])])
    assert [each.item for each in found] == [first.item, second.item]
    assert [each.is_repeat for each in found[0].judgements] == [False, False, True]
