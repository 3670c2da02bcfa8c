"""What SFT learns, down to which tokens become likelier; the engine here is a lookup."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actors.training import supervised
from actors.training.supervised import Demonstration, demonstration_losses
from pipeline.models.tokens import answer_ids
from tests.actors.training.lookup import BAD, END, GOOD, OTHER, Engine, Nothing
from tests.prompts import prompt_ref


def test_sft_learns_to_say_the_demonstrations_and_to_end_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "fetch_encoded", lambda prompts, live: prompts)
    monkeypatch.setattr(supervised, "collate_prompts", lambda prompts, pad_id: Nothing())
    tokenizer = SimpleNamespace(encode=lambda text, **_: [int(digit) for digit in text], eos_token_id=END)
    engine = Engine({GOOD: -1.0, BAD: -2.0, END: -0.5}, heads=())
    batch = [Demonstration(prompt_ref(text), text) for text in ("73", "7", "")]
    ids_of: Any = partial(answer_ids, tokenizer)
    found = demonstration_losses(cast(Any, engine), 0, frozenset(), ids_of)(batch, 8.0)
    # 7 3 end, 7 end, end: 1 + 2 + 0.5 + 1 + 0.5 + 0.5, of a step of eight tokens.
    assert found["loss"].item() == pytest.approx(5.5 / 8)
    assert found["counts/answers_without_tokens"].item() == 1
    found["loss"].backward()
    assert engine.values.grad is not None
    assert (-8 * engine.values.grad[[GOOD, BAD, END, OTHER, 0]]).tolist() == [2.0, 1.0, 3.0, 0.0, 0.0]
