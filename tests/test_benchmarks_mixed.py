"""The mixed benchmark without its runs: prompts, comparison, table, exit status."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import mixed
from benchmarks.mixed import Case, Comparison, Curves, Deviation
from pipeline.config import PartMode, load_recipe
from pipeline.data.schema import from_row, media_places
from pipeline.records import MediaKind


def test_mixes_hold_up_to_n_media_of_each_kind_in_any_order() -> None:
    rng = np.random.default_rng(0)
    mixes = [mixed.draw_mix(rng, 3) for _ in range(400)]
    most = Counter({kind: max(mix.count(kind) for mix in mixes) for kind in MediaKind})
    assert most == {kind: 3 for kind in MediaKind}
    kinds = {frozenset(mix) for mix in mixes}
    # Text alone, each kind alone, each pair, all three.
    assert len(kinds) == 8 and frozenset([None]) in kinds
    assert all(mix == [None] for mix in mixes if None in mix)
    assert any(mix[0] is MediaKind.VIDEO and mix[-1] is MediaKind.IMAGE for mix in mixes)
    assert any(mix[0] is MediaKind.IMAGE and mix[-1] is MediaKind.VIDEO for mix in mixes)


def test_the_rows_are_prompts_whose_tags_match_their_media_and_follow_from_the_seed() -> None:
    rows = list(mixed.draw_rows(12, most=2, seed=1))
    assert rows == list(mixed.draw_rows(12, most=2, seed=1))
    assert rows != list(mixed.draw_rows(12, most=2, seed=2))
    prompts = [from_row(row) for row in rows]
    assert len({prompt.id for prompt in prompts}) == 12
    for prompt in prompts:
        places = media_places(prompt.messages)
        assert [medium.kind for medium in prompt.media] == places
        assert mixed.mix_name(places) == prompt.task


def test_a_mix_is_named_by_its_counts() -> None:
    image, video = MediaKind.IMAGE, MediaKind.VIDEO
    assert mixed.mix_name([video, image, video]) == "1 image, 2 video"
    assert mixed.mix_name([None]) == "text"


def test_a_case_sets_ranks_and_stages_of_all_sharded_roles() -> None:
    rlhf = load_recipe(None, [*mixed.SETTINGS, *Case("trained", 2, 2).overrides]).rlhf
    assert [getattr(rlhf, role).num_workers for role in mixed.RANKED] == [2, 2, 2]
    assert [getattr(rlhf, role).zero_stage for role in mixed.RANKED] == [2, 2, 0]
    assert rlhf.critic.parts.vision_tower.mode is PartMode.TRAIN
    assert rlhf.policy.parts.audio_tower.mode is PartMode.LORA
    frozen = load_recipe(None, [*mixed.SETTINGS, *Case("frozen", 2, 3).overrides]).rlhf
    assert frozen.reference.zero_stage == 3
    assert frozen.policy.parts.vision_tower.mode is PartMode.FREEZE


def _curves(losses: list[float], texts: str) -> Curves:
    metrics = [dict.fromkeys(mixed.CURVES, 0.0) | {"policy/loss": loss, "time/step_s": 0.5} for loss in losses]
    return Curves(metrics, [[[text]] for text in texts], 12.0)


def test_deviations_are_shares_of_the_curve_s_largest_value_and_end_where_completions_part() -> None:
    one = _curves([0.5, -8.0, -0.25, 1.0], "abcd")
    together = mixed.compare(one, _curves([0.5, -7.0, -4.25, 1.0], "abcd"))
    assert (together.num_compared, together.num_steps) == (4, 4)
    assert together.deviations["policy/loss"] == Deviation(0.5, 2)
    # A curve of zeros has no scale of its own.
    assert together.deviations["critic/loss"] == Deviation(0.0, 0)
    parted = mixed.compare(one, _curves([0.5, -7.0, 99.0, 1.0], "abxd"))
    assert parted.num_compared == 2
    assert parted.deviations["policy/loss"] == Deviation(0.125, 1)


def test_a_value_that_is_no_number_is_the_largest_deviation() -> None:
    comparison = mixed.compare(_curves([0.0, 1.0, 2.0], "abc"), _curves([0.5, math.nan, 2.0], "abc"))
    assert math.isnan(comparison.deviations["policy/loss"].value) and comparison.deviations["policy/loss"].step == 1
    assert not comparison.passed


@pytest.mark.parametrize(
    ("value", "num_compared", "passed"),
    [(mixed.TOLERANCE, 10, True), (mixed.TOLERANCE, 5, True), (0.0, 4, False), (2 * mixed.TOLERANCE, 10, False)],
)
def test_curves_must_stay_together_for_half_of_the_steps(value: float, num_compared: int, passed: bool) -> None:
    assert Comparison({"policy/loss": Deviation(value, 3)}, num_compared, 10).passed is passed


def test_the_table_tells_deviation_and_step_and_where_samples_part(tmp_path: Path) -> None:
    one = _curves([0.5, 8.0], "ab")
    rows = [
        (Case("frozen", 1, 0), one, None),
        (Case("frozen", 2, 3), one, mixed.compare(one, _curves([0.75, 8.0], "ax"))),
    ]
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n")
    mixed.append_result(path, command="python -m benchmarks.mixed", table=mixed.markdown(rows), num_steps=2, most=3)
    text = path.read_text()
    assert text.startswith("# Results\n\n## ") and ": mixed\n" in text and "tolerance 0.001" in text
    assert "| frozen | 1 | 0 | 12 | 0.50 |  |" in text
    assert "| frozen | 2 | 3 | 12 | 0.50 | 1, then samples part | 3.1e-02 (0) | 0.0e+00 (0) |" in text
