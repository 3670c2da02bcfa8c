"""Label Studio's tasks, annotations and configurations: ours there and back, and another's project."""

from __future__ import annotations

import base64
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pipeline.data.schema import RowError
from pipeline.feedback.exchange import label_studio
from pipeline.feedback.exchange.label_studio_config import Layout, Shape, labeling_config
from pipeline.feedback.records import Item, Judged, Judgement, JudgementKind, MediumRef, Task
from pipeline.records import MediaKind, Message
from tests.feedback.test_exchange import (
    AUDIO,
    IMAGE,
    KIND,
    NOW,
    Files,
    files,
    item,
    judged,
    pair,
    png,
    ranking,
    rating,
    wav,
    with_media,
)

CORRECTION = (KIND.CORRECTION, {"place": 1, "text": "Grün 🐸\nund <b>blau</b>"})
HARMFUL = (KIND.HARMFUL, {"place": 0})


def _as_said(judgement: Judgement) -> tuple[Any, ...]:
    """What the format holds of a judgement: not its key and order, not whether it was gold or a repeat, no version of a
    page, and of a skip no reason."""
    content = {} if judgement.kind is KIND.SKIP else dict(judgement.content)
    return judgement.rater, judgement.kind, content, judgement.judged_at, judgement.latency_s


def _there_and_back(directory: Path, *written: Judged, **options: Any) -> tuple[list[Judged], Counter[str], Files]:
    report = label_studio.write(directory, written, media=files().media)
    kept = Files()
    found: list[Judged] = []
    for path in sorted(directory.glob("*.json")):
        more, left = label_studio.read(path, keep=kept.keep, **options)
        assert left == {}
        found += more
    return found, report, kept


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Task.PAIR, [pair(0), pair(1), pair(None)]),
        (Task.RANKING, [ranking(1, 2, 3), ranking(2, 1, 2), ranking(3, 3, 1)]),
        (Task.RATING, [rating({"größe": 5, "in short": 1}, {"größe": 2}, {"größe": 3})]),
    ],
)
def test_items_and_judgements_come_back_with_media_ties_raters_and_unicode(
    tmp_path: Path, task: Task, said: list[tuple[JudgementKind, dict[str, Any]]]
) -> None:
    of = with_media(task, *["größer 🐘", "kleiner", ""][: 2 if task is Task.PAIR else 3])
    of = replace(of, run="run", step=3, uncertainty=0.5, num_raters=3)
    written = judged(of, *said, (KIND.SKIP, {"reason": ""}), CORRECTION, HARMFUL)
    (found,), report, kept = _there_and_back(tmp_path, written)
    assert report == {}
    assert found.item == written.item
    assert list(map(_as_said, found.judgements)) == list(map(_as_said, written.judgements))
    assert (kept.media(IMAGE), kept.media(AUDIO)) == (png(), wav())
    again, _, _ = _there_and_back(tmp_path, written)
    keys = [each.key for each in found.judgements]
    assert (keys, len(set(keys))) == ([each.key for each in again[0].judgements], len(keys))


def test_items_of_different_shapes_are_different_projects(tmp_path: Path) -> None:
    written = judged(item(), pair(0)), judged(with_media(), pair(1)), judged(item(Task.RANKING), ranking(1, 1))
    found, _, _ = _there_and_back(tmp_path, *written)
    names = ["pair-2", "pair-2-image-audio", "ranking-2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{n}.{end}" for n in names for end in ("json", "xml")
    )
    assert [each.item for each in found] == [written[1].item, written[0].item, written[2].item]


def test_a_task_is_as_label_studio_has_it(tmp_path: Path) -> None:
    label_studio.write(
        tmp_path, [judged(item(Task.PAIR, "x", "y"), pair(1))], media=files().media, raters={"a": "a@b.c"}
    )
    (task,) = json.loads((tmp_path / "pair-2.json").read_text(encoding="utf-8"))
    assert {name: task["data"][name] for name in ("prompt", "answer_0", "answer_1")} == {
        "prompt": "Was ist das? 是什么 🎈",
        "answer_0": "x",
        "answer_1": "y",
    }
    assert task["annotations"] == [
        {
            "result": [
                {
                    "id": "pair",
                    "from_name": "pair",
                    "to_name": "pair",
                    "type": "pairwise",
                    "value": {"selected": "right"},
                    "origin": "manual",
                }
            ],
            "was_cancelled": False,
            "ground_truth": False,
            "lead_time": 1.5,
            "created_at": "2026-09-21T14:13:20.250000+00:00",
            "completed_by": {"email": "a@b.c"},
        }
    ]
    (found,), _ = label_studio.read(tmp_path / "pair-2.json", keep=Files().keep, raters={"a@b.c": "a"})
    assert [each.rater for each in found.judgements] == ["a"]


def test_what_has_no_place_is_counted_and_gold_is_not_shown_to_raters(tmp_path: Path) -> None:
    odd = Files().keep(MediaKind.IMAGE, b"BM a bitmap")
    store = files()
    store.keep(MediaKind.IMAGE, b"BM a bitmap")
    gold = replace(item(), gold={"chosen": 1})
    said = judged(gold, pair(0), (KIND.SKIP, {"reason": "tired"}), (KIND.REWARD, {"place": 0, "value": 1.0}))
    shown = item(messages=(Message("user", "<image>"),), media=(odd,))
    report = label_studio.write(tmp_path, [said, judged(shown, pair(0))], media=store.media)
    assert report == {"gold": 1, "medium_type": 1, "reward": 1, "skip_reason": 1}
    (task,) = json.loads((tmp_path / "pair-2.json").read_text(encoding="utf-8"))
    assert task["data"]["item"]["gold"] is None


@pytest.mark.parametrize("task", list(Task))
def test_a_configuration_shows_all_keys_of_a_task_and_has_a_control_for_each_result(tmp_path: Path, task: Task) -> None:
    said = {Task.PAIR: pair(None), Task.RANKING: ranking(1, 1), Task.RATING: rating({'"quoted" & <odd>': 5}, {"b": 1})}
    label_studio.write(tmp_path, [judged(with_media(task), said[task], CORRECTION, HARMFUL)], media=files().media)
    (path,) = tmp_path.glob("*.json")
    tags = list(ElementTree.parse(path.with_suffix(".xml")).getroot().iter())
    (written,) = json.loads(path.read_text(encoding="utf-8"))
    shown = {tag.get("value", "")[1:] for tag in tags if tag.get("value", "").startswith("$")}
    assert shown == set(written["data"]) - {"item"}
    controls = {tag.get("name"): (tag.tag.lower(), tag.get("toName")) for tag in tags if tag.get("toName")}
    for annotation in written["annotations"]:
        for result in annotation["result"]:
            assert controls[result["from_name"]] == (result["type"], result["to_name"])


OTHERS = """<View>
  <Header value="Which is better?"/>
  <Image name="picture" value="$image"/> <Text name="question" value="$question"/>
  <Pairwise name="cmp" toName="right-one,left-one"/>
  <Text name="left-one" value="$b"/> <Text name="right-one" value="$a"/>
  <Choices name="same" toName="question"><Choice value="Equal"/></Choices>
</View>"""
DATA = {
    "image": f"data:image/png;base64,{base64.b64encode(png()).decode()}",
    "question": "Was?",
    "a": "A",
    "b": "B",
    "source": "crawl",
}


def _annotation(*results: dict[str, Any], **fields: Any) -> dict[str, Any]:
    time = "2026-09-21T14:13:20.250000Z"
    return {"id": 5, "completed_by": 10, "lead_time": 4.25, "created_at": time, "result": list(results), **fields}


def _result(type: str, name: str = "cmp", about: str = "cmp", **value: Any) -> dict[str, Any]:
    return {"id": "x", "from_name": name, "to_name": about, "type": type, "value": value}


LEFT, RIGHT = _result("pairwise", selected="left"), _result("pairwise", selected="right")
EQUAL = _result("choices", "same", "question", choices=["Equal"])


def _foreign(path: Path, *annotations: Any, data: Any = DATA, config: str | None = OTHERS, **more: Any) -> Any:
    task = {"id": 3, "data": data, "annotations": list(annotations), "predictions": [], **more}
    (path / "export.json").write_text(json.dumps([task]), encoding="utf-8")
    return label_studio.read(path / "export.json", keep=Files().keep, config=config, ties=["equal"])


def test_of_anothers_project_the_configuration_says_what_left_is(tmp_path: Path) -> None:
    second = _annotation(EQUAL, id=6, completed_by={"id": 11, "email": "x@y.z"})
    third = _annotation(id=7, was_cancelled=True)
    (found,), report = _foreign(tmp_path, _annotation(RIGHT), second, third)
    assert found.item == Item(
        Task.PAIR,
        "label_studio-3",
        "label_studio",
        (Message("user", "<image>\nWas?"),),
        (MediumRef.of(MediaKind.IMAGE, png()),),
        item(Task.PAIR, "A", "B").candidates,
    )
    assert list(map(_as_said, found.judgements)) == [
        ("10", KIND.PAIR, {"chosen": 1}, NOW, 4.25),
        ("x@y.z", KIND.PAIR, {"chosen": None}, NOW, 4.25),
        ("10", KIND.SKIP, {}, NOW, 4.25),
    ]
    assert [each.key for each in found.judgements] == ["label_studio-5-0", "label_studio-6-0", "label_studio-7-0"]
    assert report == {"data.source": 1}


def test_what_is_open_contradictory_or_of_another_kind_is_counted(tmp_path: Path) -> None:
    boxes = _result("rectanglelabels", x=1)
    (found,), report = _foreign(
        tmp_path,
        _annotation(LEFT, EQUAL),
        _annotation(),
        _annotation(LEFT, boxes, id=8),
        predictions=[{"result": []}, {"result": []}],
    )
    assert [each.content for each in found.judgements] == [{"chosen": 0}]
    assert report == {
        "contradiction": 1,
        "data.source": 1,
        "predictions": 2,
        "result rectanglelabels": 1,
        "unfinished": 1,
    }


def test_a_medium_that_is_not_in_the_task_leaves_it_out(tmp_path: Path) -> None:
    found, report = _foreign(tmp_path, _annotation(LEFT), data={**DATA, "image": "https://example.org/1.png"})
    assert (found, report) == ([], {"data.source": 1, "medium_elsewhere": 1})


RANKER = '<View><Text name="q" value="$q"/><List name="l" value="$docs"/><Ranker name="r" toName="l"/></View>'
DOCS = {"q": "Which?", "docs": [{"id": "mdn", "title": "t", "body": "B"}, {"id": "blog", "title": "C"}]}


def test_a_ranker_without_buckets_ranks_by_order_and_one_with_buckets_by_their_numbers(tmp_path: Path) -> None:
    for ranker, ranks in (
        ({"r": ["blog", "mdn"]}, [[2, 1]]),
        ({"best_1": ["blog", "mdn"], "worst_2": []}, [[1, 1]]),
        ({"best_1": ["blog"], "_": ["mdn"]}, []),
    ):
        about = _annotation(_result("ranker", "r", "l", ranker=ranker))
        (found,), report = _foreign(tmp_path, about, data=DOCS, config=RANKER)
        assert [each.content["ranks"] for each in found.judgements] == ranks
        assert [each.text for each in found.item.candidates] == ["B", "C"]
        assert report == ({} if ranks else {"unfinished": 1})


RATINGS = """<View><Text name="q" value="$q"/><Text name="t1" value="$one"/><Text name="t2" value="$two"/>
<Rating name="clear1" toName="t1"/><Rating name="clear2" toName="t2"/><Rating name="short 1" toName="t1"/></View>"""
TWO = {"q": "Which?", "one": "1", "two": "2"}


def test_ratings_are_of_the_completion_that_they_are_about_and_all_must_be_rated(tmp_path: Path) -> None:
    first = [_result("rating", "clear1", "t1", rating=4), _result("rating", "short 1", "t1", rating=1)]
    second = _result("rating", "clear2", "t2", rating=2)
    (found,), report = _foreign(tmp_path, _annotation(*first, second), _annotation(*first), data=TWO, config=RATINGS)
    assert [each.content for each in found.judgements] == [{"ratings": [{"clear": 4, "short": 1}, {"clear": 2}]}]
    assert report == {"unfinished": 1}


@pytest.mark.parametrize(
    ("annotation", "options", "message"),
    [
        (_annotation(LEFT, created_at="noon"), {}, "task 3, annotation 0: created_at='noon'"),
        (_annotation(LEFT, lead_time="4"), {}, "annotation 0: lead_time='4'"),
        (_annotation(LEFT), {"data": {**DATA, "b": None}}, r"data.a, data.b=\"\['A', None\]\""),
        (_annotation(LEFT), {"data": {**DATA, "image": "data:image/png;base64,?"}}, "data.image: value=.*base64"),
        (_annotation(LEFT), {"data": {**DATA, "image": "data:audio/wav;base64,AAAA"}}, "address of image"),
        (_annotation(LEFT), {"data": {**DATA, "question": 1}}, "data.question='1'"),
        (
            _annotation(_result("rating", "a1", "t1", rating=9), _result("rating", "a2", "t2", rating=2)),
            {"data": TWO, "config": RATINGS},
            "result=.*whole numbers from 1 to 5",
        ),
    ],
)
def test_values_that_are_not_understood_are_refused_with_task_field_and_value(
    tmp_path: Path, annotation: Any, options: Any, message: str
) -> None:
    with pytest.raises(RowError, match=message) as caught:
        _foreign(tmp_path, annotation, **options)
    assert str(tmp_path / "export.json") in str(caught.value)


def test_other_files_are_refused_with_their_cure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="made elsewhere; give config="):
        _foreign(tmp_path, _annotation(LEFT), config=None)
    for text in ('[{"id": 1, "image": "x", "cmp": "left"}]', '{"data": {}}', "id,cmp"):
        (tmp_path / "min.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="not as JSON-MIN"):
            label_studio.read(tmp_path / "min.json", keep=Files().keep)
    for config, message in (
        ("<View>", "config='<View>': no element found"),
        ('<View><Text name="t" value="$t"/></View>', "no Pairwise, Ranker or Rating"),
        ('<View><Pairwise name="p" toName="a,b"/></View>', "toName='a'"),
    ):
        with pytest.raises(ValueError, match=message.replace("$", ".")):
            Layout.of(config)


def test_a_task_whose_medium_was_changed_there_is_refused(tmp_path: Path) -> None:
    label_studio.write(tmp_path, [judged(with_media(), pair(0))], media=files().media)
    path = tmp_path / "pair-2-image-audio.json"
    (task,) = json.loads(path.read_text(encoding="utf-8"))
    task["data"]["media_0"] = f"data:image/png;base64,{base64.b64encode(png() + b'x').decode()}"
    path.write_text(json.dumps([task]), encoding="utf-8")
    with pytest.raises(RowError, match=r"data.item.media.0=.*its file is another"):
        label_studio.read(path, keep=Files().keep)


def test_a_configuration_of_ours_is_understood() -> None:
    shape = Shape(Task.RATING, 3, (MediaKind.VIDEO, MediaKind.AUDIO))
    layout = Layout.of(labeling_config(shape, ["clear", "short"]))
    assert layout.task is Task.RATING
    assert layout.keys == ("answer_0", "answer_1", "answer_2")
    assert layout.prompt == {"media_0": MediaKind.VIDEO, "media_1": MediaKind.AUDIO, "prompt": None}
