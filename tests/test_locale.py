"""UTF-8 everywhere: under a locale that knows ASCII alone, what is read, written and printed is the same."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = "übung 演示"


def under_ascii(program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a program under the locale C, without the UTF-8 that Python would choose there by itself."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONIOENCODING", None)
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, timeout=240)


def test_recipes_arguments_and_files_are_utf_8_and_printing_never_stops(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"# 配方\nmodel: {{path: /m}}\nrun: {{name: {NAME}}}\n", encoding="utf-8")
    program = """
        from jobs import command
        from pipeline.data.ingest import card
        from pipeline.tracking import Tracker

        def run(recipe):
            (task,) = recipe.prepare.tasks
            command.record_stage(recipe, task, 1.0)
            assert command.read_stages(recipe) == {task: 1.0}
            counts = {"rows": {}, "refused": {}, "left_out": {}, "tables": {}, "without_answer": {}, "datasets": {}}
            sizes = {"rows_read": 1, "num_tokens": None, "num_answer_tokens": None, "seconds": 0.0, "seed": 0}
            summary = {**counts, **sizes, "tasks": {task: {"train": 1}}, "modalities": {}, "limits": {}}
            card.draw = lambda *_: None
            card.write(recipe.run.directory, {**summary, "settings": {"steps": []}}, None)
            assert task in card.read(str(recipe.run.directory))["tasks"]
            with Tracker(recipe.run, stage="sft") as tracker:
                tracker.samples(0, [{"text": recipe.run.name}])
            print(recipe.run.name)

        command.connect = lambda **_: None
        command.main(run, "a stage \\u6f14")
    """
    arguments = ["--config", str(recipe), f"run.directory={tmp_path}", "prepare.tasks=[问答]", "run.sinks=[console]"]
    done = under_ascii(program, *arguments)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads((tmp_path / "stages.json").read_bytes()) == {"问答": 1.0}
    assert json.loads((tmp_path / "samples.jsonl").read_bytes())["text"] == NAME
    assert "问答" in (tmp_path / "README.md").read_bytes().decode()
    assert done.stdout.decode("ascii").strip() == NAME.encode("ascii", "backslashreplace").decode()
    assert under_ascii(program, "--help").returncode == 0
    refused = under_ascii(program, *arguments[:2], "run.directory=/tmp/演示")
    assert refused.returncode == 1
    assert b"run.directory: " in refused.stderr and b"set PYTHONUTF8=1" in refused.stderr
