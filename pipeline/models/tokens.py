"""The tokenizer where text becomes ids that are learned, or ids end a text: end tokens, beginnings, padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def end_turns(processor: Any) -> None:
    """Makes the token with which the chat template ends an answer the tokenizer's end token, which is learned behind
    answers and ends completions. Of many checkpoints it is another (`<|endoftext|>`, while turns end in `<|im_end|>`);
    where the template writes none, the tokenizer's own stays."""
    if processor.chat_template is None:
        return
    said = (("user", "?"), ("assistant", "7"))
    turns = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    _, _, behind = str(processor.apply_chat_template(turns, tokenize=False)).rpartition("7")
    added = (str(token) for token in processor.tokenizer.added_tokens_decoder.values())
    end = max((token for token in added if token and behind.lstrip().startswith(token)), key=len, default=None)
    if end is not None:
        processor.tokenizer.eos_token = end


def end_ids(tokenizer: Any, path: Path) -> list[int]:
    """The tokens that end a completion: the tokenizer's own (and what was its own, see `end_turns`), and all that the
    checkpoint's `generation_config.json` names, which for chat models are several (the end of a turn, of a text).

    Raises:
        ValueError: there is none, so that no completion would ever end.
    """
    from transformers import GenerationConfig

    named = GenerationConfig.from_pretrained(path).eos_token_id if (path / "generation_config.json").is_file() else None
    listed = named if isinstance(named, list) else [named]
    first = tokenizer.init_kwargs.get("eos_token")
    own = tokenizer.eos_token_id, None if first is None else tokenizer.convert_tokens_to_ids(str(first))
    found = sorted({int(each) for each in (*own, *listed) if each is not None})
    if not found:
        raise ValueError(f"{path}: neither the tokenizer nor generation_config.json names an end token (eos_token)")
    return found


def answer_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of an answer, the end token included. What the tokenizer puts around a text by itself (BOS, EOS) is
    left out: the answer goes on from a prompt, where a beginning would be one in the middle.

    Raises:
        ValueError: the tokenizer has no end token to teach.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token to teach; name eos_token in its tokenizer_config.json")
    return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]


def beginning(tokenizer: Any) -> str:
    """The token that the tokenizer puts before every text by itself (BOS); empty where it puts none."""
    begins = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    return str(tokenizer.bos_token) if begins else ""


def pad_id(tokenizer: Any) -> int:
    """What fills a batch. Masks say what is padding, so that any token does, an end token too."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
