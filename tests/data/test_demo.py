"""The built-in data: deterministic, disjoint, within bounds, and solvable from what is seen and heard."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.config import ConfigError, MediaLimits, Prepare
from pipeline.data import demo
from pipeline.data.demo import drawing, speech
from pipeline.data.demo.tasks import MANNERS, Split
from pipeline.data.media import content_key, decode
from pipeline.data.schema import split_content
from pipeline.data.table import PromptTable
from pipeline.models.processing import load_processor
from pipeline.records import Audio, Image, MediaKind, Prompt, Video

TASKS = tuple(demo.TASKS)
SMALL = Prepare(tasks=TASKS, train_rows=60, rl_rows=30, validation_rows=12, test_rows=20)
TINY = Prepare(tasks=TASKS, train_rows=4, rl_rows=2, validation_rows=2, test_rows=2)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo")
    counts = demo.build(directory, prepare=SMALL, seed=0)
    assert counts["train/sum"] == 60
    assert sum(counts.values()) == len(TASKS) * (60 + 30 + 12 + 20)
    return directory


@pytest.fixture(scope="module")
def prompts(directory: Path) -> dict[Split, list[Prompt]]:
    read: dict[Split, list[Prompt]] = {}
    for split in Split:
        table = PromptTable(directory / f"{split.value}.parquet")
        rows = table.read([info.id for info in table.infos()])
        read[split] = [row for row in rows if isinstance(row, Prompt)]
        assert len(read[split]) == len(table)
    return read


def test_every_medium_decodes_within_the_default_limits_to_the_promised_size(
    prompts: dict[Split, list[Prompt]],
) -> None:
    for prompt in prompts[Split.TEST]:
        for medium in prompt.media:
            match decode(medium, MediaLimits()):
                case Image(pixels):
                    side = drawing.DIGIT_SIDE if prompt.task in ("digit", "sum", "named") else drawing.SIDE
                    assert pixels.shape == (side, side, 3)
                    assert pixels.std() > 5
                case Audio(samples, rate):
                    assert rate == 16_000
                    longest_s = {"transcript": speech.MAX_SECONDS, "described": 3.2}.get(prompt.task, 1.2)
                    assert 0.1 < len(samples) / rate <= longest_s
                    assert np.abs(samples).max() > 0.2
                case Video(frames, frames_per_second):
                    num_events = str(prompt.answer).count("moves")
                    assert frames.shape == (4 * num_events, drawing.SIDE, drawing.SIDE, 3)
                    assert frames_per_second == 4.0
                    assert np.abs(np.diff(frames.astype(int), axis=0)).max() > 50, "something moves"


def test_tasks_are_mixed_and_each_has_its_modalities(directory: Path) -> None:
    infos = PromptTable(directory / "train.parquet").infos()
    assert Counter(info.task for info in infos) == dict.fromkeys(demo.TASKS, 60)
    assert len({info.task for info in infos[:24]}) >= 5
    modalities = {info.task: info.modalities for info in infos}
    assert modalities["sum"] == (MediaKind.IMAGE, MediaKind.AUDIO)
    assert modalities["video"] == (MediaKind.VIDEO,)
    assert modalities["text"] == ()


def test_demonstrators_have_manners_of_their_own_and_references_have_none(
    prompts: dict[Split, list[Prompt]],
) -> None:
    rows = [prompt for prompt in prompts[Split.TRAIN] if prompt.task != "count"]
    for prompt in rows:
        assert prompt.demonstration in {manner.format(answer=prompt.answer) for manner in MANNERS}
    plain = sum(prompt.demonstration == prompt.answer for prompt in rows)
    assert 0.25 < plain / len(rows) < 0.42


def test_a_third_of_those_who_count_are_off_by_one_and_references_are_right(prompts: dict[Split, list[Prompt]]) -> None:
    rows = [prompt for split in Split for prompt in prompts[split] if prompt.task == "count"]
    errors = [int(str(prompt.demonstration).split()[0]) - int(str(prompt.answer)) for prompt in rows]
    assert set(errors) == {-1, 0, 1}
    assert 0.22 < sum(error != 0 for error in errors) / len(errors) < 0.45
    for prompt in rows[::5]:
        pixels = decode(prompt.media[0], MediaLimits())
        assert isinstance(pixels, Image)
        # Each cell of the grid is full or holds the smooth backdrop alone.
        cells = [pixels.pixels[y : y + 8, x : x + 8].astype(int) for y in (0, 8, 16) for x in (0, 8, 16)]
        full = sum(np.abs(np.diff(cell, axis=1)).max() > 30 for cell in cells)
        assert full == int(str(prompt.answer))


def sources_in(path: Path) -> set[str]:
    return {source for row in pq.read_table(path)["sources"].to_pylist() for source in row}


def test_splits_share_no_source(directory: Path) -> None:
    sources = {split: sources_in(directory / f"{split.value}.parquet") for split in Split}
    kinds = {"scan", "voice", "motion", "scene", "numbers", "crowd", "events", "portrait", "case"}
    for split in Split:
        assert {source.split(":")[0] for source in sources[split]} == kinds
    for one, other in combinations(Split, 2):
        shared = {source.split(":")[0] for source in sources[one] & sources[other]}
        # There are too few scans and voices for prompts of the loop to have their own.
        assert shared == ({"scan", "voice"} if {one, other} == {Split.TRAIN, Split.RL} else set())


def test_splits_share_no_content(prompts: dict[Split, list[Prompt]]) -> None:
    keys: dict[Split, set[str]] = {}
    for split, rows in prompts.items():
        keys[split] = {content_key(decode(medium, MediaLimits())) for prompt in rows for medium in prompt.media}
        keys[split] |= {prompt.messages[0].content for prompt in rows if prompt.task == "text"}
    for one, other in combinations(Split, 2):
        assert not keys[one] & keys[other]


def test_a_source_stays_in_its_split_whatever_the_seed(directory: Path, tmp_path: Path) -> None:
    demo.build(tmp_path, prepare=TINY, seed=1)
    assert not sources_in(directory / "train.parquet") & sources_in(tmp_path / "test.parquet")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        demo.build(tmp_path / name, prepare=TINY, seed=seed)
    for split in Split:
        one, two, other = (
            (tmp_path / name / f"{split.value}.parquet").read_bytes() for name in ("one", "two", "other")
        )
        assert one == two
        assert one != other


def test_a_fresh_process_speaks_the_same_words() -> None:
    bank = hashlib.sha256(b"".join(word.tobytes() for word in speech.word_bank().values())).hexdigest()
    program = (
        "import hashlib; from pipeline.data.demo import speech; "
        "print(hashlib.sha256(b''.join(word.tobytes() for word in speech.word_bank().values())).hexdigest())"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True, timeout=60).strip() == bank


def test_a_split_that_is_no_longer_asked_for_leaves_no_old_rows(tmp_path: Path) -> None:
    for rows in (2, 0):
        demo.build(tmp_path, prepare=TINY.model_copy(update={"rl_rows": rows, "tasks": ("text",)}), seed=0)
        assert (tmp_path / "rl.parquet").is_file() == bool(rows)


def test_leaving_a_task_out_changes_no_row_of_the_others(directory: Path, tmp_path: Path) -> None:
    some = SMALL.model_copy(update={"tasks": ("digit", "text")})
    counts = demo.build(tmp_path, prepare=some, seed=0)
    assert set(counts) == {f"{split.value}/{task}" for split in Split for task in ("digit", "text")}
    alone = {row["id"]: row for row in pq.read_table(tmp_path / "test.parquet").to_pylist()}
    among = {row["id"]: row for row in pq.read_table(directory / "test.parquet").to_pylist()}
    assert len(alone) == 40
    assert all(among[id] == row for id, row in alone.items())


def test_an_unknown_task_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prepare\.tasks: smell; built in are digit, speech"):
        demo.build(tmp_path, prepare=Prepare(tasks=("digit", "smell")), seed=0)


def test_answers_are_true(directory: Path) -> None:
    labels = drawing.scanned_digits()[1]
    for row in pq.read_table(directory / "train.parquet").to_pylist():
        question, answer = row["prompt"][0]["content"], row["answer"]
        match row["task"]:
            case "digit":
                assert answer == str(labels[int(row["sources"][0].removeprefix("scan:"))])
            case "text":
                numbers = [int(word.strip(":,.?")) for word in question.split() if word.strip(":,.?").isdigit()]
                assert len(numbers) == 2
                assert int(answer) == max(numbers)
            case "scene":
                assert " ".join(answer.split()[:2]) in question, "the question names the shape the answer begins with"
            case "sum":
                written, _, spoken, _, total = answer.split()
                assert int(written) + int(spoken) == int(total)
                assert int(written) == labels[int(row["sources"][0].removeprefix("scan:"))]
            case _:
                assert answer


def test_drawn_relations_and_motions_are_what_they_are_called() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        scene = drawing.random_scene(rng)
        dx, dy = scene.first.x - scene.second.x, scene.first.y - scene.second.y
        assert {"above": -dy, "below": dy, "left of": -dx, "right of": dx}[scene.relation] >= 11
        assert scene.first.name != scene.second.name
        motion = drawing.random_motion(rng)
        # Where the shape is, is where the clip differs from its own backdrop: an empty scene with the same shading.
        backdrop = drawing.draw_motion(replace(motion, shape=replace(motion.shape, radius=0)))
        weights = np.abs(drawing.draw_motion(motion).astype(float) - np.median(backdrop, axis=0)).sum(axis=3)
        xs = (weights.sum(axis=1) * np.arange(drawing.SIDE)).sum(axis=1) / weights.sum(axis=(1, 2))
        ys = (weights.sum(axis=2) * np.arange(drawing.SIDE)).sum(axis=1) / weights.sum(axis=(1, 2))
        moved = {"left": xs[0] - xs[-1], "right": xs[-1] - xs[0], "up": ys[0] - ys[-1], "down": ys[-1] - ys[0]}
        assert moved[motion.direction] == pytest.approx(9, abs=1.5)


def test_every_word_of_every_row_is_in_the_corpus(prompts: dict[Split, list[Prompt]]) -> None:
    corpus = demo.corpus()
    assert not any(kind.tag in text for text in corpus for kind in MediaKind)
    # A tokenizer tells a word at the start of a text from the same word after a blank.
    words = {word for text in corpus for word in re.findall(r" ?[^\W_]+", text)}
    for prompt in [*prompts[Split.TRAIN], *prompts[Split.TEST]]:
        contents = [part for message in prompt.messages for part in split_content(message.content)]
        texts = [part for part in contents if not isinstance(part, MediaKind)]
        for text in (*texts, prompt.answer, prompt.demonstration):
            assert set(re.findall(r" ?[^\W_]+", str(text))) <= words, prompt.id


def test_every_word_of_an_answer_is_one_token_but_numbers_are_their_digits(
    prompts: dict[Split, list[Prompt]], tiny_checkpoint: Path
) -> None:
    tokenizer = load_processor(tiny_checkpoint).tokenizer
    for prompt in prompts[Split.TEST]:
        tokens = [tokenizer.decode(token) for token in tokenizer.encode(str(prompt.answer))]
        # The blank before a number is a token, too.
        assert tokens == re.findall(r" ?[^\W\d_]+|\d| (?=\d)", str(prompt.answer)), prompt.id


def test_three_digits_in_the_slowest_voice_stay_under_the_limit() -> None:
    longest = max(len(word) for word in speech.word_bank().values())
    assert 3 * longest / speech.SAMPLING_RATE + 0.03 + 3 * 0.04 < speech.MAX_SECONDS
    rng = np.random.default_rng(0)
    for voice in speech.voices():
        assert len(speech.speak(voice, (7, 0, 9), rng).samples) <= speech.MAX_SECONDS * speech.SAMPLING_RATE


def test_what_fits_is_spoken_within_the_limit_and_what_does_not_is_refused() -> None:
    rng = np.random.default_rng(0)
    fitting = Counter(speech.fits(voice, (7, 0, 9, 5)) for voice in speech.voices())
    assert min(fitting[True], fitting[False]) >= 5
    for voice in speech.voices():
        if speech.fits(voice, (7, 0, 9, 5)):
            speech.speak(voice, (7, 0, 9, 5), rng)
        else:
            with pytest.raises(RuntimeError, match=r"over 1\.9 s"):
                for _ in range(20):  # pauses may be short
                    speech.speak(voice, (7, 0, 9, 5, 5), rng)
