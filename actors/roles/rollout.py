"""Rollout workers: each holds a whole copy of the policy and samples completions for its share of the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from actors.engine.place import Place
from actors.engine.weights import Weights
from actors.fleet.worker import Worker
from actors.roles.encoder import PromptRef, fetch_encoded, own_towers
from pipeline.config import FROZEN, Sampling
from pipeline.config import Rollout as RolloutSettings
from pipeline.generation.generate import generate, sample_seed
from pipeline.generation.stopping import before_stop
from pipeline.models.batch import collate_prompts
from pipeline.models.checkpoint import load_policy
from pipeline.models.parts import set_parts
from pipeline.models.processing import load_processor
from pipeline.models.quantisation import is_quantised
from pipeline.models.tokens import end_ids, pad_id
from pipeline.parity import Sight, sights
from pipeline.records import Completion, Rollout


class RolloutWorker(Worker):
    """Samples groups of completions; its weights carry a version that every completion keeps."""

    settings: RolloutSettings
    keeps_weights = False

    def setup(self, place: Place, path: Path) -> None:
        """Loads the weights of a checkpoint."""
        trust = self.recipe.model.trust_remote_code
        self._device = place.torch_device
        self._tokenizer: Any = load_processor(path, trust_remote_code=trust).tokenizer
        self.load(path)

    def load(self, path: Path) -> None:
        """Takes the weights of another checkpoint with the same tokenizer; the version starts again at 0."""
        recipe = self.recipe.model
        policy = load_policy(path, dtype=recipe.dtype, trust_remote_code=recipe.trust_remote_code)
        parts = FROZEN if is_quantised(policy.decoder.model) else self.recipe.rlhf.policy.parts
        set_parts(policy, parts, field="rlhf.policy.parts")
        self._live = own_towers(self.recipe, parts, policy.decoder.architecture)
        self._policy = policy.to(self._device).eval()
        self._end_ids = end_ids(self._tokenizer, path)
        self._version = 0

    def update_weights(self, weights: Weights) -> int:
        """Takes the policy's weights of a version, of an older one too where a step is repeated; returns it."""
        parameters = dict(self._policy.named_parameters())
        with torch.no_grad():
            for name, array in weights.parameters.items():
                # Ray's arrays are read-only views: the copy into the parameter is the only one made.
                parameters[name].copy_(torch.tensor(array))
        self._version = weights.version
        return self._version

    def generate(
        self, prompts: Sequence[PromptRef], sampling: Sampling, *, group_size: int, step: int
    ) -> list[Rollout]:
        """Samples a group for each prompt. Seeds come from run, step, prompt and sample, whichever worker it is."""
        size = self.settings.batch_size
        batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        return [rollout for batch in batches for rollout in self._generate(batch, sampling, group_size, step)]

    def _generate(self, prompts: Sequence[PromptRef], sampling: Sampling, group_size: int, step: int) -> list[Rollout]:
        seed = self.recipe.run.seed
        encoded = fetch_encoded(prompts, self._live, within_s=self.recipe.cluster.deadlines.fetch_s)
        repeats = 1 if self.recipe.model.share_prefix else group_size
        batch = collate_prompts([prompt for prompt in encoded for _ in range(repeats)], pad_id=pad_id(self._tokenizer))
        samples = generate(
            self._policy,
            batch.to(self._device),
            group_size=group_size // repeats,
            seeds=[sample_seed(seed, step, prompt.id, index) for prompt in prompts for index in range(group_size)],
            temperature=sampling.temperature,
            max_new_tokens=sampling.max_new_tokens,
            end_ids=self._end_ids,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            stop=sampling.stop,
            decode=self._decode,
        )
        completions = [
            Completion(
                sample.token_ids,
                sample.behaviour_logprobs,
                sample.finish_reason,
                self._version,
                before_stop(self._decode(sample.token_ids.tolist()), sampling.stop).strip(),
                sample.raw_logprobs,
            )
            for sample in samples
        ]
        return [
            Rollout(prompt.id, tuple(completions[row * group_size : (row + 1) * group_size]))
            for row, prompt in enumerate(prompts)
        ]

    def sights(self, prompts: Sequence[PromptRef]) -> list[Sight]:
        """What generation runs for each prompt."""
        encoded = fetch_encoded(prompts, self._live, within_s=self.recipe.cluster.deadlines.fetch_s)
        return sights(encoded, collate_prompts(encoded, pad_id=pad_id(self._tokenizer)))

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def token_texts(self, token_ids: Sequence[Sequence[int]]) -> list[list[str]]:
        """Each token's own text, for reports."""
        return [[self._tokenizer.decode([token]) for token in row] for row in token_ids]
