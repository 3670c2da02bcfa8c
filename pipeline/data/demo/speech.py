"""Spoken digits, and the words of drawn scenes, made offline with eSpeak NG, for the demo data.

The library and its voices come in the wheel `espeakng-loader` (extra `demo`) and are called through ctypes.
eSpeak keeps hidden state from word to word, so one word said twice differs. For the same sounds in every run, all
words of all voices are said once, in a fixed order, by a fresh library: `word_bank`, and after it `scene_bank`.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.media import resample
from pipeline.records import Audio

SAMPLING_RATE = 16_000
MAX_SECONDS = 1.9  # the tiny checkpoint hears two seconds
NUM_VOICES = 40

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SCENE_WORDS = (
    *("red", "green", "blue", "yellow", "square", "ring", "cross"),
    *("above", "below", "left", "right", "of", "a", "moves", "up", "down"),
)
"""What `say` knows: the words of `drawing`."""

_ACCENTS = ("en", "en-us")
_VARIANTS = ("m1", "m2", "m3", "m4", "m5", "f1", "f4")  # f2, f3 and f5 sound different in every process
_WORDS_PER_MINUTE = (180, 200, 220)  # slower ones make three digits longer than MAX_SECONDS
_PITCHES = (35, 50, 65)
_LEAD_S = (0.0, 0.03)
_PAUSE_S = (0.01, 0.04)
_SILENCE = 0.02  # of a word's peak
_EDGE_SAMPLES = 80


@dataclass(frozen=True)
class Voice:
    """A voice setting: accent, variant (m: male, f: female), words a minute, pitch (0 to 99)."""

    accent: str
    variant: str
    words_per_minute: int
    pitch: int

    @property
    def name(self) -> str:
        """Identity of the setting, for leakage checks."""
        return f"voice:{self.accent}+{self.variant}/{self.words_per_minute}/{self.pitch}"


@cache
def voices() -> tuple[Voice, ...]:
    """The settings in use: `NUM_VOICES` of all combinations, spread over them by their hash."""
    grid = [Voice(*setting) for setting in product(_ACCENTS, _VARIANTS, _WORDS_PER_MINUTE, _PITCHES)]
    return tuple(sorted(grid, key=lambda voice: hashlib.sha256(voice.name.encode()).digest())[:NUM_VOICES])


@cache
def word_bank() -> Mapping[tuple[Voice, int], NDArray[np.float32]]:
    """Every digit in every voice: float32 [S] at `SAMPLING_RATE`, silence trimmed, peak 1."""
    said = _say_all(DIGIT_WORDS)
    return {(voice, digit): said[voice, word] for voice in voices() for digit, word in enumerate(DIGIT_WORDS)}


@cache
def scene_bank() -> Mapping[tuple[Voice, str], NDArray[np.float32]]:
    """Every one of `SCENE_WORDS` in every voice: float32 [S] at `SAMPLING_RATE`, silence trimmed, peak 1."""
    word_bank()  # the digits first, so that they are the same with scenes and without
    return _say_all(SCENE_WORDS)


@cache
def _speaker() -> _ESpeak:
    return _ESpeak()


def _say_all(words: Sequence[str]) -> dict[tuple[Voice, str], NDArray[np.float32]]:
    speaker = _speaker()
    bank: dict[tuple[Voice, str], NDArray[np.float32]] = {}
    for voice in voices():
        speaker.choose(voice)
        for word in words:
            spoken = resample(Audio(speaker.say(word), speaker.sampling_rate), SAMPLING_RATE)
            bank[voice, word] = _trim(spoken.samples)
    return bank


def fits(voice: Voice, digits: tuple[int, ...]) -> bool:
    """Whether the voice says the digits within `MAX_SECONDS`, however long it pauses."""
    spoken_s = sum(len(word_bank()[voice, digit]) for digit in digits) / SAMPLING_RATE
    return spoken_s + _LEAD_S[1] + len(digits) * _PAUSE_S[1] <= MAX_SECONDS


def speak(voice: Voice, digits: tuple[int, ...], rng: np.random.Generator) -> Audio:
    """Digits with short random pauses, a random level, and white noise 20 to 35 dB below the speech."""
    audio = _utter([word_bank()[voice, digit] for digit in digits], rng)
    if len(audio.samples) > MAX_SECONDS * SAMPLING_RATE:
        seconds = len(audio.samples) / SAMPLING_RATE
        raise RuntimeError(f"{digits} in {voice.name}: {seconds:.2f} s, over {MAX_SECONDS} s")
    return audio


def say(voice: Voice, words: Sequence[str], rng: np.random.Generator) -> Audio:
    """Some of `SCENE_WORDS`, spoken as `speak` speaks digits; of any length.

    Raises:
        KeyError: a word is none of them.
    """
    return _utter([scene_bank()[voice, word] for word in words], rng)


def _utter(words: Sequence[NDArray[np.float32]], rng: np.random.Generator) -> Audio:
    pieces = [_silence(rng, *_LEAD_S)]
    for word in words:
        pieces += [word, _silence(rng, *_PAUSE_S)]
    speech = np.concatenate(pieces) * rng.uniform(0.4, 0.9)
    noise_to_signal = 10 ** (-rng.uniform(20, 35) / 20)
    noise = rng.standard_normal(len(speech)) * np.sqrt(np.mean(speech**2)) * noise_to_signal
    samples = np.clip(speech + noise, -1.0, 1.0).astype(np.float32)
    return Audio(samples=samples, sampling_rate=SAMPLING_RATE)


def _silence(rng: np.random.Generator, low_s: float, high_s: float) -> NDArray[np.float32]:
    return np.zeros(int(rng.uniform(low_s, high_s) * SAMPLING_RATE), dtype=np.float32)


def _trim(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    loudness = np.abs(samples)
    loud = np.flatnonzero(loudness > _SILENCE * loudness.max())
    kept = samples[max(0, loud[0] - _EDGE_SAMPLES) : loud[-1] + 1 + _EDGE_SAMPLES]
    return kept / np.abs(kept).max()


class _ESpeak:
    """The one place that touches eSpeak's global state. Names and numbers are those of `speak_lib.h`."""

    _SYNCHRONOUS = 2
    _DO_NOT_EXIT = 0x8000
    _CHARS_UTF8 = 1
    _RATE = 1
    _PITCH = 3

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise ImportError("the spoken digits need eSpeak NG: pip install 'polyphony[demo]'") from error
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data_path = str(espeakng_loader.get_data_path()).encode()
        self.sampling_rate = int(self._library.espeak_Initialize(self._SYNCHRONOUS, 0, data_path, self._DO_NOT_EXIT))
        if self.sampling_rate <= 0:
            raise RuntimeError(f"eSpeak NG does not start: code {self.sampling_rate}, data in {data_path.decode()}")
        self._blocks: list[NDArray[np.int16]] = []
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = callback(self._take)  # the library keeps the pointer: so must we
        self._library.espeak_SetSynthCallback(self._callback)

    def _take(self, samples: Any, num_samples: int, _: int | None) -> int:
        if samples and num_samples > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        return 0

    def choose(self, voice: Voice) -> None:
        name = f"{voice.accent}+{voice.variant}"
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise RuntimeError(f"eSpeak NG has no voice {name!r}")  # it would go on with the voice before
        self._library.espeak_SetParameter(self._RATE, voice.words_per_minute, 0)
        self._library.espeak_SetParameter(self._PITCH, voice.pitch, 0)

    def say(self, word: str) -> NDArray[np.float32]:
        """The word, float32 [S] in [-1, 1] at `sampling_rate`."""
        self._blocks.clear()
        text = word.encode() + b"\0"
        self._library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 0, 0, self._CHARS_UTF8, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate(self._blocks).astype(np.float32) / np.float32(32_768)
