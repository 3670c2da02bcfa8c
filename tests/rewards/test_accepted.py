"""Several right answers: from the source to the reward, the evaluation and the rater, the best comparison counts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.evaluate import true_rewards
from pipeline.config import RewardName
from pipeline.data.ingest.formats import draft_of
from pipeline.data.schema import from_row, to_row
from pipeline.data.table import PromptTable, info_of, write_prompts
from pipeline.evaluation.results import Mode, ModelName, SampleResult
from pipeline.evaluation.summary import summarise
from pipeline.evaluation.validation import measured
from pipeline.feedback.scripted import ScriptedRater
from pipeline.records import Completion, FinishReason, MediaKind, Message, Prompt, PromptInfo, Rollout
from pipeline.rewards import score_rules

PROMPT = Prompt("a", "t", (Message("user", "How many?"),), (), "seven cats", accepted=("7", "sieben"))
INFO = PromptInfo("a", "t", "seven cats", None, (MediaKind.AUDIO,), accepted=("7", "sieben"))


def completion(text: str) -> Completion:
    return Completion(np.array([1]), np.zeros(1, np.float32), FinishReason.STOP, 0, text)


def test_a_table_keeps_them_and_older_tables_have_none() -> None:
    row = to_row(PROMPT, ())
    assert from_row(row) == PROMPT
    assert info_of(PROMPT).answers == ("seven cats", "7", "sieben")
    del row["accepted"]
    assert from_row(row) == replace(PROMPT, accepted=())
    assert info_of(replace(PROMPT, answer=None, accepted=())).answers == ()


@pytest.mark.parametrize(
    ("given", "answer", "accepted"),
    [
        ({"answer": ["7", "seven"]}, "7", ("seven",)),
        ({"answers": ["yes"]}, "yes", ()),
        # VQA: of ten people most say two, and one says so twice as others do once.
        ({"answers": [{"answer": "a"}, {"answer": "two"}, {"answer": "two"}]}, "two", ("a",)),
        ({"answer": "7", "answers": ["8"]}, "7", ()),
        ({"answer": [{"role": "assistant", "content": "7"}]}, "7", ()),
    ],
)
def test_a_list_of_answers_is_several_right_ones(given: dict[str, Any], answer: str, accepted: tuple[str, ...]) -> None:
    draft = draft_of({"question": "?", **given}, names={}, id="a", dataset="d", task="t")
    assert (draft.answer, draft.accepted) == (answer, accepted)


def test_a_list_that_holds_no_texts_alone_is_one_answer_as_json() -> None:
    draft = draft_of({"question": "?", "answer": ["7", {"x": 1}]}, names={}, id="a", dataset="d", task="t")
    assert (draft.answer, draft.accepted) == ('["7", {"x": 1}]', ())


def test_rules_take_the_best_of_those_they_can_compare() -> None:
    scores = score_rules(
        names=[RewardName.EXACT_MATCH, RewardName.WER, RewardName.DISTANCE],
        completions=[completion("7"), completion("seven dogs"), completion("8")],
        answers=[INFO.answers] * 3,
    )
    assert scores.failures == ()
    assert scores.values[RewardName.EXACT_MATCH].tolist() == [1.0, 0.0, 0.0]
    assert scores.values[RewardName.WER].tolist() == [1.0, 0.5, 0.0]
    assert scores.values[RewardName.DISTANCE].tolist() == pytest.approx([1.0, 1.0, 0.8])
    nothing = score_rules(names=[RewardName.EXACT_MATCH], completions=[completion("7")], answers=[()])
    assert nothing.failures[0].detail == "ValueError: no answer to compare with"


def test_evaluations_take_the_best() -> None:
    found = true_rewards(completion("Sieben."), INFO)
    assert (found["exact_match"], found["contains"], found["wer"]) == (1.0, 1.0, 0.0)
    assert true_rewards(completion("it is 8"), INFO)["distance"] == pytest.approx(0.8)
    group = [Rollout("a", (completion("7"), completion("seven")))]
    metrics = measured([INFO], sampled=group, greedy=[Rollout("a", (completion("sieben"),))])
    assert (metrics["validation/exact_match"], metrics["validation/greedy_exact_match"]) == (0.5, 1.0)


def test_corpus_measures_and_demonstrators_are_compared_with_the_closest() -> None:
    blank: dict[str, Any] = {"modalities": ("audio",), "blanked": (), "token_texts": (), "token_kl": ()}
    sample = SampleResult(
        "a", "t", **blank, model=ModelName.SFT, mode=Mode.SAMPLED, answer="seven cats", text="sieben",
        finish_reason="stop", num_tokens=1, rewards={"wer": 0.0}, learned_reward=None, demonstration="7!",
        accepted=("7", "sieben"),
    )  # fmt: skip
    overall = summarise([sample]).overall
    assert overall.models[ModelName.SFT].metrics == {"wer": 0.0}
    assert overall.demonstrator is not None and overall.demonstrator.true_reward == 1.0


def test_the_scripted_rater_takes_the_best() -> None:
    group = Rollout("a", (completion("8"), completion("sieben")))
    (found,) = ScriptedRater(error_rate=0.0, seed=0).compare(group, *INFO.answers)
    assert found.chosen == "sieben"


def test_what_the_driver_reads_of_a_table_has_them(tmp_path: Path) -> None:
    write_prompts(tmp_path / "train.parquet", [to_row(PROMPT, ())])
    (info,) = PromptTable(tmp_path / "train.parquet").infos()
    assert info.answers == ("seven cats", "7", "sieben")
