"""Ensembles: each member learns from a sample of its own of the same data."""

from __future__ import annotations

import hashlib

import numpy as np


def bootstrap_counts(key: str, *, num_members: int, seed: int) -> tuple[int, ...]:
    """How often each of M members meets the record with this key: once on average.

    A bootstrap sample of a data set holds each record about Poisson(1) times, and drawing that record by record needs
    to know nothing of the others (Oza and Russell 2001); heads on one trunk that learn from such samples tell by their
    spread what the data leave open (Osband et al. 2016, arXiv 1602.04621). A record keeps its counts in every epoch,
    in whatever order and on whatever worker it comes. One member alone meets every record once.
    """
    if num_members == 1:
        return (1,)
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return tuple(np.random.default_rng(int.from_bytes(digest)).poisson(1.0, num_members).tolist())
