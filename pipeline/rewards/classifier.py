"""Classifier: how likely a text classification checkpoint takes a completion for something, such as toxic."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.grading.records import RewardCompletion, RewardPrompt


def classifier(
    prompts: Sequence[RewardPrompt],
    completions: Sequence[RewardCompletion],
    *,
    checkpoint: str,
    label: str,
    batch_size: int = 32,
    max_tokens: int = 512,
) -> list[float]:
    """`classifier_reward` as a recipe asks for it. docs/checkers.md has the recipe."""
    texts = [completion.text for completion in completions]
    return classifier_reward(texts, checkpoint=checkpoint, label=label, batch_size=batch_size, max_tokens=max_tokens)


def classifier_reward(
    texts: Sequence[str], *, checkpoint: str, label: str, batch_size: int = 32, max_tokens: int = 512
) -> list[float]:
    """Minus the probability of a label for each text, in [-1, 0]; a negative weight makes a reward of it.

    The probability is a softmax over the labels, or a sigmoid where the checkpoint has one label, or several that do
    not exclude each other (`problem_type: multi_label_classification`). A text without tokens has 0.

    Args:
        checkpoint: directory (or name) of a Hugging Face checkpoint for sequence classification; loaded once a process.
        label: one of its `id2label`, by name.
        batch_size: texts in a pass.
        max_tokens: longer texts are cut at the end.

    Raises:
        ValueError: the checkpoint has no such label.
    """
    tokenizer, model = _loaded(checkpoint)
    labels = {str(name).casefold(): int(index) for index, name in model.config.id2label.items()}
    if label.casefold() not in labels:
        raise ValueError(f"label={label!r}: {checkpoint} has {', '.join(map(str, model.config.id2label.values()))}")
    rewards = [0.0] * len(texts)
    rows = [row for row, text in enumerate(texts) if text.strip()]
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        inputs = tokenizer(
            [texts[row] for row in batch], padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
        )
        with torch.inference_mode():
            logits: Tensor = model(**inputs.to(model.device)).logits.float()
        is_several = model.config.problem_type == "multi_label_classification" or logits.shape[1] == 1
        probabilities = (logits.sigmoid() if is_several else logits.softmax(dim=1))[:, labels[label.casefold()]]
        for row, probability in zip(batch, probabilities.tolist(), strict=True):
            rewards[row] = -probability
    return rewards


@functools.lru_cache(maxsize=4)
def _loaded(checkpoint: str) -> tuple[Any, Any]:
    # Seconds of imports, for those who have a classifier.
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model: Any = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    return AutoTokenizer.from_pretrained(checkpoint), model.eval()
