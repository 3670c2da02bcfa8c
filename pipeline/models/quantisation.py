"""Weights in 8 bits, for deployment: bitsandbytes' LLM.int8(), in a directory that `from_pretrained` loads.

What is quantised are the linear maps of the language model, a scale a row; their inputs are while they run, but for
outliers (Dettmers et al. 2022, arXiv 2208.07339). Towers, embeddings and the vocabulary head stay as they are: they are
few, and what is lost there is lost for every token.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.config import ConfigError, Dtype
from pipeline.models.architectures import Architecture
from pipeline.models.checkpoint import DTYPES, FINGERPRINT_FILE, HEAD_FILE, load_model

MISSING = "exporting int8 weights needs bitsandbytes; install the extra `int8`"


@dataclass(frozen=True)
class Quantised:
    """What became of a checkpoint: how many weights are int8, of how many, and its bytes before and after."""

    num_int8: int
    num_weights: int
    source_bytes: int
    target_bytes: int


def quantise(source: Path, target: Path, *, dtype: Dtype, trust_remote_code: bool) -> Quantised:
    """Writes a checkpoint with int8 weights, all at once.

    Raises:
        ConfigError: bitsandbytes is missing, or the checkpoint is a reward model's or a critic's.
    """
    if find_spec("bitsandbytes") is None:
        raise ConfigError(MISSING)
    from transformers import AutoProcessor, BitsAndBytesConfig

    if (source / HEAD_FILE).is_file():
        raise ConfigError(f"{source}: a reward model or a critic; export.checkpoint is a policy's, such as rlhf")
    model, architecture = load_model(source, dtype=dtype, trust_remote_code=trust_remote_code)
    chosen = _language_maps(model, architecture)
    num_weights = sum(each.numel() for each in model.parameters())
    num_int8 = sum(model.get_submodule(name).weight.numel() for name in chosen)
    left = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in chosen]
    model = type(model).from_pretrained(
        source,
        dtype=DTYPES[dtype],
        quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=left),
        trust_remote_code=trust_remote_code,
        local_files_only=True,
    )
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code).save_pretrained(partial)
    if (source / FINGERPRINT_FILE).is_file():
        # The towers are the same.
        shutil.copy2(source / FINGERPRINT_FILE, partial / FINGERPRINT_FILE)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return Quantised(num_int8, num_weights, _weight_bytes(source), _weight_bytes(target))


def is_quantised(model: Any) -> bool:
    """Whether a transformers model was loaded with weights in fewer bits, with which it can answer and not learn."""
    return bool(getattr(model, "is_quantized", False))


def _language_maps(model: Any, architecture: Architecture) -> set[str]:
    """The names of the linear maps between embeddings and vocabulary head."""
    ends = {id(model.get_output_embeddings()), id(model.get_input_embeddings())}
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in ends and not architecture.is_tower(name)
    }


def _weight_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))
