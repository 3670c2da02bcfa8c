"""Questions for those who give rewards, made up."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np
from PIL import Image as pillow

from pipeline.grading import Question, RewardCompletion, RewardPrompt
from pipeline.records import FinishReason, MediaKind, Medium, Message


def completion(text: str) -> RewardCompletion:
    """A completion with as many tokens as its text has letters."""
    return RewardCompletion(text, np.arange(len(text)), FinishReason.STOP)


def question(
    *texts: str, id: str = "a", content: str = "Say yes.", answer: str | None = "yes", **fields: Any
) -> Question:
    """A prompt of one message and its completions."""
    prompt = RewardPrompt(id, "task", (Message("user", content),), answer, **fields)
    return Question(prompt, tuple(completion(text) for text in texts))


def picture() -> Medium:
    """A grey PNG."""
    file = io.BytesIO()
    pillow.new("RGB", (8, 8), "grey").save(file, "PNG")
    return Medium(MediaKind.IMAGE, file.getvalue())


def sound() -> Medium:
    """A tenth of a second of silence, in WAV."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(bytes(3_200))
    return Medium(MediaKind.AUDIO, file.getvalue())


def film() -> Medium:
    """The first bytes of an MP4: nobody here decodes it."""
    return Medium(MediaKind.VIDEO, bytes(4) + b"ftypisom" + bytes(16))
