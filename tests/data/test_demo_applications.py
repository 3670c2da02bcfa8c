"""The built-in tasks of applications: answers are what is drawn and spoken, and no text tells them; their recipes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer

from pipeline.config import MediaLimits, Prepare, load_recipe
from pipeline.data import demo
from pipeline.data.demo import applications, cases, drawing, speech
from pipeline.data.demo.tasks import Draw, Sample, Split
from pipeline.data.media import decode
from pipeline.data.schema import media_places
from pipeline.data.table import PromptTable
from pipeline.records import Audio, Image, MediaKind, Prompt, Video
from pipeline.rewards.distance import distance_reward

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
RELATIONS = {"above": (0, 1), "left of": (1, 0)}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> PromptTable:
    directory = tmp_path_factory.mktemp("applications")
    prepare = Prepare(tasks=tuple(applications.TASKS), train_rows=40, rl_rows=1, validation_rows=1, test_rows=1)
    demo.build(directory, prepare=prepare, seed=0)
    return PromptTable(directory / "train.parquet")


@pytest.fixture(scope="module")
def sources(table: PromptTable) -> Mapping[str, Sequence[str]]:
    rows = pq.read_table(table.path, columns=["id", "sources"]).to_pylist()
    return {row["id"]: row["sources"] for row in rows}


@pytest.fixture(scope="module")
def prompts(table: PromptTable) -> dict[str, list[Prompt]]:
    """Train rows by task."""
    rows = [row for row in table.read([info.id for info in table.infos()]) if isinstance(row, Prompt)]
    assert len(rows) == len(table)
    return {task: [row for row in rows if row.task == task] for task in applications.TASKS}


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def pixels_of(prompt: Prompt, number: int = 0) -> NDArray[np.float64]:
    decoded = decode(prompt.media[number], MediaLimits())
    assert isinstance(decoded, Image)
    return decoded.pixels.astype(float)


def place_of(pixels: NDArray[np.float64], colour: str) -> tuple[float, float] | None:
    """Mean (x, y) of the pixels of a colour; None where it is not drawn."""
    distance = np.abs(pixels - np.array(drawing.COLOURS[colour])).max(axis=2)
    rows, columns = np.nonzero(distance < 25)
    return (float(columns.mean()), float(rows.mean())) if len(rows) >= 4 else None


def test_a_caption_names_both_shapes_and_begins_with_the_upper_or_left_one(prompts: dict[str, list[Prompt]]) -> None:
    relations: Counter[str] = Counter()
    for prompt in prompts["caption"]:
        words = str(prompt.answer).split()
        one, other, relation = words[1], words[-2], " ".join(words[3:-3])
        relations[relation] += 1
        if one == other:
            continue
        first, second = place_of(pixels_of(prompt), one), place_of(pixels_of(prompt), other)
        assert first is not None and second is not None
        along_x, along_y = RELATIONS[relation]
        assert (second[0] - first[0]) * along_x + (second[1] - first[1]) * along_y > 8, prompt.answer
    assert min(relations.values()) > 10 and set(relations) == set(RELATIONS)


def test_an_attribute_is_that_of_the_shape_asked_about(prompts: dict[str, list[Prompt]]) -> None:
    asked: Counter[str] = Counter()
    for prompt in prompts["attribute"]:
        question, answer = prompt.messages[0].content.strip("?.").split(), str(prompt.answer)
        drawn = {colour for colour in drawing.COLOURS if place_of(pixels_of(prompt), colour)}
        assert len(drawn) == 2
        if answer in drawing.COLOURS:
            asked["colour"] += 1
            kind, colour = question[-1], answer
        else:
            asked["shape"] += 1
            kind, colour = answer, question[-1]
        assert colour in drawn
        # A ring is hollow, a square fills its corners, and a cross has its middle but no corners.
        x, y = (round(at) for at in place_of(pixels_of(prompt), colour) or (0, 0))
        near = np.abs(pixels_of(prompt) - np.array(drawing.COLOURS[colour])).max(axis=2) < 60
        middle, corner = bool(near[y, x]), bool(near[y - 3, x - 3])
        assert {"ring": not middle, "square": middle and corner, "cross": middle and not corner}[kind], prompt.id
    assert min(asked["colour"], asked["shape"]) > 10


def test_a_transcript_has_a_word_for_each_spoken_digit(prompts: dict[str, list[Prompt]]) -> None:
    longest = {
        word: max(len(speech.word_bank()[voice, digit]) for voice in speech.voices()) / speech.SAMPLING_RATE
        for digit, word in enumerate(speech.DIGIT_WORDS)
    }
    lengths: Counter[int] = Counter()
    for prompt in prompts["transcript"]:
        words = str(prompt.answer).split()
        lengths[len(words)] += 1
        sound = decode(prompt.media[0], MediaLimits())
        assert isinstance(sound, Audio)
        seconds = len(sound.samples) / sound.sampling_rate
        assert 0.6 * sum(longest[word] for word in words) < seconds < sum(longest[word] for word in words) + 0.2
    assert set(lengths) == {3, 4} and min(lengths.values()) > 5


def test_the_voice_says_the_digits_of_the_transcript_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    spoken: list[tuple[int, ...]] = []
    speak = speech.speak

    def listened(voice: speech.Voice, digits: tuple[int, ...], rng: np.random.Generator) -> Audio:
        spoken.append(digits)
        return speak(voice, digits, rng)

    monkeypatch.setattr(speech, "speak", listened)
    draw = Draw(split=Split.TRAIN, rng=np.random.default_rng(0))
    answers = [applications.TASKS["transcript"](draw).answer for _ in range(20)]
    assert answers == [" ".join(speech.DIGIT_WORDS[digit] for digit in digits) for digits in spoken]


def test_events_are_told_in_the_order_in_which_they_are_shown(
    prompts: dict[str, list[Prompt]], sources: Mapping[str, Sequence[str]]
) -> None:
    num_events: Counter[int] = Counter()
    for prompt in prompts["events"]:
        video = decode(prompt.media[0], MediaLimits())
        assert isinstance(video, Video)
        events = str(prompt.answer).split(" then ")
        num_events[len(events)] += 1
        backgrounds = re.findall(r" on (\d+)", sources[prompt.id][0])
        for number, (event, background) in enumerate(zip(events, backgrounds, strict=True)):
            colour, _, _, direction = event.split()
            clip = video.frames[number * drawing.NUM_FRAMES :][: drawing.NUM_FRAMES].astype(float)
            # What differs from an empty clip, by more than compression does.
            empty = drawing.Shape("red", "square", x=12, y=12, radius=0)
            backdrop = drawing.draw_motion(drawing.Motion(empty, direction, int(background))).astype(float)
            differs = np.abs(clip - backdrop).sum(axis=3) > 80
            (x, y), (last_x, last_y) = (np.argwhere(frame).mean(axis=0)[::-1] for frame in (differs[0], differs[-1]))
            along_x, along_y = drawing.DIRECTIONS[direction]
            moved = (last_x - x) * along_x + (last_y - y) * along_y
            aside = abs((last_x - x) * along_y) + abs((last_y - y) * along_x)
            assert moved == pytest.approx(9, abs=2) and aside < 2, (prompt.id, event)
            seen = np.median(clip[differs], axis=0)
            distances = {name: np.abs(seen - np.array(rgb)).sum() for name, rgb in drawing.COLOURS.items()}
            assert min(distances, key=distances.__getitem__) == colour, (prompt.id, event)
    assert set(num_events) == {2, 3} and min(num_events.values()) > 10


def test_the_assistant_is_asked_about_what_an_earlier_turn_showed_or_said(prompts: dict[str, list[Prompt]]) -> None:
    asked: Counter[str] = Counter()
    orders: set[tuple[MediaKind, ...]] = set()
    for prompt in prompts["assistant"]:
        assert [message.role for message in prompt.messages] == ["user", "assistant"] * 3 + ["user"]
        question, answer = prompt.messages[-1].content, str(prompt.answer)
        assert not media_places(prompt.messages[-1:]), "the last turn shows nothing"
        places = media_places(prompt.messages)
        assert tuple(places) == tuple(medium.kind for medium in prompt.media)
        orders.add(tuple(places))
        # No turn tells the answer: it must be seen or heard.
        said = " ".join(message.content for message in prompt.messages)
        assert not {*drawing.COLOURS, *speech.DIGIT_WORDS} & set(words_of(said))
        if "digit" in question:
            asked["digit"] += 1
            assert answer in speech.DIGIT_WORDS
            continue
        asked["colour"] += 1
        kind = next(word for word in words_of(question) if word in drawing.SHAPES)
        turn = next(place for place, message in enumerate(prompt.messages) if message.content == f"a {kind}")
        number = len(media_places(prompt.messages[:turn])) - 1
        shown = [colour for colour in drawing.COLOURS if place_of(pixels_of(prompt, number), colour)]
        assert shown == [answer], prompt.id
    assert asked["digit"] > 5 and asked["colour"] > 15
    assert len(orders) == 3


def test_the_digit_that_the_assistant_heard_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Draw(split=Split.TRAIN, rng=np.random.default_rng(0))
    spoken: list[tuple[int, ...]] = []
    speak = speech.speak
    monkeypatch.setattr(
        speech, "speak", lambda voice, digits, rng: (spoken.append(digits), speak(voice, digits, rng))[1]
    )
    samples: list[Sample] = [applications.TASKS["assistant"](draw) for _ in range(30)]
    heard = [
        (sample.answer, speech.DIGIT_WORDS[digits[0]])
        for sample, digits in zip(samples, spoken, strict=True)
        if "digit" in sample.question
    ]
    assert len(heard) > 5 and all(answer == word for answer, word in heard)


def test_a_diagnosis_is_that_of_the_case_whose_findings_are_told(
    prompts: dict[str, list[Prompt]], sources: Mapping[str, Sequence[str]]
) -> None:
    table = cast(Any, load_breast_cancer())
    names = list(table.feature_names)
    for prompt in prompts["diagnosis"]:
        (source,) = sources[prompt.id]
        number = int(source.removeprefix("case:"))
        assert prompt.answer == table.target_names[table.target[number]]
        told = dict(line.split(": ") for line in prompt.messages[0].content.splitlines() if ": " in line)
        for name, level in told.items():
            column = table.data[:, names.index(f"worst {name}")]
            smaller = float((column < column[number]).mean())  # a share: the table is cut in thirds
            bounds = {"low": (0, 0.34), "normal": (0.33, 0.67), "high": (0.66, 1)}[level]
            assert bounds[0] <= smaller <= bounds[1], (prompt.id, name)
        assert list(told) == ["texture", "smoothness", "symmetry", "compactness"]


def test_a_drawn_nucleus_has_the_size_and_the_dents_of_its_case() -> None:
    rng = np.random.default_rng(0)
    for case in cases.cases()[::7]:
        pixels = cases.draw_nucleus(case, rng)
        dark = float((pixels[:, :, 1] < 115).sum())
        angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
        outline = case.radius * (1 - case.dents * 0.45 * (1 + np.cos(5 * angles)) / 2)
        assert dark == pytest.approx(float(np.pi * np.mean(outline**2)), rel=0.15)
        assert pixels.shape == (drawing.SIDE, drawing.SIDE, 3)
    by_diagnosis = {
        name: np.mean([case.radius for case in cases.cases() if case.diagnosis == name]) for name in cases.DIAGNOSES
    }
    assert by_diagnosis["malignant"] > by_diagnosis["benign"] + 1, "malignant nuclei are larger"


def test_no_patient_is_in_two_splits_and_prompts_of_the_loop_have_patients_of_their_own() -> None:
    of = {split: set(applications.cases_of(split)) for split in Split}
    assert sum(len(numbers) for numbers in of.values()) == len(cases.cases()) == len(set().union(*of.values()))
    assert min(len(numbers) for numbers in of.values()) > 50
    assert abs(len(of[Split.TRAIN]) - len(of[Split.RL])) < 40


@pytest.mark.parametrize("name", ["assistant", "captioning", "speech_recognition", "video_summary", "diagnosis", "vqa"])
def test_each_application_has_a_recipe_of_built_in_tasks_on_fresh_prompts(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert recipe.run.name == name
    assert set(recipe.prepare.tasks) <= set(demo.TASKS)
    assert set(recipe.prepare.tasks) & set(applications.TASKS)
    assert recipe.rlhf.split == "rl" and recipe.prepare.rl_rows > 0
    # Whole answers fit, with the longest manner and the end token: three events have 14 words.
    assert recipe.rlhf.sampling.max_new_tokens >= (14 if "events" in recipe.prepare.tasks else 8) + 3


def test_visual_questions_grade_how_far_a_count_is_off_and_no_other_answer() -> None:
    graded = load_recipe(RECIPES / "vqa.yaml").rlhf.rewards["distance"]
    assert (graded.weight, [task for task in demo.TASKS if graded.applies(task)]) == (0.5, ["count"])
    # One off earns .4 beside nothing, and less than the 1.5 of the right count.
    assert distance_reward("3 maybe", "4") * graded.weight == 0.4
