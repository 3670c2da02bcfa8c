"""A rater that is a script: it knows the reference answer and errs at a stated rate. Named so wherever it is shown."""

from __future__ import annotations

import random

from pipeline.records import Completion, Preference, RaterKind, Rollout
from pipeline.rewards.exact_match import exact_match
from pipeline.rewards.wer import wer


class ScriptedRater:
    """Prefers the right answer, then the one with fewer wrong words; between equally good ones it does not choose.

    Args:
        error_rate: probability of preferring the worse one.
    """

    def __init__(self, *, error_rate: float, seed: int):
        self.error_rate = error_rate
        self._seed = seed

    @property
    def name(self) -> str:
        """How tables and reports call this rater."""
        return f"scripted (error rate {self.error_rate:g})"

    def compare(self, rollout: Rollout, answer: str) -> Preference | None:
        """The best and the worst completion of a group as a preference; None where all are equally good."""
        ranked = sorted(rollout.completions, key=lambda completion: self._quality(completion, answer))
        chosen, rejected = ranked[-1], ranked[0]
        if self._quality(chosen, answer) == self._quality(rejected, answer):
            return None
        # Its error on a prompt does not depend on which prompts came before.
        if random.Random(f"{self._seed}:{rollout.prompt_id}").random() < self.error_rate:
            chosen, rejected = rejected, chosen
        return Preference(
            prompt_id=rollout.prompt_id,
            chosen_ids=tuple(chosen.token_ids.tolist()),
            rejected_ids=tuple(rejected.token_ids.tolist()),
            chosen=chosen.text,
            rejected=rejected.text,
            rater=self.name,
            rater_kind=RaterKind.SCRIPTED,
            error_rate=self.error_rate,
        )

    def _quality(self, completion: Completion, answer: str) -> tuple[float, float]:
        return exact_match(completion.text, answer), -wer(completion.text, answer)
