"""The tiny checkpoint: an ordinary Hugging Face directory, small, and the same for the same seed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor

from pipeline.config import ConfigError, load_recipe
from pipeline.models import tiny

CORPUS = ["What digit is this?", "red circle moves left", *(str(number) for number in range(100))]


@pytest.fixture(params=["tiny_checkpoint", "tiny_vl_checkpoint"], ids=["omni", "vl"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("automatic", [AutoModelForMultimodalLM, AutoModelForImageTextToText])
def test_the_automatic_classes_load_it_without_code_of_its_own(checkpoint: Path, automatic: type) -> None:
    model, loading = automatic.from_pretrained(
        checkpoint, trust_remote_code=False, local_files_only=True, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert 600_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 3_000_000
    assert model.__class__.__module__.startswith("transformers.")
    assert not list(checkpoint.glob("*.py"))


def test_its_processor_knows_the_placeholders_and_pads_on_the_left(checkpoint: Path) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False, local_files_only=True)
    tokenizer = processor.tokenizer
    for token in (*tiny.SPECIAL_TOKENS.values(), tiny.START, tiny.END, tiny.PAD):
        assert len(tokenizer(token)["input_ids"]) == 1
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side) == (tiny.END, tiny.PAD, "left")
    batch = tokenizer(["a", "What digit is this?"], padding=True)
    assert batch["input_ids"][0][0] == tokenizer.pad_token_id


def test_the_chat_template_ends_with_the_turn_of_the_assistant(checkpoint: Path) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    ]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_bos|><|IMAGE|><|vision_eos|>What is it?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("text", ["7 plus 5 is 12", "Grüße, 世界 🙂\n\tx", "<image>", "  two  spaces "])
def test_any_text_survives_the_tokenizer(checkpoint: Path, text: str) -> None:
    tokenizer = AutoProcessor.from_pretrained(checkpoint).tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_configuration_has_no_token_beyond_the_vocabulary(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    tokenizer = AutoProcessor.from_pretrained(checkpoint).tokenizer
    assert len(tokenizer) <= config["text_config"]["vocab_size"] == tiny.VOCAB_SIZE
    assert config["text_config"]["eos_token_id"] == tokenizer.eos_token_id


@pytest.mark.parametrize("architecture", sorted(tiny.BUILDERS))
def test_the_seed_alone_decides_the_weights(tmp_path: Path, architecture: str) -> None:
    weights = {}
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        torch.manual_seed(99)  # what was drawn before does not matter
        torch.rand(seed)
        num_parameters = tiny.build(tmp_path / name, architecture=architecture, corpus=CORPUS, seed=seed)
        weights[name] = load_file(tmp_path / name / "model.safetensors")
        assert sum(tensor.numel() for tensor in weights[name].values()) == num_parameters
    assert weights["one"].keys() == weights["again"].keys()
    assert all(torch.equal(tensor, weights["again"][name]) for name, tensor in weights["one"].items())
    assert any(not torch.equal(tensor, weights["other"][name]) for name, tensor in weights["one"].items())
    for file in ("config.json", "tokenizer.json"):
        assert (tmp_path / "one" / file).read_text() == (tmp_path / "again" / file).read_text()


@pytest.mark.parametrize("architecture", sorted(tiny.BUILDERS))
def test_half_the_width_is_at_most_half_the_parameters_with_the_same_tokens(tmp_path: Path, architecture: str) -> None:
    sizes = {
        width: tiny.build(tmp_path / str(width), architecture=architecture, corpus=CORPUS, seed=0, hidden=width)
        for width in (128, 64)
    }
    assert 2 * sizes[64] <= sizes[128]
    picture = np.zeros((32, 48, 3), np.uint8)
    made = [AutoProcessor.from_pretrained(tmp_path / str(width)) for width in sizes]
    ids = [each(text=["red <|IMAGE|> 7 Grüße"], images=[picture])["input_ids"][0] for each in made]
    assert list(ids[0]) == list(ids[1])
    small = AutoModelForImageTextToText.from_pretrained(tmp_path / "64", local_files_only=True)
    inputs = made[1](text=["red <|IMAGE|>"], images=[picture], return_tensors="pt")
    assert small(**inputs).logits.isfinite().all()


@pytest.mark.parametrize(("width", "message"), [(100, "multiple of 64"), (0, "greater than or equal to 64")])
def test_a_width_that_heads_do_not_divide_is_an_error_of_the_recipe(width: int, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.tiny_hidden: Input should be (a )?{message} \(got {width}\)"):
        load_recipe(None, [f"model.tiny_hidden={width}"])


def test_an_unknown_architecture_is_an_error_that_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"model\.tiny_architecture='gpt': use one of qwen2_5_omni_thinker, qwen2_5_vl"
    ):
        tiny.build(tmp_path / "model", architecture="gpt", corpus=CORPUS, seed=0)
    assert not (tmp_path / "model").exists()
