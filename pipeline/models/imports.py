"""Transformers' models without what none of ours runs."""

from __future__ import annotations

import importlib
from typing import Any

TINY = (
    "transformers.models.auto.processing_auto",
    "transformers.models.qwen2_5_omni.modeling_qwen2_5_omni",
    "transformers.models.qwen2_5_omni.processing_qwen2_5_omni",
)
"""What the default tiny model is made of."""


def import_modeling() -> None:
    """Imports `transformers.modeling_utils`, which takes seconds.

    Without SciPy, a sixth of them: it is for losses of object detection alone, which stay without it in this process.
    """
    utils: Any = importlib.import_module("transformers.utils")
    is_available = utils.is_scipy_available
    utils.is_scipy_available = lambda: False
    try:
        importlib.import_module("transformers.loss.loss_utils")
    finally:
        utils.is_scipy_available = is_available
    importlib.import_module("transformers.modeling_utils")
