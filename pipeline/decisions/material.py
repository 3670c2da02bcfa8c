"""What a run decides on: decisions of each split, of the simulated shop or of the project's table, and the log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError, Data
from pipeline.config.decide import Decide, DecisionReward
from pipeline.config.fusion import FusionSettings, Modality
from pipeline.data.datasets import Datasets, RowRef
from pipeline.data.isolated import Decoder
from pipeline.decisions.feedback import rated_rewards
from pipeline.decisions.records import Log, columns_of
from pipeline.decisions.table import Decision, DecisionTable, Logged, table_of, true_rewards
from pipeline.decisions.world import ClickWorld, Wish, simulate_clicks
from pipeline.models.fusion.samples import Preprocessor, Sample, sample_of
from pipeline.models.fusion.words import build_word_encoder
from pipeline.records import Prompt, Rating

TRAIN, LOG = "train", "log"
ONLINE_SEED = 1000
"""Online algorithms meet other wishes than those of the log."""


@dataclass(frozen=True)
class Material:
    """Tables of raw modalities by split, with the samples they are made of; the log is one of them, `log`.

    fusion: the model's settings, with the text encoder that was made for these texts. cut: how many texts and sounds
    were too long for the model and were cut, by modality.
    """

    actions: tuple[str, ...]
    fusion: FusionSettings
    tables: Mapping[str, DecisionTable]
    samples: Mapping[str, Sequence[Sample]]
    cut: Mapping[str, int]
    log: Log | None = None
    examination: NDArray[np.float64] | None = None
    world: ClickWorld | None = None
    refused: int = 0


def of_world(settings: Decide, directory: Path, *, seed: int) -> Material:
    """Wishes of the shop, and clicks that its own policy logged."""
    own = settings.world
    world = ClickWorld(num_items=own.num_items, num_positions=own.num_positions, eta=own.eta, seed=seed)
    numbers = {TRAIN: own.train_wishes, settings.validation_split: own.held_out_wishes}
    numbers[settings.test_split] = own.held_out_wishes
    wishes = {split: world.wishes(split, num, seed=seed + ONLINE_SEED) for split, num in numbers.items()}
    logged = simulate_clicks(world, num=own.logged, seed=seed)
    log = columns_of(logged, num_actions=world.num_actions)
    decisions = {split: _wished(found, settings, seed) for split, found in wishes.items()}
    # Learning knows clicks alone; estimates are compared with what is true.
    asked = world.wishes(TRAIN, own.logged, seed=seed)
    decisions[LOG] = [
        Decision(each.context, wish.relevance, each.group) for each, wish in zip(logged, asked, strict=True)
    ]
    return _material(
        settings,
        directory,
        decisions,
        actions=tuple(item.id for item in world.items),
        logged={LOG: logged_of(log)},
        log=log,
        examination=world.examination,
        world=world,
    )


def _wished(wishes: Sequence[Wish], settings: Decide, seed: int) -> list[Decision]:
    decisions = [Decision(each.sample, each.relevance, each.group) for each in wishes]
    return hide(decisions, settings.hidden_share, seed=seed)


def of_table(
    settings: Decide,
    data: Data,
    datasets: Mapping[str, Datasets],
    directory: Path,
    *,
    seed: int,
    ratings: Iterable[Rating],
) -> Material:
    """Rows of the prompt table; actions are answers, and rewards their truth, or what people said of them.

    datasets: by split; `train` must be among them.

    Raises:
        ConfigError: a row's answer is none of the actions, or nobody rated anything.
    """
    prompts: dict[str, list[Prompt]] = {}
    refused = 0
    for split, source in datasets.items():
        infos = [each for each in source.infos() if settings.task in (None, each.task)][: settings.max_rows]
        read = source.read([RowRef(key) for key in source.keys([each.id for each in infos])])
        prompts[split] = [each for each in read if isinstance(each, Prompt) and each.answer is not None]
        refused += len(read) - len(prompts[split])
    actions = settings.actions or tuple(sorted({each.answer for each in prompts[TRAIN] if each.answer is not None}))
    decisions: dict[str, list[Decision]] = {}
    heard = list(ratings)
    with Decoder(data.limits) as decoder:
        for split, rows in prompts.items():
            rewards = (
                rated_rewards(heard, [each.id for each in rows], actions, unrated=settings.unrated)
                if settings.reward is DecisionReward.RATINGS and split == TRAIN
                else [true_rewards(each, actions) for each in rows]
            )
            decisions[split] = hide(
                [
                    Decision(sample_of(each, decoder=decoder.decode), reward, each.task)
                    for each, reward in zip(rows, rewards, strict=True)
                ],
                settings.hidden_share,
                seed=seed,
            )
    return replace(_material(settings, directory, decisions, actions=actions), refused=refused)


def logged_of(log: Log) -> Logged:
    """The part of a log that an environment replays."""
    return Logged(log.actions, log.propensities.astype(np.float32), log.rewards.astype(np.float32))


def hide(decisions: Sequence[Decision], share: float, *, seed: int) -> list[Decision]:
    """The decisions, of which this share of those with several modalities hides one until asked."""
    random = np.random.default_rng((seed, 7))
    found: list[Decision] = []
    for each in decisions:
        there = sorted(each.sample.modalities)
        hides = len(there) > 1 and random.random() < share
        found.append(replace(each, hidden=(there[int(random.integers(len(there)))],)) if hides else each)
    return found


def _material(
    settings: Decide,
    directory: Path,
    decisions: Mapping[str, Sequence[Decision]],
    *,
    logged: Mapping[str, Logged] | None = None,
    **known: Any,
) -> Material:
    samples = {split: [each.sample for each in found] for split, found in decisions.items()}
    fusion = with_words(settings, directory, [each for split in (TRAIN, LOG) for each in samples.get(split, ())])
    preprocessor = Preprocessor(fusion)
    tables = {
        split: table_of(found, preprocessor, fusion.modalities, logged=(logged or {}).get(split))
        for split, found in decisions.items()
    }
    return Material(fusion=fusion, tables=tables, samples=samples, cut=dict(preprocessor.cut), **known)


def with_words(settings: Decide, directory: Path, samples: Sequence[Sample]) -> FusionSettings:
    """The model's settings, with a text encoder that reads the words of these samples where they ask for one."""
    fusion = settings.fusion
    text = fusion.encoder(Modality.TEXT)
    if not settings.words or Modality.TEXT not in fusion.modalities or text.path is not None:
        return fusion
    texts = [each.text for each in samples if each.text]
    if not texts:
        raise ConfigError(
            "decide.words=true: no text in the train split; use false, or leave text out of the modalities"
        )
    path = build_word_encoder(
        directory / "words",
        texts,
        width=text.width,
        num_layers=text.num_layers,
        num_heads=text.num_heads,
        max_length=fusion.sizes.text_length,
    )
    encoders = fusion.encoders | {Modality.TEXT: text.model_copy(update={"path": path, "kind": None})}
    return fusion.model_copy(update={"encoders": encoders})
