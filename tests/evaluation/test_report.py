"""The report: all is in the one file, nothing in it acts but its own script, and the browser shows the samples."""

from __future__ import annotations

import io
import json
import math
import random
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import pytest
import soundfile

from pipeline.evaluation.intervals import Estimate
from pipeline.evaluation.report import (
    DASH,
    BrowserRow,
    browser_rows,
    duration,
    interval,
    loop_time,
    number,
    overlap,
    plainly,
    signed,
    skill_verdict,
    sniff,
    verdict,
    write_report,
)
from pipeline.evaluation.results import Mode, ModelName, SampleResult
from pipeline.evaluation.summary import Evaluation, Slice, summarise
from pipeline.records import MediaKind, Medium, Message, Prompt

TASKS: dict[str, tuple[str, ...]] = {
    "digit": ("image",),
    "speech": ("audio",),
    "sum": ("image", "audio"),
    "video": ("video",),
    "scene": ("image",),
    "text": (),
}
NOTE = "Preferences come from a scripted rater that errs in 5 % of the pairs."
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@dataclass(frozen=True)
class Demo:
    prompts: list[Prompt]
    samples: list[SampleResult]
    curves: dict[str, list[dict[str, Any]]]


def png(size: int = 28) -> bytes:
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels[4:24, 12:16] = 255
    pixels[4:8, 8:16] = (240, 160, 60)
    return saved(PIL.Image.fromarray(pixels), "PNG")


def saved(image: PIL.Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(np.arange(8000) * 0.17), 16000, format="WAV")
    return file.getvalue()


def mp4() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for shift in range(6):
            frame = np.full((32, 32, 3), 30, np.uint8)
            frame[10:18, 3 * shift : 3 * shift + 8] = (230, 80, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.fixture(scope="session")
def media() -> dict[str, Medium]:
    return {
        "image": Medium(MediaKind.IMAGE, png()),
        "audio": Medium(MediaKind.AUDIO, wav()),
        "video": Medium(MediaKind.VIDEO, mp4()),
    }


@pytest.fixture(scope="session")
def demo(media: dict[str, Medium]) -> Demo:
    """48 prompts; the very first completion of the browser is hostile."""
    dice = random.Random(0)
    prompts: list[Prompt] = []
    samples: list[SampleResult] = []
    for index in range(8):
        for task, kinds in TASKS.items():
            tags = " ".join(f"<{kind}>" for kind in kinds)
            messages = (Message("user", f"{tags} What is it? Answer in a word.".strip()),)
            prompt = Prompt(f"{task}-{index}", task, messages, tuple(media[kind] for kind in kinds), str(index))
            prompts.append(prompt)
            samples += completions(prompt, kinds, dice)
    first = samples[0]
    samples[0] = replace(first, text=HOSTILE, token_texts=(HOSTILE,), token_kl=(math.nan,))
    return Demo(prompts, samples, made_up_curves(dice))


def completions(prompt: Prompt, kinds: tuple[str, ...], dice: random.Random) -> list[SampleResult]:
    rows: list[SampleResult] = []
    blanks = [(kind,) for kind in kinds] + ([kinds] if len(kinds) > 1 else [])
    said = f"{prompt.answer} maybe" if dice.random() < 0.67 or prompt.task != "digit" else "12 for sure"
    for model, skill in ((ModelName.SFT, 0.45), (ModelName.RLHF, 0.8)):
        shown = [(Mode.GREEDY, (), None), (Mode.SAMPLED, (), None), (Mode.SAMPLED, (), None)]
        blanked_ways = [(Mode.GREEDY, blank, None) for blank in blanks if model == ModelName.RLHF or blank == kinds]
        swapped_ways = [(Mode.GREEDY, (), f"{prompt.task}-9")] if kinds else []
        for mode, blanked, swapped in shown + blanked_ways + swapped_ways:
            right = dice.random() < (0.15 if blanked or swapped else skill)
            manner = " maybe" if model == ModelName.SFT and mode == Mode.SAMPLED and dice.random() < 0.2 else ""
            text = prompt.answer or "" if right else dice.choice(["seven", "a red square moves left", "12"])
            tokens = (*text, "<|im_end|>")
            kl = tuple(dice.gauss(0.3, 0.9) if model == ModelName.RLHF else 0.0 for _ in tokens)
            rewards = {"exact_match": float(right and not manner), "contains": float(right)}
            if "audio" in kinds:
                rewards["wer"] = 0.0 if right else 1.0
            if prompt.task == "scene":
                rewards |= {"bleu": 0.6 if right else 0.2, "rouge_l": 0.7 if right else 0.3}
            rows.append(
                SampleResult(
                    prompt.id, prompt.task, kinds, model, mode, blanked, prompt.answer,
                    text + manner, dice.choice(["stop", "stop", "length"]), len(tokens), tokens, kl, rewards,
                    dice.gauss(0.5 if right else -0.5, 0.3), swapped, said,
                )
            )  # fmt: skip
    return rows


def made_up_curves(dice: random.Random) -> dict[str, list[dict[str, Any]]]:
    def noise() -> float:
        return dice.gauss(0, 0.03)

    sft = [{"step": n, "time": 0.0, "loss": 3 * math.exp(-n / 60) + 0.4 + noise()} for n in range(300)]
    pairs = [
        {"step": n, "time": 0.0, "loss": 0.69 * math.exp(-n / 40) + noise(), "accuracy": 0.93 - 0.4 * math.exp(-n / 15)}
        for n in range(60)
    ]
    rlhf = [
        {
            "step": n, "time": 0.0, "reward/mean": 0.2 + n / 60 + noise(), "reward/exact_match": 0.3 + n / 90 + noise(),
            "reward/learned": n / 30 + noise() * 4, "kl/reference": n / 300, "entropy": 1.2 - n / 60,
            "clip_fraction": 0.05 + noise() / 3, "loss/policy": noise(), "loss/value": 0.5 - n / 100,
            "length/mean": 3 + noise() * 8, "time/rollout_s": 0.8 + noise(), "time/policy_s": 1.2 + noise(),
            "time/critic_s": 0.9 + noise(), "tokens_per_s/policy": 900 + noise() * 1000, "staleness": 0.0,
            "counts/truncated": float(n % 3 == 0), "grad_norm/policy": None if n == 20 else 0.9 + noise(),
        }
        for n in range(40)
    ]  # fmt: skip
    for step in range(0, 40, 10):
        rlhf[step] |= {"validation/exact_match": 0.3 + step / 90 + noise(), "validation/contains": 0.6 + noise()}
    return {"rlhf": rlhf, "reward_model": pairs, "sft": sft}


@pytest.fixture(scope="module")
def evaluation(demo: Demo) -> Evaluation:
    return summarise(demo.samples)


def report(directory: Path, demo: Demo, evaluation: Evaluation, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "title": "demo & <friends>",
        "evaluation": evaluation,
        "samples": browser_rows(demo.prompts, demo.samples, limit=12),
        "curves": demo.curves,
        "config_text": "run:\n  name: <demo>\n",
        "counts": {"quarantine/too_large": 3, "reward/failed": 0},
        "stage_s": {"sft": 61.4, "rlhf": 232.8},
        "rows": {"sft": 2400, "rlhf": 1500, "both": 30},
        "notes": [NOTE],
        **changes,
    }
    path = write_report(directory, **arguments)
    assert path == directory / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, demo: Demo, evaluation: Evaluation) -> str:
    return report(tmp_path_factory.mktemp("report"), demo, evaluation)


def payload(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="browser-data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_report_refers_to_nothing_outside_itself(page: str) -> None:
    assert not re.search(r"https?:|//[a-z]|<link|@import|url\(", re.sub(r"//\s.*|base64,[\w+/=]*", "", page))
    assert "default-src 'none'" in page


def test_a_hostile_completion_is_inert_and_comes_through_whole(page: str) -> None:
    assert HOSTILE not in page and "<script>document.title" not in page and "<img src=x" not in page
    assert page.count("<script") == 2
    first = payload(page)["rows"][0]["completions"][0]
    assert first["text"] == HOSTILE
    assert first["kl"] == [None]


def test_title_recipe_and_notes_are_escaped_and_shown(page: str) -> None:
    assert "<h1>demo &amp; &lt;friends&gt;</h1>" in page
    assert "name: &lt;demo&gt;" in page
    assert NOTE in page


def test_headline_and_tables_hold_the_numbers_of_the_evaluation(page: str, evaluation: Evaluation) -> None:
    gain = evaluation.overall.gain
    assert gain is not None
    assert f"<strong>{signed(gain)}</strong>" in page
    for part in [*evaluation.tasks.values(), *evaluation.modalities.values()]:
        assert signed(part.gain) in page
    for heading in ("By task", "By kind of media", "Does it look and listen?", "Blind gap", "WER", "BLEU", "ROUGE-L"):
        assert heading in page
    for heading in ("Any of 2", "Skill and manner", "Learned reward", "of another row", "all media blanked"):
        assert heading in page
    assert 'aria-label="On validation while training (mean over prompts) over the steps of rlhf"' in page
    assert 'aria-label="Reward parts (reward) over the steps of rlhf"' in page


def timed(step_s: float, generate_s: float, update_s: float, policy: float, driver: float) -> dict[str, float]:
    phases = {"phase/generate_s": generate_s, "phase/update_s": update_s}
    return {"time/step_s": step_s, **phases, "busy/policy": policy, "busy/driver": driver}


TIMED = [timed(10.0, 2.0, 6.0, 0.5, 0.1), timed(30.0, 20.0, 8.0, 0.3, 0.0)]
LOSS = {"stage": "rlhf", "role": "critic", "cause": "rank 1 died: <gone>", "seconds": 12.5, "steps": 2}
UNSAVED = {"stage": "rlhf", "role": "checkpoint", "cause": "no room", "seconds": None, "steps": 0}


def test_the_time_of_a_step_is_told_by_phase_and_by_role_and_the_longest_phase_named(
    tmp_path: Path, demo: Demo, evaluation: Evaluation
) -> None:
    loop = loop_time(TIMED)
    assert loop is not None
    # 22 and 14 of 40 seconds; 5 + 9 of them, and 1.
    assert (loop.phases, loop.binds) == ({"generate": 0.55, "update": 0.35}, "generate")
    assert loop.busy == {"policy": 0.35, "driver": 0.025}
    page = report(
        tmp_path, demo, evaluation, curves={"rlhf": [{"step": step, **row} for step, row in enumerate(TIMED)]}
    )
    assert "The longest phase is <b>generate</b>" in page
    assert re.search(r'<th scope="row">generate</th><td>55.0 %</td>', page)
    assert re.search(r'<th scope="row">driver</th><td>2.5 %</td>', page)


def test_a_run_that_does_not_tell_its_phases_has_no_table_of_them(page: str, demo: Demo) -> None:
    assert loop_time(demo.curves["rlhf"]) is None
    assert "In a step of the loop" not in page


def test_what_was_lost_and_brought_back_is_listed_with_its_cause(
    page: str, tmp_path: Path, demo: Demo, evaluation: Evaluation
) -> None:
    assert "Lost, and brought back" not in page
    rows = report(tmp_path, demo, evaluation, losses=[LOSS, UNSAVED]).partition("Lost, and brought back")[2]
    assert "<td>critic</td><td>rank 1 died: &lt;gone&gt;</td><td>12.5 s</td><td>2</td>" in rows
    assert f"<td>checkpoint</td><td>no room</td><td>{DASH}</td><td>0</td>" in rows


def cells(page: str, section: str, row: str) -> list[str]:
    """The text of a table's row: the first of this name after the section's heading."""
    found = re.search(rf'<th scope="row">{row}.*?</tr>', page[page.index(section) :], re.DOTALL)
    assert found
    return [" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in re.split(r"</t[dh]>", found[0])[:-1]]


def test_the_table_of_skill_and_manner_divides_each_gain(page: str, evaluation: Evaluation) -> None:
    for part in (evaluation.tasks["digit"], evaluation.overall):
        before, after = (part.models[model] for model in ModelName)
        shares = [(model.contains, plainly(model)) for model in (before, after)]
        assert cells(page, "<h2>Skill and manner</h2>", part.name) == [
            part.name,
            signed(part.gain),
            *(f"{signed(gain)} {interval(gain)}" for gain in (part.skill_gain, part.manner_gain)),
            f"{number(shares[0][0])} → {number(shares[1][0])}",
            f"{number(shares[0][1])} → {number(shares[1][1])}",
            f"{number(before.learned_reward, 2)} → {number(after.learned_reward, 2)}",
        ]
    assert "It is right more often:" in page and "by skill and" in page


def test_only_tasks_whose_demonstrations_err_stand_beside_them(
    page: str, tmp_path: Path, demo: Demo, evaluation: Evaluation
) -> None:
    digit = evaluation.tasks["digit"]
    assert digit.demonstrator is not None and digit.demonstrator.contains < 1
    section = page[page.index("Better than its demonstrations?") : page.index('<section id="blind">')]
    assert re.findall(r'<th scope="row">(\w+)</th>', section) == ["digit"]
    shares = [number(digit.models[model].contains) for model in ModelName]
    assert f"<td>contains</td><td>{number(digit.demonstrator.contains)}</td>" in section
    assert re.search(rf"<td>contains</td>.*?{shares[0]}.*?{shares[1]}", section)
    right = [replace(sample, demonstration=sample.answer) for sample in demo.samples]
    assert "Better than its demonstrations?" not in report(tmp_path, demo, summarise(right))


def test_both_models_have_their_gaps_with_media_swapped_and_blanked(page: str, evaluation: Evaluation) -> None:
    digit = evaluation.tasks["digit"]
    sft, rlhf = (digit.models[model] for model in ModelName)
    found = cells(page, "Does it look and listen?</h2>", "digit")
    assert found[2].startswith(f"{number(sft.swapped_gap)} → {number(rlhf.swapped_gap)} [")
    assert found[-1].startswith(f"{number(sft.blind_gaps['all'])} → {number(rlhf.blind_gaps['all'])} [")
    (shown,) = [row for row in payload(page)["rows"] if row["id"] == "speech-0"]
    assert [item["swapped"] for item in shown["completions"] if item["swapped"]] == ["speech-9"] * 2


def test_the_overlap_of_the_prompts_of_rl_and_sft_is_stated(
    page: str, tmp_path: Path, demo: Demo, evaluation: Evaluation
) -> None:
    said = "RL drew 1,500 prompts; SFT had learned from 30 of them (2 %), and from 2,400 in all."
    assert said in page
    assert "SFT had learned" not in report(tmp_path, demo, evaluation, rows=None)
    assert "from 0 of them, and" in overlap({"sft": 5, "rlhf": 0, "both": 0})


def test_counts_are_shown_by_reason_and_an_empty_count_says_so(
    page: str, tmp_path: Path, demo: Demo, evaluation: Evaluation
) -> None:
    assert "quarantine/too_large</th><td>3" in page
    assert "Watched and zero: reward/failed." in page
    assert "Nothing was dropped" not in page
    assert "Nothing was dropped" in report(tmp_path, demo, evaluation, counts={"reward/failed": 0})


def test_the_seed_table_has_the_mean_of_its_numbers(tmp_path: Path, demo: Demo, evaluation: Evaluation) -> None:
    rows = [{"seed": seed, "gain": 0.1 * seed, "note": "x"} for seed in (1, 2, 3)]
    text = report(tmp_path, demo, evaluation, seeds_table=rows)
    assert re.search(r"mean of 3</th><td>0\.200</td><td>–</td>", text)  # noqa: RUF001


def test_an_evaluation_of_one_model_or_of_nothing_still_makes_a_report(tmp_path: Path, demo: Demo) -> None:
    sft = [sample for sample in demo.samples if sample.model == "sft"]
    assert "nothing to compare" in report(tmp_path, demo, summarise(sft))
    empty = report(tmp_path, demo, summarise([]), samples=[], curves={}, stage_s={}, notes=())
    assert "No metrics were logged." in empty
    assert payload(empty)["rows"] == []


def test_an_evaluation_without_a_single_answer_still_makes_a_report(tmp_path: Path, demo: Demo) -> None:
    prompts = [replace(prompt, answer=None) for prompt in demo.prompts]
    samples = [replace(sample, answer=None, rewards={}) for sample in demo.samples if not sample.blanked]
    rows = browser_rows(prompts, samples, limit=3)
    text = report(tmp_path, demo, summarise(samples), samples=rows)
    assert "No prompt with a reference answer" in text and "nan" not in text.split("<script")[0].lower()
    assert payload(text)["rows"][0]["answer"] is None
    assert payload(text)["rows"][0]["change"] == 0


def test_browser_rows_take_the_first_of_every_task_in_turn(demo: Demo) -> None:
    rows = browser_rows(demo.prompts, demo.samples, limit=8)
    assert [row.prompt.id for row in rows] == [*(f"{task}-0" for task in TASKS), "digit-1", "speech-1"]
    assert {sample.prompt_id for sample in rows[0].completions} == {"digit-0"}
    assert browser_rows(demo.prompts, [], limit=8) == []


def test_a_medium_that_cannot_be_played_is_explained(
    tmp_path: Path, demo: Demo, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.evaluation.report.MAX_MEDIUM_BYTES", 2**20)
    media = (
        Medium(MediaKind.IMAGE, b"<svg onload=alert(1)>"),
        Medium(MediaKind.AUDIO, png()),
        Medium(MediaKind.IMAGE, png() + bytes(2**20)),
        Medium(MediaKind.IMAGE, png()),
    )
    row = BrowserRow(replace(demo.prompts[0], media=media), ())
    shown = payload(report(tmp_path, demo, evaluation, samples=[row]))["rows"][0]["media"]
    assert [("note" in medium, "src" in medium) for medium in shown] == [(True, False)] * 3 + [(False, True)]
    assert shown[2]["note"] == "left out for its size, 1.0 MiB"


def test_media_types_are_known_by_their_bytes(demo: Demo, media: dict[str, Medium]) -> None:
    assert {kind: sniff(medium.data) for kind, medium in media.items()} == {
        "image": "image/png",
        "audio": "audio/wav",
        "video": "video/mp4",
    }
    picture = PIL.Image.new("RGB", (4, 4))
    assert [sniff(saved(picture, form)) for form in ("JPEG", "GIF", "WEBP")] == [
        "image/jpeg",
        "image/gif",
        "image/webp",
    ]
    assert sniff(b"\x1aE\xdf\xa3rest") == "video/webm"
    assert sniff(b"") is None and sniff(b"<svg>") is None


def test_the_verdict_claims_only_what_the_interval_allows() -> None:
    def overall(low: float, high: float) -> Slice:
        return Slice("overall", 9, (), {}, Estimate((low + high) / 2, low, high, 9), None)

    assert verdict(overall(0.1, 0.3)).startswith("After RLHF the model earns 20.0 points more")
    assert "less" in verdict(overall(-0.3, -0.1))
    assert "within chance" in verdict(overall(-0.1, 0.3))


def test_the_verdict_on_skill_claims_only_what_the_interval_of_contains_allows(evaluation: Evaluation) -> None:
    def said(low: float, high: float) -> str:
        gain = Estimate((low + high) / 2, low, high, 9)
        skill, manner = (Estimate(value, -1.0, 1.0, 9) for value in (0.125, -0.021))
        return skill_verdict(replace(evaluation.overall, contains_gain=gain, skill_gain=skill, manner_gain=manner))

    assert said(0.1, 0.3).startswith("It is right more often: ")
    assert said(-0.3, -0.1).startswith("It is right less often: ")
    assert said(-0.1, 0.3).startswith("It is right about as often as before: ")
    assert said(0.1, 0.3).endswith("that is +12.5 by skill and \N{MINUS SIGN}2.1 by manner.")
    assert skill_verdict(replace(evaluation.overall, contains_gain=None)) == ""


def test_numbers_read_well() -> None:
    assert [number(value) for value in (0.5, -0.25, 12345, 480.123, "x")] == [
        "0.500",
        "\N{MINUS SIGN}0.250",
        "12,345",
        "480.1",
        "x",
    ]
    assert number(None) == number(float("nan")) == "\N{EN DASH}"
    assert [signed(value) for value in (0.5, 0.0)] == ["+0.500", "0.000"]
    assert [duration(value) for value in (8.4, 200, 7500)] == ["8.4 s", "3 min 20 s", "2 h 05 min"]


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def dom(directory: Path, profile: Path, address: str = "") -> str:
    """The page as a browser leaves it after its script ran."""
    assert CHROMIUM
    names = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"
    switches = [f"--{name}" for name in f"{names} disable-component-update virtual-time-budget=2000 dump-dom".split()]
    url = f"{(directory / 'report.html').as_uri()}{address}"
    command = [CHROMIUM, *switches, f"--user-data-dir={profile}", url]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium to open the report")
def test_a_browser_shows_the_first_sample_and_filters(tmp_path: Path, demo: Demo, evaluation: Evaluation) -> None:
    report(tmp_path, demo, evaluation)
    first = dom(tmp_path, tmp_path / "profile")
    assert 'data-id="digit-0"' in first and "1 of 12" in first
    assert '<img src="data:image/png;base64,' in first
    assert "&lt;/script&gt;&lt;script&gt;document.title='owned'" in first
    assert "<title>demo &amp; &lt;friends&gt;" in first
    video = dom(tmp_path, tmp_path / "profile", "#task=video&row=2")
    assert 'data-id="video-1"' in video and "2 of 2" in video and '<video src="data:video/mp4' in video
    better = [row for row in payload(first)["rows"] if row["change"] > 0]
    filtered = dom(tmp_path, tmp_path / "profile", "#show=better")
    assert f"1 of {len(better)}" in filtered and f'data-id="{better[0]["id"]}"' in filtered
