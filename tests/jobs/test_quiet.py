"""What a newcomer's first minutes do not show: progress bars of one file, and warnings of what is meant."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from jobs import command
from pipeline.models import tiny


@pytest.mark.parametrize(("device", "told"), [("cpu", "cpu"), ("auto", None)])
def test_deepspeed_is_told_of_a_recipe_on_cpus_before_it_looks_for_a_gpu(
    device: str, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "")  # so that it is put back
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setattr(command, "connect", lambda: None)
    monkeypatch.setattr(sys, "argv", ["jobs.prepare", f"cluster.device={device}"])
    seen: list[str | None] = []
    command.main(lambda recipe: seen.append(os.environ.get("DS_ACCELERATOR")), "A stage.")
    assert seen == [told]


def test_building_a_tiny_checkpoint_draws_no_progress_bar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    tiny.build(tmp_path, architecture="qwen2_5_vl", corpus=["a digit"], seed=0)
    assert "%|" not in capfd.readouterr().err
