"""The rating page as a user starts it: on Ray Serve, with a replica that is killed while people rate."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import requests

from jobs.feedback import main
from pipeline.data.table import PreferenceTable, PromptTable
from pipeline.feedback.database import Database
from pipeline.feedback.exchange import jsonl
from pipeline.feedback.records import Candidate, Item, Judged, Judgement, JudgementKind, Task
from pipeline.feedback.store import FeedbackStore
from pipeline.records import Message, Prompt, RaterKind

pytestmark = pytest.mark.usefixtures("local_ray")


def job(*arguments: str) -> str:
    command = [sys.executable, "-m", "jobs.feedback", *arguments]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8", timeout=120).stdout


@contextmanager
def page(*overrides: str) -> Generator[tuple[str, str], None, None]:
    """The page's address, and the administrator's token."""
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-m", "jobs.feedback", "serve", *overrides]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, encoding="utf-8")
    try:
        assert server.stdout
        # Ray may say something before it.
        said = next(line for line in server.stdout if "#invitation=" in line)
        address, token = said.split(": ")[1].strip().split("/#invitation=")
        yield address, token
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


def insisted(ask: Any) -> requests.Response:
    """What a server answers that may be starting again meanwhile."""
    until = time.monotonic() + 60
    while True:
        try:
            found = ask()
            if found.status_code < 500:
                return found
        except requests.RequestException:
            pass
        assert time.monotonic() < until
        time.sleep(0.2)


def test_judgements_that_were_acknowledged_outlive_the_server_and_become_preferences(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = [f"run.directory={tmp_path}", f"feedback.port={port}", "feedback.second_rater_share=0"]
    store = FeedbackStore(Database(f"sqlite:///{tmp_path}/feedback/store.sqlite"), tmp_path / "feedback" / "media")
    store.database.migrate()
    store.offer(
        [
            Item(
                Task.PAIR,
                f"prompt-{number}",
                "digit",
                (Message("user", "Which digit?"),),
                (),
                (Candidate("seven", (1, 2)), Candidate("maybe seven", (3, 1, 2))),
                step=number,
            )
            for number in range(6)
        ]
    )
    with page(*given) as (address, admin_token):
        invitation = job("invite", "ada", *given).strip()
        assert invitation.startswith(f"{address}/#invitation=")
        session = requests.Session()
        token = invitation.partition("#invitation=")[2]
        csrf = session.post(f"{address}/api/login", json={"token": token}, timeout=20).json()["csrf"]
        for number in range(6):
            shown = insisted(lambda: session.get(f"{address}/api/next", timeout=20)).json()["presentation"]
            place = [each["text"] for each in shown["completions"]].index("seven")
            body = {"key": f"judgement-{number}", "presentation": shown["id"], "kind": "pair"}
            body |= {"content": {"chosen": place if number else None}}
            if number == 3:
                processes = psutil.process_iter(["cmdline"])
                replicas = [each for each in processes if "ServeReplica" in "".join(each.info["cmdline"] or [])]
                assert replicas
                for replica in replicas:
                    replica.kill()
            found = insisted(
                lambda body=body: session.post(
                    f"{address}/api/judgements", json=body, headers={"X-CSRF-Token": csrf}, timeout=20
                )
            )
            assert found.status_code == 200 and found.json()["num_judged"] == number + 1
        admin = requests.Session()
        assert admin.post(f"{address}/api/login", json={"token": admin_token}, timeout=20).status_code == 200
        summary = admin.get(f"{address}/api/admin/summary", timeout=20).json()
        assert summary["judgements"]["num"] == 6 and summary["items"]["done"] == 6
    assert re.search(r"6 judgements by 1 raters", job("preferences", *given))
    table = PreferenceTable(tmp_path / "preferences.parquet")
    rows = table.pairs()
    assert {(row.chosen, row.rater, row.rater_kind) for row in rows if not row.is_tie} == {
        ("seven", "ada", RaterKind.HUMAN)
    }
    assert sum(row.is_tie for row in rows) == 1
    assert {row.chosen_ids for row in rows if not row.is_tie} == {(1, 2)}
    job("forget", "ada", *given)
    assert {said.rater for each in store.judged() for said in each.judgements} == {None}
    store.database.close()


def test_judgements_leave_and_come_back_in_every_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(*arguments: str, run: str = "one") -> str:
        monkeypatch.setattr(sys, "argv", ["feedback", *arguments, f"run.directory={tmp_path / run}"])
        main()
        return capsys.readouterr().out

    candidates = (Candidate("seven", (1, 2)), Candidate("eight", (3, 2)))
    item = Item(Task.PAIR, "p", "digit", (Message("user", "Which?"),), (), candidates)
    said = [
        Judgement("key-one", item.id, "ada", JudgementKind.PAIR, {"chosen": 0}, 5.0),
        Judgement("key-two", item.id, "ada", JudgementKind.CORRECTION, {"place": 1, "text": "seven!"}, 6.0),
    ]
    source = tmp_path / "source.jsonl"
    jsonl.write(source, [Judged(item, tuple(said))])
    assert "2 judgements of 1 items are new" in ask("bring", str(source))
    assert "0 judgements of 1 items are new" in ask("bring", str(source))
    for form, names in {"jsonl": 2, "arena": 1, "preferences": 1, "label_studio": 2}.items():
        target = tmp_path / f"to_{form}"
        assert "1 items" in ask("export", str(target), f"--format={form}")
        file = next(target.glob("*.json")) if target.is_dir() else target
        assert f"{names} judgements of 1 items are new" in ask("bring", str(file), f"--format={form}", run=form)
    assert "1 items" in ask("export", str(tmp_path / "sft.parquet"), "--format=demonstrations")
    (row,) = PromptTable(str(tmp_path / "sft.parquet")).read_rows([0])
    assert isinstance(row, Prompt) and row.answer == "seven!"
    with pytest.raises(SystemExit, match="no rater is called"):
        ask("revoke", "nobody")
    with pytest.raises(SystemExit, match="nobody has judged"):
        ask("preferences", run="empty")
