"""A tiny classifier, built here, whose verdict is set by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from pipeline.rewards.classifier import classifier_reward

WORDS = ["[PAD]", "[UNK]", "good", "bad"]


def _checkpoint(directory: Path, bias: list[float], **config: Any) -> str:
    """A classifier that says what its bias says, whatever it reads."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(directory)
    names = {index: f"label{index}" for index in range(len(bias))}
    settings = BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, id2label=names, label2id={name: index for index, name in names.items()}, **config,
    )  # fmt: skip
    model = BertForSequenceClassification(settings)
    torch.nn.init.zeros_(model.classifier.weight)
    model.classifier.bias.data = torch.tensor(bias)
    model.save_pretrained(directory)
    return str(directory)


def test_the_reward_is_minus_the_probability_of_the_label(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, [0.0, 1.0986123])  # ln 3: a quarter and three quarters
    texts = ["good", "bad bad", " ", "good " * 50]
    assert classifier_reward(texts, checkpoint=checkpoint, label="LABEL1", batch_size=2, max_tokens=8) == pytest.approx(
        [-0.75, -0.75, 0.0, -0.75], abs=1e-5
    )
    assert classifier_reward(["good"], checkpoint=checkpoint, label="label0") == pytest.approx([-0.25], abs=1e-5)
    with pytest.raises(ValueError, match=r"label='toxic': .* has label0, label1"):
        classifier_reward(["good"], checkpoint=checkpoint, label="toxic")


def test_labels_that_do_not_exclude_each_other_have_a_probability_each(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, [1.0986123, 1.0986123], problem_type="multi_label_classification")
    assert classifier_reward(["bad"], checkpoint=checkpoint, label="label0") == pytest.approx([-0.75], abs=1e-5)
