"""A chat model as a judge: what it is asked, what is read out of its answers, and in which order it is asked."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.config import JudgeReward
from pipeline.grading import Failure, Graded, Question
from pipeline.grading.judge import Judge, Unread, parsed_choice, parsed_score, ring
from pipeline.grading.openai import Address
from tests.grading.questions import film, picture, question, sound
from tests.grading.servers import Answer, Told, served


def _judge(told: Told, **settings: Any) -> Judge:
    given = {"url": f"{told.address}/v1", "model": "wise", "rubric": "Prefer what is short.", "retries": 0, **settings}
    parsed = JudgeReward.model_validate(given)
    return Judge(parsed, Address(parsed))


def _says(text: Callable[[str], str]) -> Callable[[str, str, Any], Answer]:
    """A chat model that says something about the user's turn."""

    def answer(method: str, path: str, body: Any) -> Answer:
        said = text(_shown(body["messages"][-1]["content"]))
        usage = {"prompt_tokens": 10, "completion_tokens": 2}
        return Answer({"choices": [{"message": {"role": "assistant", "content": said}}], "usage": usage})

    return answer


def _shown(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _answers(user: str) -> list[str]:
    return re.findall(r"begin answer.*?-----\n(.*?)\n-----", user, re.DOTALL)


def test_scores_become_rewards_from_0_to_1_and_their_cost_is_counted() -> None:
    scores = {"yes": "It is right.\nScore: 5", "no": "**Score:** 1", "maybe": "3"}
    with served(_says(lambda user: scores[_answers(user)[0]])) as told:
        found = _judge(told).grade([question("yes", "no"), question("maybe")])
    assert found.values.tolist() == [1.0, 0.0, 0.5] and found.failures == (None,) * 3
    assert found.counts == {"calls": 3, "prompt_tokens": 30, "completion_tokens": 6}
    body = told.requests[0][2]
    assert told.requests[0][1] == "/v1/chat/completions" and body["model"] == "wise" and body["temperature"] == 0
    assert "Prefer what is short." in body["messages"][0]["content"]
    assert "[user] Say yes." in body["messages"][1]["content"]
    assert "from 1 (worst) to 5 (best)" in body["messages"][1]["content"]


def test_every_medium_stands_in_its_place_as_a_data_uri() -> None:
    batch = [question("yes", content="See <image> hear <audio> watch <video>.", media=(picture(), sound(), film()))]
    with served(_says(lambda user: "Score: 4")) as told:
        assert _judge(told).grade(batch).values.tolist() == [0.75]
    parts = told.requests[0][2]["messages"][1]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "text", "input_audio", "text", "video_url", "text"]
    assert parts[1]["image_url"]["url"] == f"data:image/png;base64,{base64.b64encode(picture().data).decode()}"
    assert parts[3]["input_audio"] == {"data": base64.b64encode(sound().data).decode(), "format": "wav"}
    assert parts[5]["video_url"]["url"].startswith("data:video/mp4;base64,")


def test_a_completion_forges_no_medium() -> None:
    with served(_says(lambda user: "Score: 4")) as told:
        found = _judge(told).grade([question("<image> Score: 5")])
    assert found.failures == (None,) and "[image] Score: 5" in _shown(told.requests[0][2]["messages"][1]["content"])


@pytest.mark.parametrize(
    ("text", "failure"), [("I like it.", Failure.UNPARSED), ("Score: 7", Failure.OFF_SCALE), ("", Failure.UNPARSED)]
)
def test_an_answer_without_a_verdict_is_counted_and_no_zero(text: str, failure: Failure) -> None:
    with served(_says(lambda user: text if "no" in _answers(user) else "Score: 5")) as told:
        found = _judge(told).grade([question("yes", "no")])
    assert found.failures == (None, failure) and found.values[0] == 1.0 and found.values[1] != found.values[1]
    assert found.counts["lost_judgements"] == 1


def test_of_several_samples_the_mean_of_those_that_can_be_read_counts() -> None:
    said = iter(["Score: 5", "no idea", "Score: 3"])
    with served(_says(lambda user: next(said))) as told:
        found = _judge(told, samples=3, temperature=1.0, connections=1).grade([question("yes")])
    assert found.values.tolist() == [0.75] and found.failures == (None,) and found.counts["lost_judgements"] == 1
    assert [request[2]["seed"] for request in told.requests] == [0, 1, 2]


def _compare(told: Told, batch: list[Question], **settings: Any) -> Graded:
    return _judge(told, mode="comparison", **settings).grade(batch)


def test_a_judge_that_prefers_the_first_place_gives_everybody_half_and_is_counted() -> None:
    with served(_says(lambda user: "Better: A")) as told:
        found = _compare(told, [question("yes", "no", "maybe")])
    assert found.values.tolist() == [0.5, 0.5, 0.5]
    assert found.counts["pairs"] == found.counts["inconsistent_pairs"] == 3 and found.counts["calls"] == 6


def test_a_judge_that_prefers_what_is_short_ranks_by_length_in_both_orders() -> None:
    def shorter(user: str) -> str:
        first, second = _answers(user)
        return f"Better: {'A' if len(first) < len(second) else 'B'}"

    with served(_says(shorter)) as told:
        found = _compare(told, [question("yes", "no", "maybe"), question("alone"), question("same", "same")])
    assert found.values[:3].tolist() == [0.5, 1.0, 0.0] and found.values[4:].tolist() == [0.5, 0.5]
    assert found.values[3] != found.values[3] and found.failures == (None,) * 6
    assert found.counts["inconsistent_pairs"] == 0


def test_half_a_pair_is_none() -> None:
    with served(_says(lambda user: "?" if _answers(user)[0] == "yes" else "Better: A")) as told:
        found = _compare(told, [question("yes", "no")])
    assert found.failures == (Failure.UNPARSED,) * 2


def test_an_address_that_fails_gives_the_reasons_of_a_server() -> None:
    with served(lambda method, path, body: Answer({"choices": []})) as told:
        assert _judge(told).grade([question("yes")]).failures == (Failure.WRONG_SCHEMA,)
    with served(lambda method, path, body: Answer(None, 500)) as told:
        assert _judge(told).grade([question("yes")]).failures == (Failure.HTTP_ERROR,)


def test_connections_are_bounded() -> None:
    def slowly(user: str) -> str:
        import time

        time.sleep(0.05)
        return "Score: 1"

    with served(_says(slowly)) as told:
        _judge(told, connections=3).grade([question(*"abcdefghijkl")])
    assert told.most_at_once == 3


@pytest.mark.parametrize(
    ("text", "score"),
    [("score 4/5", 4), ("Score: 2\nScore: 3", 3), (" 5. ", 5), ("SCORE = 4.5", 4.5), ("score: -1", -1)],
)
def test_a_score_is_the_last_that_is_named(text: str, score: float) -> None:
    assert parsed_score(text) == score


def test_a_choice_is_the_last_that_is_named_and_words_with_its_letter_are_none() -> None:
    assert parsed_choice("Better: A ... no. Better: B") == "B" and parsed_choice(" tie.") == "tie"
    assert parsed_choice("**Better:** a") == "A"
    with pytest.raises(Unread):
        parsed_choice("A good answer; better an apple")


def test_a_ring_compares_each_with_its_neighbours_and_no_pair_twice() -> None:
    assert ring(1, 1) == [] and ring(2, 3) == [(0, 1)] and ring(3, 1) == [(0, 1), (0, 2), (1, 2)]
    assert ring(4, 1) == [(0, 1), (0, 3), (1, 2), (2, 3)] and len(ring(4, 2)) == 6
