"""Noise: uniform, repeatable, deaf to what was said."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.records import Completion, FinishReason
from pipeline.rewards.noise import noise


def completion(logprob: float, text: str = "7") -> Completion:
    return Completion(
        token_ids=np.array([3, 1], np.int64),
        behaviour_logprobs=np.array([logprob, -0.5], np.float32),
        finish_reason=FinishReason.STOP,
        weights_version=0,
        text=text,
    )


def test_noise_is_uniform_over_samples_and_the_same_for_one_whatever_its_text() -> None:
    values = np.array([noise(completion(-number / 1000)) for number in range(2000)])
    assert values.min() >= 0 and values.max() < 1
    assert values.mean() == pytest.approx(0.5, abs=0.03)
    assert values.std() == pytest.approx(12**-0.5, abs=0.02)
    one = completion(-0.25)
    assert noise(replace(one, text="8")) == noise(one)
