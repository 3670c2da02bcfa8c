"""Where text becomes learned ids and ids end a text: every end token ends, and no beginning lies in the middle."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig

from pipeline.config import Dtype, MediaLimits
from pipeline.models import processing
from pipeline.models.checkpoint import load_model
from pipeline.models.processing import PromptProcessor, load_processor
from pipeline.models.tokens import answer_ids, beginning, end_ids, end_turns, pad_id
from pipeline.records import Message, Prompt


class Tokens:
    """A tokenizer with these special ids, of which a text is its letters' places in the alphabet."""

    def __init__(self, eos: int | None = 2, pad: int | None = 3):
        self.eos_token_id, self.pad_token_id = eos, pad
        self.init_kwargs: dict[str, str] = {}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = [ord(letter) - ord("a") + 10 for letter in text]
        return [1, *ids, 2] if add_special_tokens else ids


@pytest.mark.parametrize(
    ("own", "named", "all_of_them"),
    [
        (2, None, [2]),
        (2, 2, [2]),
        (2, 5, [2, 5]),
        (2, [5, 3, 2], [2, 3, 5]),  # 3 pads batches too, and where it is sampled it ends a text
        (None, [7], [7]),
        (0, 5, [0, 5]),
    ],
)
def test_all_end_tokens_of_tokenizer_and_checkpoint_end_a_completion(
    tmp_path: Path, own: int | None, named: int | list[int] | None, all_of_them: list[int]
) -> None:
    GenerationConfig(eos_token_id=named, pad_token_id=3).save_pretrained(tmp_path)
    assert end_ids(Tokens(own), tmp_path) == all_of_them


def test_a_checkpoint_without_a_generation_config_has_the_tokenizers_end_token(tmp_path: Path) -> None:
    assert end_ids(Tokens(), tmp_path) == [2]
    with pytest.raises(ValueError, match="neither the tokenizer nor generation_config"):
        end_ids(Tokens(None), tmp_path)


def test_turns_end_as_the_chat_template_ends_them_whatever_the_tokenizers_end_token(
    tiny_vl_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_vl_checkpoint, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "<|endoftext|>"}))
    (tmp_path / "model" / "generation_config.json").unlink(missing_ok=True)
    tokenizer = load_processor(tmp_path / "model").tokenizer
    assert tokenizer.convert_ids_to_tokens(answer_ids(tokenizer, "7")) == ["7", "<|im_end|>"]
    ends = tokenizer.convert_ids_to_tokens(end_ids(tokenizer, tmp_path / "model"))
    assert sorted(ends) == ["<|endoftext|>", "<|im_end|>"]


def test_where_the_chat_template_ends_no_turn_the_tokenizers_end_token_does(tiny_vl_checkpoint: Path) -> None:
    processor = load_processor(tiny_vl_checkpoint)
    processor.tokenizer.eos_token = "<|endoftext|>"
    processor.chat_template = "{% for turn in messages %}{{ turn.role }}: {{ turn.content[0].text }}\n{% endfor %}"
    end_turns(processor)
    assert processor.tokenizer.eos_token == "<|endoftext|>"


def test_an_answer_has_its_own_tokens_and_one_end() -> None:
    assert answer_ids(Tokens(), "ab") == [10, 11, 2]
    with pytest.raises(ValueError, match="no end token to teach; name eos_token"):
        answer_ids(Tokens(None), "ab")


def test_any_token_pads() -> None:
    assert (pad_id(Tokens(pad=3)), pad_id(Tokens(pad=None))) == (3, 0)


@pytest.mark.parametrize("in_template", [False, True])
def test_a_prompt_begins_once_and_has_no_end_whatever_its_tokenizer_adds(
    tiny_vl_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, in_template: bool
) -> None:
    prompt = Prompt(id="a", task="", messages=(Message("user", "What digit is this?"),), media=(), answer="7")
    model, _ = load_model(tiny_vl_checkpoint, dtype=Dtype.FLOAT32, trust_remote_code=False)
    limits: Any = {"limits": MediaLimits(), "max_prompt_tokens": 512, "trust_remote_code": False}
    plain = PromptProcessor(path=tiny_vl_checkpoint, model=model, **limits)(prompt).input_ids.tolist()

    processor = load_processor(tiny_vl_checkpoint)
    tokenizer = processor.tokenizer
    tokenizer.bos_token = bos = tokenizer.pad_token
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (bos, tokenizer.eos_token)]
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A {tokenizer.eos_token}", special_tokens=ends
    )
    assert beginning(tokenizer) == bos
    if in_template:
        processor.chat_template = bos + processor.chat_template
    monkeypatch.setattr(processing, "load_processor", lambda *_, **__: processor)
    ids = PromptProcessor(path=tiny_vl_checkpoint, model=model, **limits)(prompt).input_ids.tolist()
    assert ids == [tokenizer.bos_token_id, *plain]
    assert answer_ids(tokenizer, "7") == [*tokenizer.encode("7")[1:-1], tokenizer.eos_token_id]
