"""The report of a run: one static HTML file that needs no server, no network and no other file.

Everything that a model or a row says is untrusted: the template escapes it, the sample browser sets it as text, media
are embedded only in formats that were recognised by their bytes, and a content security policy allows no script but the
report's own and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from pipeline.config import RewardName
from pipeline.evaluation import charts
from pipeline.evaluation.intervals import Estimate
from pipeline.evaluation.results import ALL_BLANKED, Mode, ModelName, SampleResult
from pipeline.evaluation.reward_parts import parts_of
from pipeline.evaluation.summary import Evaluation, ModelSummary, Slice
from pipeline.records import MediaKind, Medium, Prompt
from pipeline.tracking import finite

REPORT_FILE = "report.html"
MAX_MEDIUM_BYTES = 8 * 2**20
KL_FULL_COLOUR = 2.0
"""Nats at which a token of the sample browser has its full colour."""
DASH = "–"  # noqa: RUF001
METRICS = {
    "contains": "Contains",
    "wer": "WER",
    "bleu": "BLEU",
    "rouge_l": "ROUGE-L",
    "distance": "Graded",
    "length": "Length reward",
}


@dataclass(frozen=True)
class BrowserRow:
    """A prompt in the sample browser with the completions to show: both models, both modes, all ways of showing it."""

    prompt: Prompt
    completions: tuple[SampleResult, ...]


@dataclass(frozen=True)
class LoopTime:
    """Where the loop's time went: mean shares of a step, by phase as the driver waits, and by role at work."""

    phases: Mapping[str, float]
    busy: Mapping[str, float]

    @property
    def binds(self) -> str:
        """The longest phase: what would shorten a step."""
        return max(self.phases, key=lambda phase: self.phases[phase])


def loop_time(rows: Sequence[Mapping[str, Any]]) -> LoopTime | None:
    """From the metrics of the loop; None where they do not tell."""
    timed = [row for row in rows if row.get("time/step_s") and "phase/update_s" in row]
    total = sum(row["time/step_s"] for row in timed)
    if not total:
        return None
    spent = Counter[str]()
    for row in timed:
        for name, value in row.items():
            if name.startswith("phase/"):
                spent[name] += value
            elif name.startswith("busy/"):
                spent[name] += value * row["time/step_s"]
    shares = {name: value / total for name, value in spent.most_common()}
    phases = {name[len("phase/") : -len("_s")]: share for name, share in shares.items() if name.startswith("phase/")}
    return LoopTime(phases, {name[len("busy/") :]: share for name, share in shares.items() if name.startswith("busy/")})


def browser_rows(prompts: Sequence[Prompt], samples: Sequence[SampleResult], *, limit: int) -> list[BrowserRow]:
    """The first prompts of every task in turn, at most `limit`: not chosen by outcome; each needs a sample."""
    by_prompt: dict[str, list[SampleResult]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.prompt_id, []).append(sample)
    by_task: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        if prompt.id in by_prompt:
            by_task.setdefault(prompt.task, []).append(prompt)
    longest = max((len(rows) for rows in by_task.values()), default=0)
    turns = (rows[turn] for turn in range(longest) for rows in by_task.values() if turn < len(rows))
    return [BrowserRow(prompt, tuple(by_prompt[prompt.id])) for prompt in turns][:limit]


def write_report(
    directory: Path,
    *,
    title: str,
    evaluation: Evaluation,
    samples: Sequence[BrowserRow],
    curves: charts.Curves,
    config_text: str,
    counts: Mapping[str, int],
    stage_s: Mapping[str, float],
    rows: Mapping[str, int] | None = None,
    seeds_table: Sequence[Mapping[str, Any]] | None = None,
    losses: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Writes `report.html` into `directory` and returns its path.

    samples: rows of the sample browser; their media are embedded up to `MAX_MEDIUM_BYTES` each.
    curves: metrics a stage, from `pipeline.tracking.read_metrics`.
    config_text: the whole recipe, as YAML.
    counts: what was dropped, truncated or failed, by reason; zeros say that it was watched.
    stage_s: seconds of each stage, in order.
    rows: prompts that SFT learned from (`sft`), that RL drew (`rlhf`), and that both did (`both`).
    seeds_table: one row a seed, all with the same columns; numbers get a mean row.
    losses: workers, features and checkpoints that were lost: `role`, `cause`, `stage`, `seconds` until it was back or
        None, `steps` that were done again.
    notes: what a reader must know, for example that a scripted rater stated the preferences.
    """
    environment = _environment()
    script = _part(environment, "report.js.jinja")
    page = environment.get_template("report.html.jinja").render(
        title=title,
        style=_part(environment, "report.css.jinja"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        evaluation=evaluation,
        verdict=verdict(evaluation.overall),
        skill_verdict=skill_verdict(evaluation.overall),
        overlap=overlap(rows),
        erring=[part for part in evaluation.tasks.values() if part.demonstrator and part.demonstrator.contains < 1],
        axis=_axis([evaluation.overall, *evaluation.tasks.values()]),
        blinds=_blind_labels(evaluation),
        panels=charts.panels(curves),
        counts={reason: count for reason, count in counts.items() if count},
        watched=[reason for reason, count in counts.items() if not count],
        stage_s=stage_s,
        seeds=seeds_table or [],
        seed_means=_column_means(seeds_table or []),
        loop=loop_time(curves.get("rlhf", [])),
        reward_parts={charts.title(stage): parts for stage, parts in parts_of(curves).items()},
        losses=losses,
        notes=notes,
        config_text=config_text,
        browser=_json(
            {
                "rows": [_browser_row(row) for row in samples],
                "klFullColour": KL_FULL_COLOUR,
                "metrics": {RewardName.EXACT_MATCH.value: "exact match", **METRICS},
            }
        ),
    )
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / REPORT_FILE
    path.write_text(page.lstrip() + "\n", encoding="utf-8", errors="replace")
    return path


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cast(dict[str, Any], environment.filters).update(
        num=number, signed=signed, interval=interval, duration=duration, chart=charts.line_chart, plainly=plainly
    )
    cast(dict[str, Any], environment.globals).update(
        METRICS=METRICS,
        MODELS=tuple(ModelName),
        SFT=ModelName.SFT,
        RLHF=ModelName.RLHF,
        ALL=ALL_BLANKED,
        NUM_COLOURS=charts.NUM_COLOURS,
        KL_FULL_COLOUR=KL_FULL_COLOUR,
    )
    return environment


def _part(environment: jinja2.Environment, name: str) -> Markup:
    """The style sheet or the script: our own text, so it goes in as it is."""
    return Markup(environment.get_template(name).render())


def _json(value: object) -> Markup:
    """Strict JSON for a script element: with `<`, `>`, `&` and `'` escaped, so that no text can end the element."""
    return htmlsafe_json_dumps(finite(value), dumps=json.dumps, allow_nan=False)


def number(value: object, digits: int = 3) -> str:
    """A table cell: `digits` decimals for floats (one from 100 up), text as it is, a dash for None and NaN."""
    if isinstance(value, Estimate):
        return number(value.value, digits)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return DASH
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    digits = min(digits, 1) if abs(value) >= 100 else digits
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float | Estimate | None, digits: int = 3) -> str:
    """A difference with its sign, plus too."""
    size = value.value if isinstance(value, Estimate) else value
    text = number(size, digits)
    return f"+{text}" if size is not None and size > 0 else text


def interval(value: Estimate | None, digits: int = 3) -> str:
    """The bounds of an estimate's interval, `[low, high]`, or nothing."""
    return f"[{number(value.low, digits)}, {number(value.high, digits)}]" if value else ""


def duration(seconds: float) -> str:
    """Seconds as people say them: 8.4 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def verdict(overall: Slice) -> str:
    """What the paired difference allows one to say, in one sentence."""
    gain = overall.gain
    if gain is None and len(overall.models) > 1:
        return "No prompt with a reference answer was answered by both models, so there is nothing to compare."
    if gain is None:
        return "Only one model was evaluated, so there is nothing to compare."
    points = f"{abs(gain.value) * 100:.1f} points"
    if gain.low > 0:
        return f"After RLHF the model earns {points} more true reward than after supervised fine-tuning."
    if gain.high < 0:
        return f"After RLHF the model earns {points} less true reward than after supervised fine-tuning."
    return "The difference between the two models is within chance: its interval holds zero."


def skill_verdict(overall: Slice) -> str:
    """What of the gain is skill, in words: nothing where it was not measured."""
    gain, sft, rlhf = (overall.contains_gain, *(overall.models.get(model) for model in ModelName))
    if gain is None or overall.manner_gain is None or not (sft and rlhf and sft.contains and rlhf.contains):
        return ""
    often = "more often" if gain.low > 0 else "less often" if gain.high < 0 else "about as often as before"
    return (
        f"It is right {often}: {rlhf.contains.value * 100:.1f} % of its completions contain the right answer, "
        f"{sft.contains.value * 100:.1f} % did before. In points of true reward that is "
        f"{_points(overall.skill_gain)} by skill and {_points(overall.manner_gain)} by manner."
    )


def _points(gain: Estimate | None) -> str:
    return signed(None if gain is None else 100 * gain.value, 1)


def plainly(summary: ModelSummary | None) -> float | None:
    """Of a model's completions that contain the answer, the share that says just it; None where there are none."""
    if summary is None or not (summary.true_reward and summary.contains and summary.contains.value):
        return None
    return summary.true_reward.value / summary.contains.value


def overlap(rows: Mapping[str, int] | None) -> str:
    """How many of RL's prompts SFT had learned from; nothing where it was not recorded."""
    if rows is None:
        return ""
    share = f" ({100 * rows['both'] / rows['rlhf']:.0f} %)" if rows["rlhf"] else ""
    return (
        f"RL drew {number(rows['rlhf'])} prompts; SFT had learned from {number(rows['both'])} of them{share}, "
        f"and from {number(rows['sft'])} in all."
    )


def _axis(parts: Sequence[Slice]) -> tuple[float, float]:
    """Bounds of the range plot: 0 to 1, wider where a custom reward leaves them."""
    rewards = [summary.true_reward for part in parts for summary in part.models.values() if summary.true_reward]
    return min([0.0, *(reward.low for reward in rewards)]), max([1.0, *(reward.high for reward in rewards)])


def _blind_labels(evaluation: Evaluation) -> list[str]:
    """Columns of the blind-gap table: kinds in their usual order, then mixes, then `all`."""
    parts = [evaluation.overall, *evaluation.tasks.values()]
    labels = {label for part in parts for summary in part.models.values() for label in summary.blind_gaps}
    kinds = [kind.value for kind in MediaKind]
    return sorted(labels, key=lambda label: (label == ALL_BLANKED, kinds.index(label) if label in kinds else 99, label))


def _column_means(rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Mean of every column after the first, None where a cell is no number."""
    columns = [[row[key] for row in rows] for key in list(rows[0])[1:]] if rows else []
    return [
        math.fsum(column) / len(column) if all(isinstance(cell, (int, float)) for cell in column) else None
        for column in columns
    ]


def _browser_row(row: BrowserRow) -> dict[str, Any]:
    return {
        "id": row.prompt.id,
        "task": row.prompt.task,
        "turns": [{"role": message.role, "content": message.content} for message in row.prompt.messages],
        "answer": row.prompt.answer,
        "media": [embedded(medium) for medium in row.prompt.media],
        "differs": _differs(row.completions),
        "change": _change(row.completions),
        "completions": [_completion(sample) for sample in row.completions],
    }


def _completion(sample: SampleResult) -> dict[str, Any]:
    return {
        "model": str(sample.model),
        "mode": str(sample.mode),
        "blanked": sample.blanked,
        "swapped": sample.swapped,
        "text": sample.text,
        "finish": str(sample.finish_reason),
        "numTokens": sample.num_tokens,
        "tokens": sample.token_texts,
        "kl": [round(value, 4) for value in sample.token_kl],
        "rewards": sample.rewards,
        "learned": sample.learned_reward,
    }


def _differs(completions: Sequence[SampleResult]) -> bool:
    """Whether the models' greedy completions differ; where one has none, their sampled ones."""
    for mode in (Mode.GREEDY, Mode.SAMPLED):
        texts = [
            sorted(row.text for row in completions if row.model == model and row.mode == mode and row.is_shown)
            for model in ModelName
        ]
        if all(texts):
            return texts[0] != texts[1]
    return False


def _change(completions: Sequence[SampleResult]) -> int:
    """Sign of RLHF minus SFT in mean true reward over the shown completions; 0 where one has none."""
    means: list[float] = []
    for model in (ModelName.RLHF, ModelName.SFT):
        shown = [row.true_reward for row in completions if row.model == model and row.is_shown]
        known = [reward for reward in shown if reward is not None]
        if not known:
            return 0
        means.append(math.fsum(known) / len(known))
    return (means[0] > means[1]) - (means[0] < means[1])


def embedded(medium: Medium) -> dict[str, str]:
    """A medium as a data URI, or a note why it is not shown."""
    kind, mime = medium.kind.value, sniff(medium.data)
    if mime is None or mime.partition("/")[0] != kind:
        return {"kind": kind, "note": f"a format that browsers do not play, {len(medium.data):,} bytes"}
    if len(medium.data) > MAX_MEDIUM_BYTES:
        return {"kind": kind, "note": f"left out for its size, {len(medium.data) / 2**20:.1f} MiB"}
    return {"kind": kind, "src": f"data:{mime};base64,{base64.b64encode(medium.data).decode()}"}


def sniff(data: bytes) -> str | None:
    """The MIME type that the first bytes show, if browsers take it; None for others, and for SVG, which can script."""
    starts = {
        b"\x89PNG\r\n\x1a\n": "image/png",
        b"\xff\xd8\xff": "image/jpeg",
        b"GIF8": "image/gif",
        b"fLaC": "audio/flac",
        b"OggS": "audio/ogg",
        b"ID3": "audio/mpeg",
        b"\xff\xfb": "audio/mpeg",
        b"\x1aE\xdf\xa3": "video/webm",
    }
    riff = {b"WAVE": "audio/wav", b"WEBP": "image/webp"}
    if data[:4] == b"RIFF":
        return riff.get(data[8:12])
    if data[4:8] == b"ftyp":
        return "audio/mp4" if data[8:11] == b"M4A" else "video/mp4"
    return next((mime for start, mime in starts.items() if data.startswith(start)), None)
