"""A judge from a checkpoint of one's own: the same processing, towers and generation as the rollout's, its own weights.

With `reading=choice` nothing is sampled: the probabilities of the possible verdicts, as completions of the chat, are
compared, which gives a number whatever the model would have written (as G-Eval does, Liu et al. 2023, arXiv
2303.16634).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.config import JudgeReward, Reading, Recipe
from pipeline.data.schema import RowError
from pipeline.generation.generate import generate, sample_seed
from pipeline.grading.function import FunctionFailed
from pipeline.grading.judge import Chat, Said
from pipeline.grading.records import Failure
from pipeline.models.batch import collate_completions, collate_prompts
from pipeline.models.checkpoint import load_policy
from pipeline.models.processing import PromptProcessor
from pipeline.models.tokens import end_ids, pad_id
from pipeline.records import ProcessedPrompt, Prompt


class Checkpoint:
    """A chat model in this process."""

    def __init__(self, settings: JudgeReward, recipe: Recipe, device: torch.device):
        self._settings, self._recipe, self._device = settings, recipe, device
        self._policy: Any = None
        self.counts: Counter[str] = Counter()

    def load(self) -> None:
        """Loads the checkpoint. Raises FunctionFailed where that fails."""
        path, recipe = self._settings.checkpoint, self._recipe
        assert path is not None
        if self._policy is not None:
            return
        if not (path / "config.json").is_file():
            raise FunctionFailed(Failure.EXCEPTION, f"judge.checkpoint={path}: no checkpoint there")
        trust = recipe.model.trust_remote_code
        try:
            policy = load_policy(path, dtype=recipe.model.dtype, trust_remote_code=trust)
            self._processor = PromptProcessor(
                path=path,
                model=policy.decoder.model,
                limits=recipe.data.limits,
                max_prompt_tokens=self._settings.max_prompt_tokens,
                trust_remote_code=trust,
            )
        except (ValueError, OSError) as error:
            raise FunctionFailed(Failure.EXCEPTION, f"judge.checkpoint={path}: {error}") from None
        policy.decoder.share_prefix = recipe.model.share_prefix
        self._policy = policy.to(self._device).eval()
        self._tokenizer: Any = self._processor.processor.tokenizer
        self._end_ids = end_ids(self._tokenizer, path)

    def close(self) -> None:
        """Lets its weights go."""
        self._policy = None

    @torch.no_grad()
    def ask(self, chats: Sequence[Chat]) -> list[Said]:
        """One answer a chat."""
        self.load()
        self.counts = Counter(calls=len(chats))
        said: list[Said] = []
        processed: list[tuple[int, ProcessedPrompt]] = []
        for index, chat in enumerate(chats):
            try:
                prompt = Prompt(chat.id, "", chat.messages, chat.media, None)
                processed.append((index, self._processor(prompt)))
                said.append(Said())
            except RowError as error:
                said.append(Said(failure=Failure.PROMPT_REFUSED, detail=f"{chat.id}: {error}"))
        # Pictures of many chats at once would be large: one chat's verdicts are a group already.
        for index, prompt in processed:
            said[index] = self._answered(chats[index], prompt)
        return said

    def _answered(self, chat: Chat, prompt: ProcessedPrompt) -> Said:
        batch = collate_prompts([prompt], pad_id=pad_id(self._tokenizer)).to(self._device)
        if self._settings.reading is Reading.CHOICE:
            ids = [np.array(self._tokenizer.encode(each, add_special_tokens=False), np.int64) for each in chat.choices]
            completions = collate_completions([ids], pad_id=pad_id(self._tokenizer)).to(self._device)
            logprobs, _ = self._policy(batch, completions, with_entropy=False)
            shares = logprobs.float().sum(1).softmax(0).tolist()
            return Said(probabilities=dict(zip(chat.choices, shares, strict=True)), prompt_tokens=len(prompt.input_ids))
        (sample,) = generate(
            self._policy,
            batch,
            group_size=1,
            seeds=[sample_seed(self._recipe.run.seed, 0, chat.id, chat.seed)],
            temperature=self._settings.temperature,
            max_new_tokens=self._settings.max_new_tokens,
            end_ids=self._end_ids,
        )
        return Said(
            self._tokenizer.decode(sample.token_ids, skip_special_tokens=True),
            prompt_tokens=len(prompt.input_ids),
            completion_tokens=len(sample.token_ids),
        )
