"""Rewards from a server that is well, slow, wrong, down, or lies."""

from __future__ import annotations

import base64
import hashlib
import time
from typing import Any

import pytest

from pipeline.config import ServerReward
from pipeline.grading import Failure, Graded
from pipeline.grading import client as clients
from pipeline.grading.client import Breaker, CallFailed
from pipeline.grading.server import Server
from tests.grading.questions import film, picture, question, sound
from tests.grading.servers import Answer, Told, served

BATCH = [question("yes", "no", columns={"colour": "red"}), question("maybe", id="b", answer=None)]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "FIRST_WAIT_S", 0.01)


def _server(told: Told | str, **settings: Any) -> Server:
    address = told if isinstance(told, str) else told.address
    return Server("mine", ServerReward.model_validate({"url": f"{address}/reward", "timeout_s": 10.0, **settings}))


def test_a_batch_is_one_request_of_the_documented_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    with served(lambda method, path, body: Answer({"rewards": [1, None, 0.5]})) as told:
        found = _server(told, token_variable="MY_TOKEN").grade(BATCH)
    assert found.values[0] == 1.0 and found.values[1] != found.values[1] and found.values[2] == 0.5
    assert found.failures == (None,) * 3 and found.counts == {"calls": 1}
    ((method, path, body, headers),) = told.requests
    assert (method, path, headers["Authorization"]) == ("POST", "/reward", "Bearer secret")
    assert body == {
        "version": 1,
        "part": "mine",
        "prompts": [
            {
                "id": "a",
                "task": "task",
                "messages": [{"role": "user", "content": "Say yes."}],
                "answer": "yes",
                "accepted": [],
                "columns": {"colour": "red"},
                "media": [],
            },
            {
                "id": "b",
                "task": "task",
                "messages": [{"role": "user", "content": "Say yes."}],
                "answer": None,
                "accepted": [],
                "columns": {},
                "media": [],
            },
        ],
        "completions": [
            {"prompt": 0, "text": "yes", "token_ids": [0, 1, 2], "finish_reason": "stop"},
            {"prompt": 0, "text": "no", "token_ids": [0, 1], "finish_reason": "stop"},
            {"prompt": 1, "text": "maybe", "token_ids": [0, 1, 2, 3, 4], "finish_reason": "stop"},
        ],
    }


@pytest.mark.parametrize(
    ("body", "failures"),
    [
        (b"<html>", [Failure.WRONG_SCHEMA] * 3),
        (b"", [Failure.WRONG_SCHEMA] * 3),
        ([1, 2, 3], [Failure.WRONG_SCHEMA] * 3),
        ({"scores": [1, 2, 3]}, [Failure.WRONG_SCHEMA] * 3),
        ({"rewards": [1, 2]}, [Failure.WRONG_LENGTH] * 3),
        ({"rewards": "123"}, [Failure.WRONG_TYPE] * 3),
        (b'{"rewards": [NaN, 1e999, "1"]}', [Failure.NOT_FINITE, Failure.NOT_FINITE, Failure.WRONG_TYPE]),
        ({"rewards": [{"a": 1}, 1, [1]]}, [Failure.WRONG_PARTS, None, Failure.WRONG_TYPE]),
        (b" " * 3 * 2**20, [Failure.TOO_LONG] * 3),
        (b"[" * 2**18, [Failure.WRONG_SCHEMA] * 3),
    ],
)
def test_a_server_that_lies_fails_with_a_reason_and_is_not_asked_again(body: Any, failures: list[Failure]) -> None:
    with served(lambda method, path, _: Answer(body)) as told:
        found = _server(told, max_answer_mib=2).grade(BATCH)
    assert list(found.failures) == failures and len(told.requests) == 1


@pytest.mark.parametrize(("status", "num_requests"), [(500, 3), (503, 3), (429, 3), (400, 1), (404, 1), (302, 1)])
def test_errors_that_may_pass_are_tried_again(status: int, num_requests: int) -> None:
    with served(lambda method, path, body: Answer({"detail": "no"}, status)) as told:
        found = _server(told, retries=2).grade(BATCH)
    assert found.failures == (Failure.HTTP_ERROR,) * 3 and f"answered {status}" in found.details[Failure.HTTP_ERROR]
    assert len(told.requests) == found.counts["calls"] == num_requests == found.counts["retries"] + 1


def test_a_server_that_comes_back_in_time_has_lost_nothing() -> None:
    answers = iter([Answer(None, 500), Answer({"rewards": [1, 2, 3]})])
    with served(lambda method, path, body: next(answers)) as told:
        found = _server(told).grade(BATCH)
    assert found.values.tolist() == [1, 2, 3] and found.counts == {"calls": 2, "retries": 1}


def test_a_server_that_is_down_is_left_alone_after_some_calls() -> None:
    server = _server("http://127.0.0.1:9", retries=0, max_failures=2, rest_s=60)
    reasons = [server.grade(BATCH).failures[0] for _ in range(4)]
    assert reasons == [Failure.UNREACHABLE, Failure.UNREACHABLE, Failure.CIRCUIT_OPEN, Failure.CIRCUIT_OPEN]


def test_a_breaker_lets_one_call_try_after_its_rest() -> None:
    now = [0.0]
    breaker = Breaker(max_failures=2, rest_s=10, clock=lambda: now[0])
    for _ in range(2):
        breaker.check()
        breaker.tell(is_well=False)
    now[0] = 9.0
    with pytest.raises(CallFailed, match="the last 2 calls failed"):
        breaker.check()
    now[0] = 11.0
    breaker.check()
    with pytest.raises(CallFailed):
        breaker.check()  # while the first one tries
    breaker.tell(is_well=True)
    breaker.check()
    breaker.tell(is_well=False)
    breaker.check()


@pytest.mark.parametrize("drip_s", [0.3, 100.0])
def test_an_answer_that_drips_ends_with_the_deadline(drip_s: float) -> None:
    started = time.monotonic()
    with served(lambda method, path, body: Answer({"rewards": [1, 2, 3]}, drip_s=drip_s)) as told:
        found = _server(told, timeout_s=1.0, retries=1).grade(BATCH)
    assert found.failures == (Failure.TIMEOUT,) * 3
    assert time.monotonic() - started < 4


def test_media_travel_inline_where_the_recipe_says_so() -> None:
    media = (picture(), sound(), film())
    batch = [question("yes", content="<image><audio><video>", media=media)]
    with served(lambda method, path, body: Answer({"rewards": [1]})) as told:
        _server(told, media="inline").grade(batch)
    (request,) = told.requests
    sent = request[2]["prompts"][0]["media"]
    assert [each["kind"] for each in sent] == ["image", "audio", "video"]
    assert [base64.b64decode(each["data"]) for each in sent] == [each.data for each in media]
    assert [each["sha256"] for each in sent] == [hashlib.sha256(each.data).hexdigest() for each in media]


def test_media_travel_by_hash_and_are_uploaded_when_the_server_lacks_them() -> None:
    media = (picture(), sound(), film())
    kept: dict[str, bytes] = {}

    def answer(method: str, path: str, body: Any) -> Answer:
        if method == "PUT":
            kept[path.rpartition("/")[2]] = body
            return Answer(None)
        asked = [each["sha256"] for prompt in body["prompts"] for each in prompt["media"]]
        assert all("data" not in each for prompt in body["prompts"] for each in prompt["media"])
        missing = [key for key in asked if key not in kept]
        return Answer({"missing": missing}, 409) if missing else Answer({"rewards": [len(asked)]})

    batch = [question("yes", content="<image><audio><video>", media=media)]
    with served(answer) as told:
        server = _server(told, media="by_hash")
        found: list[Graded] = [server.grade(batch) for _ in range(2)]
    assert [each.values.tolist() for each in found] == [[3.0], [3.0]]
    assert kept == {hashlib.sha256(each.data).hexdigest(): each.data for each in media}
    assert [request[0] for request in told.requests] == ["POST", "PUT", "PUT", "PUT", "POST", "POST"]


@pytest.mark.parametrize(
    ("missing", "failure"),
    [([hashlib.sha256(picture().data).hexdigest()], Failure.LACKS_MEDIA), (["0" * 64], Failure.WRONG_SCHEMA)],
)
def test_a_server_that_keeps_nothing_or_asks_for_what_is_not_there_fails(missing: list[str], failure: Failure) -> None:
    batch = [question("yes", content="<image>", media=(picture(),))]

    def answer(method: str, path: str, body: Any) -> Answer:
        return Answer(None) if method == "PUT" else Answer({"missing": missing}, 409)

    with served(answer) as told:
        found = _server(told, media="by_hash").grade(batch)
    assert found.failures == (failure,)
