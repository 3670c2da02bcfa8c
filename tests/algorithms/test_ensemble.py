"""What each member of an ensemble learns from."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.algorithms.ensemble import bootstrap_counts


def test_each_member_meets_a_record_once_on_average_and_another_number_of_times() -> None:
    counts = np.array([bootstrap_counts(f"row-{n}", num_members=3, seed=0) for n in range(2000)])
    assert counts.mean(0).tolist() == pytest.approx([1, 1, 1], abs=0.1)
    # Poisson(1): 37 % of a bootstrap sample's records are not in it.
    assert (counts == 0).mean(0).tolist() == pytest.approx([0.368] * 3, abs=0.04)
    assert np.abs(np.corrcoef(counts.T) - np.eye(3)).max() < 0.1


def test_a_record_keeps_its_counts_and_a_seed_changes_them() -> None:
    keys = [f"row-{n}" for n in range(50)]
    first, again, other = ([bootstrap_counts(key, num_members=4, seed=seed) for key in keys] for seed in (1, 1, 2))
    assert first == again != other


def test_one_member_alone_meets_every_record_once() -> None:
    assert {bootstrap_counts(f"row-{n}", num_members=1, seed=0) for n in range(20)} == {(1,)}
