"""What is decided on: contexts as arrays of fixed shape, with what each action would bring.

rows, wishes or logs -> Decision -> DecisionTable of raw modalities -> (features.py) of cached features -> one file
                                                                       -> environment.py, offline learning, estimates
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from pipeline.config import ConfigError
from pipeline.models.fusion.samples import Modality, Preprocessor, Sample
from pipeline.records import Prompt

PRESENT = "present"
"""The observation of which modalities there are."""
RAW = "raw"
"""The encoder key of a table whose inputs went through no encoder."""
_INPUT = "input/"


@dataclass(frozen=True)
class Decision:
    """One context and what each action brings there.

    rewards: float32 [K], the expected reward of each action; NaN where nobody knows it.
    group: for the fairness table. hidden: modalities of `sample` that are seen only after asking.
    """

    sample: Sample
    rewards: NDArray[np.float32]
    group: str = ""
    hidden: tuple[Modality, ...] = ()


@dataclass(frozen=True)
class Logged:
    """What a logging policy did in each row: actions int64 [N], propensities in (0, 1] and rewards, float32 [N].

    Raises:
        ConfigError: a propensity is no probability above 0.
    """

    actions: NDArray[np.int64]
    propensities: NDArray[np.float32]
    rewards: NDArray[np.float32]

    def __post_init__(self) -> None:
        wrong = ~((self.propensities > 0) & (self.propensities <= 1))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ConfigError(
                f"propensity={self.propensities[row]:g} in row {row} of the log: what was logged had a chance in "
                "(0, 1]; log the probability of the chosen action, or leave the row out"
            )


@dataclass(frozen=True)
class DecisionTable:
    """N decisions with K actions, ready to be observed.

    inputs: arrays [N, ...], one an input of the fusion model, raw or features, and `present` bool [N, M] in the order
        of `modalities`; zeros where a modality is absent.
    rewards: float32 [N, K], NaN where unknown. hidden: bool [N, M], seen only after asking.
    encoder_key: of the encoders that the features are from; `raw` where there are none.

    Raises:
        ConfigError: a row has no modality at all, or arrays differ in length.
    """

    ids: tuple[str, ...]
    inputs: Mapping[str, NDArray[Any]]
    rewards: NDArray[np.float32]
    groups: tuple[str, ...]
    modalities: tuple[str, ...]
    hidden: NDArray[np.bool_]
    encoder_key: str = RAW
    logged: Logged | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        lengths = {name: len(array) for name, array in self.inputs.items()}
        lengths |= {"rewards": len(self.rewards), "groups": len(self.groups), "hidden": len(self.hidden)}
        if self.logged is not None:
            lengths["logged"] = len(self.logged.actions)
        for name, length in lengths.items():
            if length != len(self.ids):
                raise ConfigError(f"{name}: {length} rows for {len(self.ids)} ids; give one row an id")
        if not len(self.ids):
            raise ConfigError("no decision at all: the split has no rows that can be used; use another one")
        blind = ~(self.inputs[PRESENT].astype(bool) & ~self.hidden).any(1)
        if blind.any():
            name = self.ids[int(np.argmax(blind))]
            raise ConfigError(
                f"row {name!r}: none of its modalities ({', '.join(self.modalities)}) is there; give it one of them, "
                "add one that it has to fusion.modalities, or leave the row out"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_actions(self) -> int:
        """K."""
        return int(self.rewards.shape[1])

    def rows(self, rows: Sequence[int] | NDArray[np.int64]) -> DecisionTable:
        """The table of these rows, in this order."""
        index = np.asarray(rows, np.int64)
        logged = self.logged
        if logged is not None:
            logged = Logged(logged.actions[index], logged.propensities[index], logged.rewards[index])
        return replace(
            self,
            ids=tuple(self.ids[row] for row in index),
            inputs={name: array[index] for name, array in self.inputs.items()},
            rewards=self.rewards[index],
            groups=tuple(self.groups[row] for row in index),
            hidden=self.hidden[index],
            logged=logged,
        )

    def save(self, path: Path) -> None:
        """Writes one safetensors file, complete or not at all."""
        arrays = {_INPUT + name: np.ascontiguousarray(array) for name, array in self.inputs.items()}
        arrays |= {"rewards": self.rewards, "hidden": self.hidden}
        if self.logged is not None:
            arrays |= {f"logged/{name}": array for name, array in vars(self.logged).items()}
        facts = {"ids": self.ids, "groups": self.groups, "modalities": self.modalities}
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        save_file(arrays, draft, {"facts": json.dumps(facts), "encoder_key": self.encoder_key})
        draft.replace(path)

    @classmethod
    def load(cls, path: Path, *, encoder_key: str | None = None) -> DecisionTable:
        """Reads what `save` wrote; with `encoder_key` only if the features are of these encoders.

        Raises:
            FileNotFoundError: there is no such file.
            ConfigError: the features are of other encoders.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no table of decisions here; `python -m jobs.decide` makes it")
        with safe_open(path, "np") as file:
            meta: dict[str, str] = file.metadata()
            arrays: dict[str, NDArray[Any]] = {
                name: file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
            }
        if encoder_key is not None and meta["encoder_key"] != encoder_key:
            raise ConfigError(
                f"{path}: encoder_key={meta['encoder_key']}, but these encoders have {encoder_key}: its features are "
                "of other encoders; delete the file, and they are computed anew"
            )
        facts = {name: tuple(values) for name, values in json.loads(meta["facts"]).items()}
        logged = None
        if "logged/actions" in arrays:
            logged = Logged(arrays["logged/actions"], arrays["logged/propensities"], arrays["logged/rewards"])
        return cls(
            inputs={name.removeprefix(_INPUT): array for name, array in arrays.items() if name.startswith(_INPUT)},
            rewards=arrays["rewards"],
            hidden=arrays["hidden"],
            encoder_key=meta["encoder_key"],
            logged=logged,
            **facts,
        )


def table_of(
    decisions: Sequence[Decision],
    preprocessor: Preprocessor,
    modalities: Sequence[Modality],
    *,
    logged: Logged | None = None,
) -> DecisionTable:
    """The decisions as arrays of raw modalities.

    Raises:
        ConfigError: decisions have different numbers of actions, or one has no modality of the model.
    """
    sizes = {len(each.rewards) for each in decisions}
    if len(sizes) > 1:
        raise ConfigError(f"rewards: K={sorted(sizes)} within one table; every decision has the same actions")
    seen = [preprocessor(each.sample) for each in decisions]
    hidden = [[modality in each.hidden for modality in modalities] for each in decisions]
    return DecisionTable(
        ids=tuple(each.sample.id for each in decisions),
        inputs={name: np.stack([each[name] for each in seen]) for name in (seen[0] if seen else {PRESENT: ()})},
        rewards=np.stack([each.rewards for each in decisions] or [np.zeros(0)]).astype(np.float32)[: len(decisions)],
        groups=tuple(each.group for each in decisions),
        modalities=tuple(modalities),
        hidden=np.array(hidden, bool).reshape(len(decisions), len(modalities)),
        logged=logged,
    )


def true_rewards(prompt: Prompt, actions: Sequence[str]) -> NDArray[np.float32]:
    """Task truth: float32 [K], 1 for the action that is the row's answer or one as right.

    Raises:
        ConfigError: no action is right.
    """
    right = {answer for answer in (prompt.answer, *prompt.accepted) if answer is not None}
    rewards = np.array([action in right for action in actions], np.float32)
    if not rewards.any():
        raise ConfigError(
            f"row {prompt.id!r}: answer {prompt.answer!r} is none of the {len(actions)} actions "
            f"({', '.join(actions[:12])}); add it to decide.actions, or leave the row out"
        )
    return rewards
