"""Retrieval, zero- and few-shot: ranks and shares by hand, and what they must not depend on."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pipeline.evaluation.retrieval import (
    accuracy,
    class_embeddings,
    few_shot,
    nearest_class,
    probed,
    ranks,
    summarised,
)

EYE = torch.eye(4)


def test_ranks_by_hand() -> None:
    # Of the four targets the first query is nearest to its own, the second to two others before its own.
    queries = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.8, 0.3, 0.5, 0.1], [0.0, 0.0, 1.0, 0.0], [0.9, 0.1, 0.0, 0.4]])
    assert ranks(queries, EYE).tolist() == [1, 3, 1, 2]


def test_an_encoder_that_gives_everything_one_embedding_finds_nothing() -> None:
    same = functional.normalize(torch.ones(4, 4), dim=1)
    assert ranks(same, same).tolist() == [4, 4, 4, 4]


def test_recall_reciprocal_ranks_and_median_by_hand() -> None:
    found = summarised(torch.tensor([1, 1, 2, 6, 20]))
    assert {k: round(each.value, 6) for k, each in found.recall.items()} == {1: 0.4, 5: 0.6, 10: 0.8}
    # (1 + 1 + 1/2 + 1/6 + 1/20) / 5
    assert found.mrr.value == pytest.approx(0.543333, abs=1e-6)
    assert (found.median_rank, found.num_rows) == (2, 5)
    assert 0 < found.recall[1].low < 0.4 < found.recall[1].high < 1


def test_queries_of_one_row_are_averaged_before_the_interval() -> None:
    twice = summarised(torch.tensor([[1, 1, 9, 9], [1, 9, 9, 1]]))
    assert twice.recall[1].value == 0.5
    assert (twice.num_rows, twice.median_rank) == (4, 5)
    # Eight answers, but of four rows: wider than eight rows would be, no wider than four.
    eight = summarised(torch.tensor([1, 1, 9, 9, 1, 9, 9, 1])).recall[1]
    assert twice.recall[1].high - twice.recall[1].low >= eight.high - eight.low


def test_queries_and_targets_must_belong_together() -> None:
    with pytest.raises(ValueError, match=r"queries \[3, 4\], targets \[4, 4\]"):
        ranks(EYE[:3], EYE)


def test_prompts_of_a_class_are_averaged_and_the_nearest_class_wins() -> None:
    prompts = torch.stack([EYE[[0, 1]], EYE[[2, 2]]])
    classes = class_embeddings(prompts)
    assert classes[0].tolist() == pytest.approx([0.5**0.5, 0.5**0.5, 0, 0])
    assert nearest_class(torch.tensor([[0.6, 0.5, 0.61, 0.0], [0.1, 0.0, 0.9, 0.0]]), classes).tolist() == [0, 1]


def _clouds(num: int, spread: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    labels = torch.arange(3).repeat_interleave(num)
    return functional.normalize(torch.eye(8)[labels] + spread * torch.randn(3 * num, 8), dim=1), labels


def test_more_labelled_rows_tell_more_and_a_probe_on_all_of_them_most() -> None:
    known, labels = _clouds(60, 0.5, seed=0)
    test, truth = _clouds(100, 0.5, seed=1)

    def right(shots: int) -> float:
        said = few_shot(known, labels, num_classes=3, shots=shots, num_draws=20, seed=0, test=test)
        assert said.shape == (20, 300)
        return accuracy(said, truth).value

    probe = accuracy(probed(known, labels, num_classes=3, test=test), truth).value
    assert 1 / 3 < right(1) < right(5) < right(20)
    assert probe > right(1) + 0.05 and probe > 0.75


def test_draws_are_those_of_the_seed_and_a_class_with_too_few_rows_is_an_error() -> None:
    known, labels = _clouds(6, 0.5, seed=0)
    one, same, other = (
        few_shot(known, labels, num_classes=3, shots=2, num_draws=3, seed=seed, test=known) for seed in (0, 0, 1)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    with pytest.raises(ValueError, match="shots=7: class 0 has 6 labelled rows"):
        few_shot(known, labels, num_classes=3, shots=7, num_draws=1, seed=0, test=known)


def test_a_probe_takes_what_was_embedded_without_gradients_and_leaves_it_alone() -> None:
    known, labels = _clouds(20, 0.1, seed=0)
    before = known.clone()
    with torch.inference_mode():
        embedded = known.clone()
    said = probed(embedded, labels, num_classes=3, test=embedded)
    assert accuracy(said, labels).value == 1 and torch.equal(embedded, before)
