"""What a newcomer's first minutes do not show: progress bars of one file, and warnings of what is meant."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from jobs import command
from pipeline.models import tiny


@pytest.mark.parametrize(
    ("device", "needs_ray", "told", "copies"),
    [("cpu", True, "cpu", True), ("auto", True, None, False), ("cpu", False, "cpu", False)],
)
def test_a_recipe_on_cpus_tells_deepspeed_before_it_looks_for_a_gpu_and_has_its_workers_copied(
    device: str, needs_ray: bool, told: str | None, copies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "")  # so that it is put back
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    asked: list[bool] = []
    monkeypatch.setattr(command, "connect", lambda *, copies: asked.append(copies))
    monkeypatch.setattr(sys, "argv", ["jobs.prepare", f"cluster.device={device}"])
    seen: list[str | None] = []
    command.main(lambda _: seen.append(os.environ.get("DS_ACCELERATOR")), "A stage.", needs_ray=needs_ray)
    assert (seen, asked) == ([told], [copies])


def test_building_a_tiny_checkpoint_draws_no_progress_bar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    tiny.build(tmp_path, architecture="qwen2_5_vl", corpus=["a digit"], seed=0)
    assert "%|" not in capfd.readouterr().err
