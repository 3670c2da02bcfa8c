"""Benchmarks of the rating page without Ray: their counting, and raters on a server that is not killed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import feedback_load, steering
from benchmarks.feedback_load import Said, Supply
from pipeline.config.feedback import Refit
from pipeline.feedback.database import Database
from pipeline.feedback.raters import Register
from pipeline.feedback.records import JudgementKind, RaterRole
from pipeline.feedback.store import FeedbackStore
from tests.actors.feedback.conftest import served
from tests.feedback.office import PLAIN, Clock, Office

ONE = Said("ada", "key-1", "Digit 0?", "seven")
TWO = Said("ada", "key-2", "Digit 1?", None)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    database, clock = Database(f"sqlite:///{tmp_path}/store.sqlite"), Clock()
    database.migrate()
    yield Office(FeedbackStore(database, tmp_path / "media"), clock, Register(database, session_s=3600.0, clock=clock))
    database.close()


def test_a_store_that_holds_what_was_acknowledged_has_lost_and_doubled_nothing() -> None:
    assert feedback_load.compare([ONE, TWO], [TWO, ONE]) == (0, 0)
    assert feedback_load.compare([], []) == (0, 0)


def test_an_acknowledged_judgement_that_is_not_in_the_store_is_lost() -> None:
    assert feedback_load.compare([ONE, TWO], [TWO]) == (1, 0)


def test_a_judgement_that_says_something_else_in_the_store_is_lost() -> None:
    assert feedback_load.compare([ONE, TWO], [ONE._replace(chosen="maybe seven"), TWO]) == (1, 0)
    assert feedback_load.compare([ONE, TWO], [ONE._replace(rater="bob"), TWO]) == (1, 0)


def test_a_judgement_that_is_in_the_store_twice_is_doubled_under_whatever_key_and_whoever_gave_it() -> None:
    assert feedback_load.compare([ONE, TWO], [ONE, ONE, TWO]) == (0, 1)
    assert feedback_load.compare([ONE, TWO], [ONE, ONE._replace(key="key-3"), TWO]) == (0, 1)
    other = ONE._replace(rater="bob", key="key-4", chosen=None)
    assert feedback_load.compare([ONE, TWO, other], [ONE, TWO, other]) == (0, 1)


@pytest.mark.parametrize(("num", "expected"), [(1, 1.0), (99, 99.0), (100, 99.0), (200, 198.0), (201, 199.0)])
def test_p99_is_the_least_value_that_99_percent_do_not_exceed(num: int, expected: float) -> None:
    assert feedback_load.p99([float(value) for value in range(num, 0, -1)]) == expected


def test_the_store_tells_judgements_in_the_words_of_the_page(office: Office) -> None:
    Supply(office.store, ["a", "b"]).offer(2)
    rater = office.rater()
    for key, chosen in (("judgement-1", "maybe seven"), ("judgement-2", None)):
        shown = office.queue.next(rater)
        assert shown is not None
        texts = [shown.item.candidates[place].text for place in shown.order]
        content = {"chosen": None if chosen is None else texts.index(chosen)}
        office.queue.judge(
            rater, key=key, presentation=shown.id, kind=JudgementKind.PAIR, content=content, latency_s=None
        )
    found = {said.key: said for said in feedback_load.stored(office.store)}
    assert {key: (said.rater, said.chosen) for key, said in found.items()} == {
        "judgement-1": (rater.name, "maybe seven"),
        "judgement-2": (rater.name, None),
    }
    assert {said.question for said in found.values()} == {"Digit 0?", "Digit 1?"}


def test_raters_on_a_server_acknowledge_what_its_store_holds(office: Office) -> None:
    office.use(max_requests_a_minute=100_000)
    tokens = [office.register.invite(f"rater{number}", RaterRole.RATER, days=1) for number in range(3)]
    with served(office) as address:
        load = feedback_load.load(
            address, Supply(office.store, ["a", "b"]), tokens, judgements=5, kills=0, seed=0, think_s=0.0
        )
        log, found = asyncio.run(load)
    assert found["kills"] == 0 and found["back_s"] is None
    assert found["acknowledged"] == len(log.acknowledged) >= 3 * (feedback_load.WARM_JUDGEMENTS + 5)
    assert 0 < found["median_ms"] <= found["p99_ms"] and found["judgements_per_s"] > 0
    found = feedback_load.stored(office.store)
    assert feedback_load.compare(log.acknowledged, found) == (0, 0)
    assert feedback_load.compare(log.acknowledged, found[1:]) == (1, 0)


def test_where_postgresql_is_not_installed_it_is_null_and_said_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(feedback_load.postgres, "binaries", lambda: None)
    with feedback_load.urls() as found:
        assert found == {"sqlite": None}
    assert "PostgreSQL is not installed" in capsys.readouterr().out


def test_the_recipe_of_a_store_has_its_url_and_shows_every_item_once(tmp_path: Path) -> None:
    recipe = feedback_load.recipe_of(tmp_path, "postgresql://postgres@/postgres?host=/tmp/pg")
    assert recipe.feedback_url == "postgresql://postgres@/postgres?host=/tmp/pg"
    assert recipe.feedback.model_copy(update={"url": None}) == PLAIN.model_copy(
        update={
            "port": recipe.feedback.port,
            "max_requests_a_minute": 1_000_000,
            "refit": Refit(after_judgements=64, num_steps=4, poll_s=0.2),
        }
    )


def test_what_somebody_likes_is_counted_ten_steps_at_a_time(tmp_path: Path) -> None:
    groups = {0: ["1 for sure", "2"], 9: ["3", "4"], 10: ["5 for sure "]}
    samples = [json.dumps({"step": step, "group": group}) for step, group in groups.items()]
    (tmp_path / "samples.jsonl").write_text("\n".join(samples), encoding="utf-8")
    assert steering.shares(tmp_path / "samples.jsonl") == {0: 0.25, 10: 1.0}
