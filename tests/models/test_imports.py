"""What a worker's process imports."""

from __future__ import annotations

import subprocess
import sys


def test_models_come_without_scipy_which_is_there_for_whoever_asks_afterwards() -> None:
    program = """
import sys
from pipeline.models.imports import import_modeling
import_modeling()
from transformers.utils import is_scipy_available
print("transformers.modeling_utils" in sys.modules, "scipy" in sys.modules, is_scipy_available())
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "True False True\n"
