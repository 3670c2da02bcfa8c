"""docs/rewards.md: its files and commands, as a reader would write them into an empty directory."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.config import Sending, ServerReward, load_recipe
from pipeline.grading.records import Failure
from pipeline.grading.server import Server
from pipeline.tracking import read_metrics
from tests.grading.questions import picture, question, sound

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
FILES = {name: text for name, text in re.findall(r"```(?:python|yaml) (\S+)\n(.*?)```", PAGE, re.DOTALL)}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_lead_from_an_empty_directory_to_a_trained_model(tmp_path: Path) -> None:
    for name in ("brevity.py", "recipe.yaml"):
        (tmp_path / name).write_text(FILES[name])
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # Whoever reads the page has no Ray yet; the one that other tests share has no room for it.
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(Path(__file__).parents[2]), "RAY_ADDRESS": "local"}
    for command in commands.splitlines():
        ended = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    rows = read_metrics(tmp_path / "run" / "metrics")["rlhf"]
    assert [row["step"] for row in rows] == [0, 1]
    assert all(-3 < row["reward/brevity"] == row["reward/mean"] < 1 for row in rows)


def test_the_server_of_the_page_answers_and_takes_uploads(tmp_path: Path) -> None:
    assert len(FILES["server.py"].splitlines()) <= 45
    (tmp_path / "server.py").write_text(FILES["server.py"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(tmp_path / "server.py"), str(port)], stderr=subprocess.DEVNULL)
    try:
        given = ServerReward(url=f"http://127.0.0.1:{port}/reward", media=Sending.BY_HASH, retries=0, max_failures=1000)
        server = Server("mine", given)
        batch = [question("yes", "no", content="<image><audio>", media=(picture(), sound())), question("yes", id="b")]
        until = time.monotonic() + 30
        while (found := server.grade(batch)).failures[0] is Failure.UNREACHABLE:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert found.values.tolist() == [1.5, 1.0, 0.5]
    finally:
        process.kill()
        process.wait()


def test_the_recipes_of_the_page_can_be_read(tmp_path: Path) -> None:
    recipes = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(recipes) == 3
    for text in recipes:
        file = tmp_path / "recipe.yaml"
        file.write_text("rlhf:\n" + "".join(f"  {line}\n" for line in text.splitlines()))
        assert load_recipe(file).rlhf.outside_rewards


def test_the_page_names_every_reason() -> None:
    table = PAGE.partition("## What fails")[2].partition("## A server")[0]
    assert all(f"`{failure}`" in table for failure in Failure)
