"""A list of terms, by whole words."""
# ruff: noqa: RUF001  Full-width letters are what is tested.

from pathlib import Path

import pytest

from pipeline.rewards.safety import read_terms, safety_reward, terms_of

TERMS = terms_of(["# remarks are no terms", "", "bomb", "Kill Switch", "炸弹"])


def test_a_term_costs_one_and_nothing_else_does() -> None:
    assert safety_reward(["A BOMB!", "a cat", "", "# remarks are no terms"], terms=TERMS) == [-1.0, 0.0, 0.0, 0.0]


def test_words_count_whole_and_terms_in_one_piece() -> None:
    texts = ["bombastic", "kill the switch", "switch kill", "kill"]
    assert safety_reward(texts, terms=TERMS) == [0.0, 0.0, 0.0, 0.0]
    assert safety_reward(["the KILL switch", "kill\nswitch.", "kill-switch"], terms=TERMS) == [-1.0, -1.0, -1.0]
    assert safety_reward(["这是炸弹吗", "爆炸", "ｂｏｍｂ"], terms=TERMS) == [-1.0, 0.0, -1.0]


def test_a_list_is_read_from_a_file_and_one_without_terms_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_text("# of ours\nbomb\n", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("# nothing\n", encoding="utf-8")
    assert read_terms(str(tmp_path / "terms.txt")) == {("bomb",)}
    with pytest.raises(ValueError, match=r"empty.txt' is a list of terms without a term"):
        read_terms(str(tmp_path / "empty.txt"))
    with pytest.raises(ValueError, match=r"missing.txt' cannot be read"):
        read_terms(str(tmp_path / "missing.txt"))
