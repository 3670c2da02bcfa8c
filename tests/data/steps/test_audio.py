"""Sounds: levels, durations and spectra are what the parameters say, measured on sounds whose answer is known."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio.functional
import torchaudio.transforms

from pipeline.config.augmentations import NoiseColour
from pipeline.data.schema import Reason, RowError
from pipeline.data.steps import audio as steps
from pipeline.records import Audio

RATE = 16_000


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sine(hertz: float, *, seconds: float = 1.0, amplitude: float = 0.5, rate: int = RATE) -> Audio:
    times = np.arange(round(seconds * rate)) / rate
    return Audio(samples=(amplitude * np.sin(2 * np.pi * hertz * times)).astype(np.float32), sampling_rate=rate)


def silence(seconds: float) -> Audio:
    return Audio(samples=np.zeros(round(seconds * RATE), dtype=np.float32), sampling_rate=RATE)


def joined(*sounds: Audio) -> Audio:
    return Audio(samples=np.concatenate([sound.samples for sound in sounds]), sampling_rate=RATE)


def decibels(power_ratio: float) -> float:
    return 10 * float(np.log10(power_ratio))


def power(samples: np.ndarray[Any, Any]) -> float:
    return float(np.mean(np.square(samples, dtype=np.float64)))


def test_resampling_changes_the_rate_and_keeps_duration_and_pitch() -> None:
    high = sine(440, seconds=0.5, rate=44_100)
    low = steps.resample(high, sampling_rate=RATE)
    assert (low.sampling_rate, len(low.samples)) == (RATE, 8_000)
    assert np.argmax(np.abs(np.fft.rfft(low.samples))) == 220, "bins of 2 Hz"
    assert steps.resample(low, sampling_rate=RATE) is low


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_a_sine_of_997_hz_measures_3_db_below_its_peak(rate: int) -> None:
    """BS.1770: at full scale it reads -3.01 LUFS in one channel."""
    for peak_db in (0, -20, -40):
        measured = steps.integrated_loudness(sine(997, seconds=2, amplitude=10 ** (peak_db / 20), rate=rate))
        assert measured == pytest.approx(peak_db - 3.01, abs=0.1)


def test_loudness_brings_a_sine_to_the_amplitude_that_minus_23_lufs_have() -> None:
    """-23 LUFS are a peak of -19.99 dB: an amplitude of 0.1001."""
    for amplitude in (0.01, 0.9):
        sound = steps.loudness(sine(997, seconds=2, amplitude=amplitude), target_lufs=-23, max_peak_db=-1)
        assert np.abs(sound.samples).max() == pytest.approx(0.1001, rel=0.02)
        assert steps.integrated_loudness(sound) == pytest.approx(-23, abs=0.05)


def test_loudness_stops_at_the_peak_limit_and_clips_nothing() -> None:
    click = sine(997, seconds=2, amplitude=0.01)
    click.samples[100] = 0.9
    louder = steps.loudness(click, target_lufs=-10, max_peak_db=-1)
    assert np.abs(louder.samples).max() == pytest.approx(10 ** (-1 / 20), rel=1e-5)
    np.testing.assert_allclose(louder.samples / louder.samples[100], click.samples / click.samples[100], rtol=1e-5)


def test_sounds_shorter_than_a_block_of_the_meter_are_levelled_too() -> None:
    short = steps.loudness(sine(997, seconds=0.1, amplitude=0.01), target_lufs=-23, max_peak_db=-1)
    assert np.abs(short.samples).max() == pytest.approx(0.1001, rel=0.05)


def trimmed(sound: Audio, padding_s: float = 0.0) -> Audio:
    return steps.trim(sound, threshold_db=40, padding_s=padding_s)


def test_trim_cuts_silence_off_both_ends_and_keeps_the_padding_and_pauses() -> None:
    tone = sine(500, seconds=0.2)
    sound = joined(silence(0.5), tone, silence(0.3), tone, silence(0.4))
    np.testing.assert_array_equal(trimmed(sound).samples, joined(tone, silence(0.3), tone).samples)
    padded = trimmed(sound, padding_s=0.1)
    np.testing.assert_array_equal(padded.samples, joined(silence(0.1), tone, silence(0.3), tone, silence(0.1)).samples)


def test_trim_judges_silence_by_the_peak_of_the_sound() -> None:
    hiss = Audio(samples=(0.001 * rng().standard_normal(4_800)).astype(np.float32), sampling_rate=RATE)
    tone = sine(500, seconds=0.2)
    assert len(trimmed(joined(hiss, tone, hiss)).samples) == 3_200
    quiet = Audio(samples=tone.samples * 0.004, sampling_rate=RATE)
    assert len(trimmed(joined(hiss, quiet, hiss)).samples) == 12_800, "36 dB are not enough"


def test_a_sound_without_silence_at_its_ends_comes_back_itself() -> None:
    for sound in (sine(500), joined(silence(0.1), sine(500), silence(0.1))):
        assert trimmed(sound, padding_s=0.1) is sound


def test_silence_throughout_is_left_alone_by_every_step() -> None:
    sound = silence(0.5)
    assert trimmed(sound) is sound
    assert steps.loudness(sound, target_lufs=-23, max_peak_db=-1) is sound
    assert steps.denoise(sound, reduction_db=12, quietest=0.1, num_deviations=2) is sound
    assert steps.noise(sound, min_snr_db=0, max_snr_db=0, colour=NoiseColour.WHITE, rng=rng()) is sound
    room = {"min_rt60_s": 0.1, "max_rt60_s": 0.2, "min_direct_db": 0.0, "max_direct_db": 0.0}
    assert steps.reverb(sound, **room, rng=rng()) is sound


def denoised(sound: Audio) -> Audio:
    return steps.denoise(sound, reduction_db=20, quietest=0.2, num_deviations=2)


def test_denoising_turns_noise_down_and_leaves_the_tone() -> None:
    hiss = 0.01 * rng().standard_normal(2 * RATE)
    tone = sine(1_000, seconds=2).samples.copy()
    tone[:RATE] = 0
    clean = denoised(Audio(samples=(tone + hiss).astype(np.float32), sampling_rate=RATE)).samples
    alone = slice(1_000, RATE - 1_000)
    assert -20 <= decibels(power(clean[alone]) / power(hiss[alone])) < -15
    steady = slice(RATE + 2_000, 2 * RATE - 2_000)
    assert decibels(power(clean[steady]) / power(tone[steady])) == pytest.approx(0, abs=0.3)
    assert decibels(power(clean[steady] - tone[steady]) / power(hiss[steady])) < -6


def test_denoising_keeps_the_length_of_any_sound_and_digital_silence_is_no_noise() -> None:
    for num_samples in (1, 2, 17, 511, 8_001):
        sound = Audio(samples=(0.1 * rng().standard_normal(num_samples)).astype(np.float32), sampling_rate=RATE)
        assert len(denoised(sound).samples) == num_samples
    hiss = (0.01 * rng().standard_normal(RATE)).astype(np.float32)
    padded = denoised(joined(silence(1.0), Audio(samples=hiss, sampling_rate=RATE))).samples
    assert decibels(power(padded[RATE + 1_000 :]) / power(hiss[1_000:])) < -15


def test_sounds_out_of_bounds_are_refused_and_those_at_the_bounds_are_not() -> None:
    sound = sine(440, seconds=0.5)
    assert steps.bounds(sound, min_seconds=0.5, max_seconds=0.5) is sound
    for bound, reason in (
        ({"min_seconds": 0.6, "max_seconds": None}, Reason.SOUND_TOO_SHORT),
        ({"min_seconds": None, "max_seconds": 0.4}, Reason.TOO_LONG),
    ):
        with pytest.raises(RowError) as caught:
            steps.bounds(sound, **bound)
        assert caught.value.reason is reason


@pytest.mark.parametrize("colour", list(NoiseColour))
@pytest.mark.parametrize("snr_db", [0.0, 20.0])
def test_noise_is_added_at_the_ratio_asked_for(colour: NoiseColour, snr_db: float) -> None:
    sound = sine(440, amplitude=0.1)
    noisy = steps.noise(sound, min_snr_db=snr_db, max_snr_db=snr_db, colour=colour, rng=rng())
    assert decibels(power(sound.samples) / power(noisy.samples - sound.samples)) == pytest.approx(snr_db, abs=0.1)


def test_noise_over_full_scale_makes_sound_and_noise_quieter_together() -> None:
    sound = sine(440, amplitude=1.0)
    noisy = steps.noise(sound, min_snr_db=3, max_snr_db=3, colour=NoiseColour.WHITE, rng=rng()).samples
    assert np.abs(noisy).max() == pytest.approx(1.0)
    scale = float(noisy @ sound.samples / (sound.samples @ sound.samples))
    assert decibels(power(scale * sound.samples) / power(noisy - scale * sound.samples)) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize(("colour", "slope"), [(NoiseColour.WHITE, 0.0), (NoiseColour.PINK, -3.01)])
def test_pink_noise_falls_by_3_db_an_octave_and_white_does_not(colour: NoiseColour, slope: float) -> None:
    spectrum = np.abs(np.fft.rfft(steps.coloured_noise(2**18, colour=colour, rng=rng()))) ** 2
    octaves = [decibels(spectrum[2**place : 2 ** (place + 1)].mean()) for place in range(8, 17)]
    assert np.polyfit(range(len(octaves)), octaves, 1)[0] == pytest.approx(slope, abs=0.1)


def test_speed_divides_the_duration_and_multiplies_the_pitch() -> None:
    fast = steps.speed(sine(400), min_factor=1.25, max_factor=1.25, rng=rng())
    assert (len(fast.samples), fast.sampling_rate) == (12_800, RATE)
    spectrum = np.abs(np.fft.rfft(fast.samples))
    assert np.argmax(spectrum) * RATE / len(fast.samples) == pytest.approx(500, abs=2)


def masked(sound: Audio, seed: int = 0, **parameters: Any) -> Audio:
    given: dict[str, Any] = {
        "num_frequency_masks": 0,
        "max_mel_fraction": 0.2,
        "num_time_masks": 0,
        "max_mask_s": 0.5,
        "max_time_fraction": 0.3,
    }
    return steps.spec_augment(sound, **(given | parameters), rng=rng(seed))


HISS = Audio(samples=(0.1 * rng().standard_normal(2 * RATE)).astype(np.float32), sampling_rate=RATE)


def test_spec_augment_without_masks_gives_the_sound_back() -> None:
    np.testing.assert_allclose(masked(HISS).samples, HISS.samples, atol=1e-6)


def test_a_time_mask_silences_one_span_of_at_most_its_length() -> None:
    longest = 0.0
    for seed in range(10):
        sound = masked(HISS, seed, num_time_masks=1)
        quiet = np.flatnonzero(np.square(sound.samples).reshape(-1, 160).mean(axis=1) < 1e-6)
        longest = max(longest, len(quiet) * 0.01)
        assert len(sound.samples) == len(HISS.samples)
        assert not len(quiet) or len(quiet) == quiet[-1] - quiet[0] + 1
    assert 0.2 < longest <= 0.5


def test_a_frequency_mask_silences_one_band_and_leaves_the_others() -> None:
    before = np.abs(np.fft.rfft(HISS.samples)).reshape(-1)[:-1].reshape(160, -1).mean(axis=1)
    found = 0
    for seed in range(10):
        after = (
            np.abs(np.fft.rfft(masked(HISS, seed, num_frequency_masks=1).samples))[:-1].reshape(160, -1).mean(axis=1)
        )
        quiet = np.flatnonzero(after < 0.1 * before)
        found += len(quiet) > 0
        assert not len(quiet) or len(quiet) == quiet[-1] - quiet[0] + 1
        assert np.median(after / before) == pytest.approx(1, abs=0.05)
    assert found >= 5


@pytest.mark.parametrize("rt60_s", [0.3, 1.0])
def test_a_room_decays_by_60_db_in_its_rt60(rt60_s: float) -> None:
    """Measured as rooms are: the slope of the backward integral (Schroeder 1965) from -5 to -35 dB, times two."""
    response = steps.room_response(sampling_rate=RATE, rt60_s=rt60_s, direct_db=0.0, rng=rng())
    left = np.cumsum(np.square(response[1:])[::-1])[::-1]
    level = 10 * np.log10(left / left[0])
    start, end = (int(np.argmax(level <= bound)) for bound in (-5, -35))
    assert 2 * (end - start) / RATE == pytest.approx(rt60_s, rel=0.05)


def test_the_direct_sound_stands_above_the_room_by_the_ratio_asked_for() -> None:
    response = steps.room_response(sampling_rate=RATE, rt60_s=0.5, direct_db=6.0, rng=rng())
    assert decibels(response[0] ** 2 / np.sum(np.square(response[1:]))) == pytest.approx(6.0)


def test_reverb_keeps_length_and_energy_and_rings_on() -> None:
    sound = joined(sine(440, seconds=0.5, amplitude=0.1), silence(0.5))
    heard = steps.reverb(sound, min_rt60_s=0.5, max_rt60_s=0.5, min_direct_db=0, max_direct_db=0, rng=rng())
    assert len(heard.samples) == len(sound.samples)
    assert power(heard.samples) == pytest.approx(power(sound.samples), rel=1e-4)
    assert power(heard.samples[8_000:9_600]) > 100 * power(heard.samples[-1_600:]) > 0


def test_mel_and_mfcc_are_torchaudios_frame_by_frame() -> None:
    sound = sine(440)
    mel = steps.mel(sound, num_mels=80, window_s=0.025, hop_s=0.01)
    assert (mel.shape, mel.dtype, mel.flags.c_contiguous) == ((101, 80), np.float32, True)
    bands = torchaudio.functional.melscale_fbanks(257, 0, RATE / 2, 80, RATE)
    assert abs(int(mel[50].argmax()) - int(bands[round(440 / (RATE / 512))].argmax())) <= 1
    mfcc = steps.mfcc(sound, num_coefficients=13, num_mels=40, window_s=0.025, hop_s=0.01)
    settings = {"n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 40, "pad_mode": "constant"}
    direct = torchaudio.transforms.MFCC(RATE, 13, melkwargs=settings)(torch.tensor(sound.samples)).T.numpy()
    assert mfcc.shape == (101, 13)
    np.testing.assert_array_equal(mfcc, direct)


def test_a_sound_of_a_few_samples_still_has_a_frame() -> None:
    short = Audio(samples=np.ones(3, dtype=np.float32), sampling_rate=RATE)
    assert steps.mel(short, num_mels=80, window_s=0.025, hop_s=0.01).shape == (1, 80)


def test_the_steps_load_without_torch() -> None:
    code = "import sys; import pipeline.data.steps; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == "False\n"
