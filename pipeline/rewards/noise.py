"""Noise: the control that tells learning from reward apart from training for as long."""

from __future__ import annotations

import hashlib

from pipeline.records import Completion


def noise(completion: Completion) -> float:
    """Uniform in [0, 1), whatever was said: a hash of the sample's ids and logprobs, the same whenever it is asked."""
    digest = hashlib.sha256(completion.token_ids.tobytes() + completion.behaviour_logprobs.tobytes()).digest()
    return int.from_bytes(digest[:8]) / 2**64
