"""Does a model look and listen? Which prompts to show it again, with their media blanked, or another row's in place."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from pipeline.records import MediaKind, PromptInfo
from pipeline.rewards.normalise import normalise


def blankings(infos: Sequence[PromptInfo]) -> list[frozenset[MediaKind]]:
    """Each kind alone, and all kinds of the prompts that have several."""
    alone = {frozenset([kind]) for info in infos for kind in info.modalities}
    together = {frozenset(info.modalities) for info in infos if info.modalities}
    return sorted(alone | together, key=lambda kinds: (len(kinds), sorted(kinds)))


def donors(infos: Sequence[PromptInfo], *, seed: int) -> dict[str, str]:
    """For each prompt with media and an answer, the row whose media to show in place of its own, by their ids.

    A row of the same task, with the same kinds of media and another answer, drawn by `seed`: it looks like what belongs
    there, and a model that uses it answers wrong. Prompts are left out where no row is such.
    """
    groups: dict[tuple[str, tuple[MediaKind, ...]], list[PromptInfo]] = {}
    for info in infos:
        if info.modalities and info.answer is not None:
            groups.setdefault((info.task, info.modalities), []).append(info)
    found: dict[str, str] = {}
    for (task, kinds), group in groups.items():
        dice = np.random.default_rng([seed, zlib.crc32(f"{task} {'+'.join(kinds)}".encode())])
        # By id, so that the order of the rows has no say.
        by_id = sorted(group, key=lambda info: info.id)
        ring = [by_id[place] for place in dice.permutation(len(by_id))]
        found |= _next_with_another_answer(ring)
    return found


def _next_with_another_answer(ring: Sequence[PromptInfo]) -> dict[str, str]:
    """Each prompt's next one in the ring with another answer; none where all answers are the same."""
    answers = [normalise(info.answer or "") for info in ring]
    size = len(ring)
    following: list[int | None] = [None] * (2 * size)
    for place in range(2 * size - 2, -1, -1):
        is_other = answers[(place + 1) % size] != answers[place % size]
        following[place] = (place + 1) % size if is_other else following[place + 1]
    return {ring[place].id: ring[donor].id for place, donor in enumerate(following[:size]) if donor is not None}
