"""Steps on sounds. Decoding has averaged their channels already. What is left as it is comes back as the same object.

torch and torchaudio are imported where they are needed: workers that see no sound need not wait for them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr
from numpy.typing import NDArray

from pipeline.config.augmentations import NoiseColour
from pipeline.data.bounds import ROUNDING_S
from pipeline.data.media import resample as _resample
from pipeline.data.schema import Reason, RowError
from pipeline.records import Audio

if TYPE_CHECKING:
    from torch import Tensor

_Samples = NDArray[np.float32]

_GATE_S = 0.4
"""BS.1770 measures blocks of this length; shorter sounds are repeated until they fill one."""
_FRAME_S = 0.01
_SPECTRUM_S = 0.032
_SMOOTH_S = 0.05


def _power(samples: _Samples) -> float:
    return float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0


def _within_full_scale(samples: NDArray[Any]) -> _Samples:
    """The samples, all made quieter by one factor where one of them lies above full scale. Nothing is clipped."""
    peak = float(np.abs(samples).max(initial=0.0))
    return np.asarray(samples / peak if peak > 1 else samples, dtype=np.float32)


def resample(audio: Audio, *, sampling_rate: int) -> Audio:
    """The sound at another rate in Hz."""
    return _resample(audio, sampling_rate)


def integrated_loudness(audio: Audio) -> float:
    """Loudness in LUFS, gated (ITU-R BS.1770-4); -inf where nothing is louder than -70 LUFS."""
    import torch
    import torchaudio.functional

    block = np.resize(audio.samples, max(len(audio.samples), math.ceil(_GATE_S * audio.sampling_rate)))
    # Its filters, which lift high tones by 4 dB, clip at full scale.
    scale = min(1.0, 0.5 / max(float(np.abs(block).max(initial=0.0)), 1e-12))
    measured = float(torchaudio.functional.loudness(torch.tensor(block[None] * scale), audio.sampling_rate))
    return measured - 20 * math.log10(scale) if math.isfinite(measured) else -math.inf


def loudness(audio: Audio, *, target_lufs: float, max_peak_db: float) -> Audio:
    """The sound at `target_lufs`, or as near below it as `max_peak_db` (of the samples, against full scale) allows.

    One gain for the whole sound. What is silent, or below -70 LUFS throughout, stays as it is.
    """
    measured = integrated_loudness(audio)
    if measured == -math.inf:
        return audio
    gain_db = min(target_lufs - measured, max_peak_db - 20 * math.log10(float(np.abs(audio.samples).max())))
    return Audio(samples=audio.samples * np.float32(10 ** (gain_db / 20)), sampling_rate=audio.sampling_rate)


def trim(audio: Audio, *, threshold_db: float, padding_s: float) -> Audio:
    """The sound without the silence at its ends, but for `padding_s` seconds of it at each.

    Silent are frames of 10 ms whose power is more than `threshold_db` below that of the loudest.
    """
    size = max(1, round(_FRAME_S * audio.sampling_rate))
    num_samples = len(audio.samples)
    padded = np.pad(audio.samples, (0, -num_samples % size)).astype(np.float64)
    power = np.square(padded).reshape(-1, size).mean(axis=1)
    loud = np.flatnonzero(power > power.max(initial=0.0) * 10 ** (-threshold_db / 10))
    if not len(loud):
        return audio
    padding = round(padding_s * audio.sampling_rate)
    start = max(0, int(loud[0]) * size - padding)
    stop = min(num_samples, (int(loud[-1]) + 1) * size + padding)
    if (start, stop) == (0, num_samples):
        return audio
    return Audio(samples=audio.samples[start:stop], sampling_rate=audio.sampling_rate)


def bounds(audio: Audio, *, min_seconds: float | None, max_seconds: float | None) -> Audio:
    """The sound itself, if its duration is within bounds.

    Raises:
        RowError: sound_too_short or too_long.
    """
    seconds = len(audio.samples) / audio.sampling_rate
    if min_seconds is not None and seconds < min_seconds - ROUNDING_S:
        raise RowError(Reason.SOUND_TOO_SHORT, f"{seconds:.3f} s; min_seconds is {min_seconds:g}")
    if max_seconds is not None and seconds > max_seconds + ROUNDING_S:
        raise RowError(Reason.TOO_LONG, f"{seconds:.2f} s; max_seconds is {max_seconds:g}")
    return audio


def _spectrum_size(sampling_rate: int) -> int:
    """Samples in a frame of the spectrum: the power of two that is nearest to 32 ms."""
    return 2 ** max(4, round(math.log2(_SPECTRUM_S * sampling_rate)))


def _spectrum(audio: Audio) -> Tensor:
    """complex64 [frequencies, frames]; frames overlap by three quarters. `_resynthesise` is its inverse."""
    import torch

    size = _spectrum_size(audio.sampling_rate)
    samples = torch.tensor(audio.samples)
    window = torch.hann_window(size)
    return torch.stft(samples, size, size // 4, window=window, pad_mode="constant", return_complex=True)


def _resynthesise(spectrum: Tensor, audio: Audio) -> Audio:
    import torch

    size = _spectrum_size(audio.sampling_rate)
    samples = torch.istft(spectrum, size, size // 4, window=torch.hann_window(size), length=len(audio.samples))
    return Audio(samples=_within_full_scale(samples.numpy()), sampling_rate=audio.sampling_rate)


def denoise(audio: Audio, *, reduction_db: float, quietest: float, num_deviations: float) -> Audio:
    """The sound with its steady noise turned down by `reduction_db`: a spectral gate.

    The level of each frequency, in dB, is taken over 50 ms: else the ups and downs of noise itself open the gate. Its
    noise level is the mean over the quietest frames (this share of those that are not digital silence); the gate is
    open where the level lies `num_deviations` standard deviations above. It opens and closes over 50 ms, too: lone
    points that pass sound like bells.
    """
    import torch
    import torch.nn.functional

    def averaged(values: Tensor) -> Tensor:
        hop = _spectrum_size(audio.sampling_rate) // 4
        reach = round(_SMOOTH_S * audio.sampling_rate / hop / 2)
        average = torch.nn.functional.avg_pool1d
        return average(values, 2 * reach + 1, stride=1, padding=reach, count_include_pad=False)

    spectrum = _spectrum(audio)
    power = spectrum.abs().square()
    frame_power = power.mean(dim=0)
    heard = torch.nonzero(frame_power > 1e-12).flatten()
    if not len(heard):
        return audio
    order = heard[torch.argsort(frame_power[heard], stable=True)]
    level = 10 * torch.log10(averaged(power) + 1e-20)
    noise = level[:, order[: max(1, round(quietest * len(order)))]]
    threshold = noise.mean(dim=1) + num_deviations * noise.std(dim=1, correction=0)
    gate = averaged((level > threshold[:, None]).float())
    floor = 10 ** (-reduction_db / 20)
    return _resynthesise(spectrum * (floor + (1 - floor) * gate), audio)


def coloured_noise(num_samples: int, *, colour: NoiseColour, rng: np.random.Generator) -> NDArray[np.float64]:
    """Gaussian noise, float64 [S]. White: equal power in every Hz. Pink: power as 1 / frequency, -3 dB an octave."""
    white = rng.standard_normal(num_samples)
    if colour is NoiseColour.WHITE or num_samples < 2:
        return white
    spectrum = np.fft.rfft(white)
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    return np.fft.irfft(spectrum, num_samples)


def noise(
    audio: Audio, *, min_snr_db: float, max_snr_db: float, colour: NoiseColour, rng: np.random.Generator
) -> Audio:
    """The sound in noise; its power over the noise's, in dB, is uniform in [min_snr_db, max_snr_db].

    Both are made quieter together where the sum lies above full scale. Silence stays as it is: it has no such ratio.
    """
    snr_db = rng.uniform(min_snr_db, max_snr_db)
    added = coloured_noise(len(audio.samples), colour=colour, rng=rng)
    power, noise_power = _power(audio.samples), float(np.mean(np.square(added))) if len(added) else 0.0
    if power == 0 or noise_power == 0:
        return audio
    scale = math.sqrt(power / noise_power * 10 ** (-snr_db / 10))
    return Audio(samples=_within_full_scale(audio.samples + scale * added), sampling_rate=audio.sampling_rate)


def speed(audio: Audio, *, min_factor: float, max_factor: float, rng: np.random.Generator) -> Audio:
    """The sound faster or slower by a factor uniform in [min_factor, max_factor] (Ko et al., Interspeech 2015).

    It is resampled and taken for its old rate: duration is divided, every frequency is multiplied by the factor.
    """
    factor = rng.uniform(min_factor, max_factor)
    samples = soxr.resample(audio.samples, audio.sampling_rate * factor, audio.sampling_rate)
    return Audio(samples=_within_full_scale(samples), sampling_rate=audio.sampling_rate)


def spec_augment(
    audio: Audio,
    *,
    num_frequency_masks: int,
    max_mel_fraction: float,
    num_time_masks: int,
    max_mask_s: float,
    max_time_fraction: float,
    rng: np.random.Generator,
) -> Audio:
    """The sound without some bands of frequency and spans of time (SpecAugment, Park et al., arXiv 1904.08779).

    The masks lie on the spectrum, which then becomes a sound again with its own phases, so that every model's features
    show them. A band's width is uniform on the mel scale (as in the paper, whose masks lie on mel bands) up to
    `max_mel_fraction` of it; a span's is uniform up to the lower of `max_mask_s` and `max_time_fraction` of the sound.
    """
    import torch

    spectrum = _spectrum(audio)
    hertz = np.linspace(0, audio.sampling_rate / 2, spectrum.shape[0])
    mels = np.log1p(hertz / 700)
    gain = np.ones(spectrum.shape, dtype=np.float32)
    for band in _bands(mels / mels[-1], num=num_frequency_masks, widest=max_mel_fraction, rng=rng):
        gain[band] = 0
    times = np.linspace(0, 1, spectrum.shape[1])
    widest = min(max_time_fraction, max_mask_s * audio.sampling_rate / len(audio.samples))
    for span in _bands(times, num=num_time_masks, widest=widest, rng=rng):
        gain[:, span] = 0
    return _resynthesise(spectrum * torch.from_numpy(gain), audio)


def _bands(
    scale: NDArray[np.float64], *, num: int, widest: float, rng: np.random.Generator
) -> Iterator[NDArray[np.bool_]]:
    """Masks of bands on a scale from 0 to 1, each of a width uniform in [0, widest], where it has room."""
    for _ in range(num):
        width = rng.uniform(0, widest)
        start = rng.uniform(0, 1 - width)
        yield (scale >= start) & (scale < start + width)


def room_response(
    *, sampling_rate: int, rt60_s: float, direct_db: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """What a synthetic room answers to a click, float64 [S]: the click, then noise that decays by 60 dB in `rt60_s`.

    Polack's model: h(t) = noise(t) * 10^(-3 t / rt60). `direct_db` is the click's energy over that of all the rest.
    """
    times = np.arange(1, max(2, round(rt60_s * sampling_rate))) / sampling_rate
    tail = rng.standard_normal(len(times)) * 10 ** (-3 * times / rt60_s)
    tail *= math.sqrt(10 ** (-direct_db / 10) / np.sum(np.square(tail)))
    return np.concatenate(([1.0], tail))


def reverb(
    audio: Audio,
    *,
    min_rt60_s: float,
    max_rt60_s: float,
    min_direct_db: float,
    max_direct_db: float,
    rng: np.random.Generator,
) -> Audio:
    """The sound in a synthetic room; its reverberation time and direct energy are uniform in their ranges.

    Duration and energy stay (the last echoes are cut off), but where the result would lie above full scale.
    """
    response = room_response(
        sampling_rate=audio.sampling_rate,
        rt60_s=rng.uniform(min_rt60_s, max_rt60_s),
        direct_db=rng.uniform(min_direct_db, max_direct_db),
        rng=rng,
    )
    power, num_samples = _power(audio.samples), len(audio.samples)
    if power == 0:
        return audio
    size = 2 ** math.ceil(math.log2(num_samples + len(response)))  # other sizes can be 20 times slower
    heard = np.fft.irfft(np.fft.rfft(audio.samples, size) * np.fft.rfft(response, size), size)[:num_samples]
    heard *= math.sqrt(power / np.mean(np.square(heard)))
    return Audio(samples=_within_full_scale(heard), sampling_rate=audio.sampling_rate)


def mel(audio: Audio, *, num_mels: int, window_s: float, hop_s: float) -> NDArray[np.float32]:
    """Natural logarithm of the mel power spectrogram, floored at 1e-10: float32 [frames, num_mels] (torchaudio)."""
    import torch

    spectrogram = _transform(audio.sampling_rate, num_mels, window_s, hop_s)(torch.tensor(audio.samples))
    return spectrogram.clamp(min=1e-10).log().T.contiguous().numpy()


def mfcc(audio: Audio, *, num_coefficients: int, num_mels: int, window_s: float, hop_s: float) -> NDArray[np.float32]:
    """Mel-frequency cepstral coefficients: float32 [frames, num_coefficients] (torchaudio)."""
    import torch

    transform = _transform(audio.sampling_rate, num_mels, window_s, hop_s, num_coefficients)
    return transform(torch.tensor(audio.samples)).T.contiguous().numpy()


@functools.lru_cache(maxsize=8)
def _transform(
    sampling_rate: int, num_mels: int, window_s: float, hop_s: float, num_coefficients: int | None = None
) -> Any:
    """To the mel spectrogram, or to this many cepstral coefficients of it."""
    import torchaudio.transforms

    window = max(2, round(window_s * sampling_rate))
    settings: dict[str, Any] = {
        "n_fft": 2 ** math.ceil(math.log2(window)),
        "win_length": window,
        "hop_length": max(1, round(hop_s * sampling_rate)),
        "n_mels": num_mels,
        "pad_mode": "constant",  # Reflection needs a sound that is longer than half a window.
    }
    if num_coefficients is None:
        return torchaudio.transforms.MelSpectrogram(sampling_rate, **settings)
    return torchaudio.transforms.MFCC(sampling_rate, num_coefficients, melkwargs=settings)
