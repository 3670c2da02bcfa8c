from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.config import ConfigError
from pipeline.data.demo import drawing
from pipeline.data.demo.tasks import Split, split_of
from pipeline.decisions.records import DECISION_SCHEMA, LoggedDecision, columns_of, read_decisions, write_decisions
from pipeline.decisions.world import (
    BOTH_FIT,
    GROUPS,
    NONE_FITS,
    OTHER_FITS,
    PREFERRED_FITS,
    ClickWorld,
    draw_clicks,
    relevances,
    simulate_clicks,
    true_value,
)
from pipeline.models.fusion.samples import Sample
from pipeline.records import Audio, Image, Video


@pytest.fixture(scope="module")
def world() -> ClickWorld:
    return ClickWorld(seed=0)


def test_the_same_seed_is_the_same_world(world: ClickWorld) -> None:
    again, other = ClickWorld(seed=0), ClickWorld(seed=1)
    assert [item.description for item in again.items] == [item.description for item in world.items]
    assert (again.items[3].image.pixels == world.items[3].image.pixels).all()
    assert [item.colour + item.shape for item in other.items] != [item.colour + item.shape for item in world.items]
    few, many = world.wishes("validation", 5), again.wishes("validation", 30)
    assert [wish.sample.text for wish in few] == [wish.sample.text for wish in many[:5]]
    sounds = [(one.sample.audio, same.sample.audio) for one, same in zip(few, many, strict=False)]
    assert all((a is None) == (b is None) for a, b in sounds)
    assert all((a.samples == b.samples).all() for a, b in sounds if a is not None and b is not None)
    assert [wish.colour for wish in world.wishes("validation", 30, seed=1)] != [wish.colour for wish in many]


def test_twelve_items_are_all_the_coloured_shapes_and_a_wish_says_which(world: ClickWorld) -> None:
    names = {(item.colour, item.shape) for item in world.items}
    assert names == {(colour, shape) for colour in drawing.COLOURS for shape in drawing.SHAPES}
    for wish in world.wishes("test", 40):
        assert world.items[wish.best].colour == wish.colour and world.items[wish.best].shape == wish.shape
        assert wish.sample.text is None or f"{wish.colour} {wish.shape}" in wish.sample.text
        assert wish.sample.modalities
    forms = {wish.sample.modalities for wish in world.wishes("test", 40)}
    assert len(forms) == 3  # spoken, written, both


def test_relevance_has_partial_credit_for_what_the_group_prefers(world: ClickWorld) -> None:
    place = {(item.colour, item.shape): number for number, item in enumerate(world.items)}
    colour_first, shape_first = (world.relevance("red", "ring", group) for group in GROUPS)
    assert colour_first[place["red", "ring"]] == shape_first[place["red", "ring"]] == np.float32(BOTH_FIT)
    assert colour_first[place["red", "cross"]] == shape_first[place["blue", "ring"]] == np.float32(PREFERRED_FITS)
    assert colour_first[place["blue", "ring"]] == shape_first[place["red", "cross"]] == np.float32(OTHER_FITS)
    assert colour_first[place["blue", "cross"]] == np.float32(NONE_FITS)
    # Both groups earn the same from what fits and from chance: unequal service is the policy's doing.
    assert sorted(colour_first)[-1] == sorted(shape_first)[-1]


def test_texts_and_voices_belong_to_one_split(world: ClickWorld) -> None:
    texts = {split: {wish.sample.text for wish in world.wishes(split, 60)} - {None} for split in Split}
    for split, seen in texts.items():
        assert all(split_of(f"wish:{text}") is split.pool for text in seen)
    assert not texts[Split.TRAIN] & texts[Split.TEST]
    assert max(len(text or "") for seen in texts.values() for text in seen) <= 64


def test_clicks_are_examined_and_relevant(world: ClickWorld) -> None:
    assert world.examination.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert ClickWorld(eta=2.0).examination.tolist() == pytest.approx([1, 1 / 4, 1 / 9, 1 / 16, 1 / 25])
    wish, dice = world.wishes("train", 1)[0], np.random.default_rng(0)
    for place, share in ((0, 1.0), (3, 1 / 4)):
        clicks = np.mean([world.click(wish, wish.best, dice, position=place) for _ in range(4000)])
        assert clicks == pytest.approx(share * BOTH_FIT, abs=0.03)


def test_a_log_has_the_propensities_of_its_policy(world: ClickWorld) -> None:
    wishes = world.wishes("train", 3)
    policy = world.logging_policy()
    shares = policy(wishes)
    assert shares.sum(axis=1) == pytest.approx(1) and shares.min() >= 0.2 / 12 - 1e-6
    log = simulate_clicks(world, num=3000, seed=0, wishes=wishes)
    at = {wish.sample.id: row for row, wish in enumerate(wishes)}
    for each in log[:50]:
        assert each.propensity == pytest.approx(shares[at[each.context.id], each.action], rel=1e-5)
    taken = np.zeros_like(shares, dtype=float)
    for each in log:
        taken[at[each.context.id], each.action] += 1
    assert taken / taken.sum(axis=1, keepdims=True) == pytest.approx(shares, abs=0.05)


def test_a_page_mostly_shows_an_item_at_its_usual_place(world: ClickWorld) -> None:
    relevance = np.full((1, 12), 0.5, np.float32)
    draws = draw_clicks(
        world,
        relevance=relevance,
        probabilities=np.full((1, 12), 1 / 12),
        wishes=np.zeros(8000, np.int64),
        rng=np.random.default_rng(0),
    )
    usual = draws.positions == world.usual_place[draws.actions]
    assert usual.mean() == pytest.approx(0.8 + 0.2 / 5, abs=0.02)
    for place in range(5):
        assert draws.clicks[draws.positions == place].mean() == pytest.approx(0.5 / (1 + place), abs=0.05)


def test_raw_clicks_are_mistaken_about_what_lies_at_the_bottom(world: ClickWorld) -> None:
    """Who believes clicks, however many, chooses worse than who knows the places."""
    wishes = world.wishes("test", 100)
    relevance = relevances(wishes)
    seen = 0.8 * world.examination[world.usual_place] + 0.2 * world.examination.mean()
    naive = np.eye(12)[(relevance * seen).argmax(axis=1)]
    assert true_value(wishes, np.eye(12)[relevance.argmax(axis=1)]) == pytest.approx(BOTH_FIT)
    assert true_value(wishes, naive) < 0.85
    assert true_value(wishes, world.logging_policy()(wishes)) < true_value(wishes, naive)


def test_a_true_value_by_hand(world: ClickWorld) -> None:
    wishes = world.wishes("test", 2)
    chosen = np.zeros((2, 12))
    chosen[0, wishes[0].best] = 1.0
    chosen[1, :] = 1 / 12
    assert true_value(wishes, chosen) == pytest.approx((BOTH_FIT + wishes[1].relevance.mean()) / 2)


def test_a_log_survives_the_table(tmp_path: Path, world: ClickWorld) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    full = LoggedDecision(
        context=Sample(
            "full",
            text="a wish",
            image=Image(pixels),
            audio=Audio(np.linspace(-0.5, 0.5, 800).astype(np.float32), 16_000),
            video=Video(np.zeros((4, 16, 16, 3), np.uint8), 4.0),
            numbers=(1.5, -2.0),
        ),
        action=3,
        propensity=0.25,
        position=2,
        reward=1.0,
        group="shape first",
        session="s1",
        step=4,
    )
    written = [full, *simulate_clicks(world, num=20, seed=1)]
    path = tmp_path / "log.parquet"
    assert write_decisions(path, written) == 21
    assert pq.read_schema(path).names == DECISION_SCHEMA.names
    read = read_decisions(path)
    for one, other in zip(written, read, strict=True):
        facts = ("action", "propensity", "position", "reward", "group", "session", "step")
        assert [getattr(one, name) for name in facts] == [getattr(other, name) for name in facts]
        assert one.context.text == other.context.text and one.context.numbers == other.context.numbers
        assert one.context.modalities == other.context.modalities
    sound = read[0].context.audio
    assert sound is not None and full.context.audio is not None
    assert sound.samples == pytest.approx(full.context.audio.samples, abs=1e-4)


def test_a_log_that_cannot_be_used_says_why(tmp_path: Path, world: ClickWorld) -> None:
    path = tmp_path / "log.parquet"
    write_decisions(path, simulate_clicks(world, num=2, seed=0))
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["propensity"]), path)
    with pytest.raises(ConfigError, match="column propensity is missing"):
        read_decisions(path)
    with pytest.raises(ConfigError, match="holds a media tag"):
        write_decisions(path, [LoggedDecision(Sample("x", text="see <image>"), 0, 0.5)])
    with pytest.raises(ConfigError, match=r"row 1 \(b\): propensity=0; must be in \(0, 1\]"):
        columns_of([LoggedDecision(Sample(id, text="x"), 0, p) for id, p in (("a", 0.5), ("b", 0.0))], num_actions=2)
    with pytest.raises(ConfigError, match="decisions: none"):
        columns_of([], num_actions=2)


def test_worlds_that_cannot_be_are_refused(world: ClickWorld) -> None:
    with pytest.raises(ConfigError, match="num_items=13: there are 12"):
        ClickWorld(num_items=13)
    with pytest.raises(ConfigError, match="eta=-1"):
        ClickWorld(eta=-1.0)
    with pytest.raises(ConfigError, match="num_positions=0"):
        ClickWorld(num_positions=0)
    with pytest.raises(ConfigError, match="split=tests"):
        world.wishes("tests", 1)
    with pytest.raises(ConfigError, match="exploration=0"):
        world.logging_policy(exploration=0.0)
