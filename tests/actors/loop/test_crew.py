"""Rows that kill their encoder: the rest of their share is processed, and they are refused with that reason."""

from __future__ import annotations

from typing import Any

from actors.fleet.answer import Answer
from actors.fleet.failures import KillsWorkers
from actors.loop.crew import Encoding, _Share  # pyright: ignore[reportPrivateUsage]
from actors.roles.encoder import PromptRef
from pipeline.data.datasets import RowKey, RowRef
from pipeline.records import Quarantined
from tests.actors.at_once import AtOnce
from tests.prompts import prompt_ref


def test_a_row_that_kills_its_encoder_alone_is_refused_and_the_others_of_its_share_are_processed() -> None:
    keys = [RowKey(0, number) for number in range(3)]
    asked: list[list[int]] = []

    def encode(seat: int, rows: list[RowRef]) -> Answer[Any]:
        asked.append([row.key.row for row in rows])
        answer = AtOnce().answer([[prompt_ref(str(row.key.row)) for row in rows]])
        if RowKey(0, 1) not in [row.key for row in rows]:
            return answer
        (call,) = AtOnce().answer([None]).calls
        failed: Any = type(call)()
        failed.set_exception(KillsWorkers("encoder: 4 workers died of encode"))
        return Answer(answer.asked, [failed])

    found = Encoding(keys, [_Share(0, [RowRef(key) for key in keys], encode)]).result()
    assert asked == [[0, 1, 2], [0], [1], [2]]
    assert [each.id for each in found if isinstance(each, PromptRef)] == ["0", "2"]
    assert found[1] == Quarantined("row 1", "kills_worker", "encoder: 4 workers died of encode")
