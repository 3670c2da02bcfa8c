"""Decoding in a process of its own: the same arrays as in this one, and a crash costs one medium."""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image as pillow

from pipeline.config import MediaLimits
from pipeline.data.decoder_child import header_frame
from pipeline.data.film import sound_track
from pipeline.data.isolated import Decoder
from pipeline.data.media import decode, encode_png, encode_video, encode_wav, flat
from pipeline.data.schema import Reason, RowError
from pipeline.records import Audio, MediaKind, Medium

RNG = np.random.default_rng(0)
PICTURE = Medium(MediaKind.IMAGE, encode_png(RNG.integers(0, 256, (32, 40, 3), dtype=np.uint8)))
TONE = Audio((0.5 * np.sin(np.arange(16_000) / 10)).astype(np.float32), 16_000)
SOUND = Medium(MediaKind.AUDIO, encode_wav(TONE))
CLIP = Medium(MediaKind.VIDEO, encode_video(RNG.integers(0, 256, (4, 32, 48, 3), dtype=np.uint8), 3.7))


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(MediaLimits()) as decoder:
        yield decoder


def with_sound_track(samples: np.ndarray, rate: int) -> bytes:
    """An MKV file with two frames and a lossless sound track, `samples` int16 [S] or [S, C]."""
    buffer = io.BytesIO()
    planes = samples.reshape(len(samples), -1)
    layout = "mono" if planes.shape[1] == 1 else "stereo"
    with av.open(buffer, mode="w", format="matroska") as container:
        pictures = container.add_stream("ffv1", rate=2)
        pictures.width, pictures.height, pictures.pix_fmt = 32, 32, "yuv420p"
        sounds = container.add_stream("pcm_s16le", rate=rate, layout=layout)
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode())
        packed = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes).reshape(1, -1), format="s16", layout=layout)
        packed.sample_rate = rate
        container.mux(sounds.encode(packed))
        container.mux(sounds.encode())
    return buffer.getvalue()


def refused(decoder: Decoder, medium: Medium) -> RowError:
    with pytest.raises(RowError) as caught:
        decoder.decode(medium)
    return caught.value


@pytest.mark.parametrize("medium", [PICTURE, SOUND, CLIP], ids=["image", "audio", "video"])
def test_a_medium_is_bit_equal_in_a_process_of_its_own_and_in_this_one(decoder: Decoder, medium: Medium) -> None:
    apart, here, off = (
        decoder.decode(medium),
        decode(medium, MediaLimits()),
        Decoder(MediaLimits(isolate_decoders=False)).decode(medium),
    )
    for (kind, array, rate), (other_kind, other_array, other_rate) in [
        (flat(apart), flat(here)),
        (flat(off), flat(here)),
    ]:
        assert (kind, rate, array.dtype) == (other_kind, other_rate, other_array.dtype)
        np.testing.assert_array_equal(array, other_array)
    assert flat(apart)[1].flags.writeable


def test_the_sound_track_of_a_video_comes_beside_its_frames(decoder: Decoder) -> None:
    wave = (10_000 * np.sin(np.arange(12_000) / 10)).astype(np.int16)
    medium = Medium(MediaKind.VIDEO, with_sound_track(np.stack([wave, np.zeros_like(wave)], axis=1), 12_000))
    here, apart = sound_track(medium, MediaLimits()), decoder.sound_track(medium)
    assert here is not None and apart is not None
    assert here.sampling_rate == apart.sampling_rate == 12_000
    np.testing.assert_array_equal(here.samples, apart.samples)
    np.testing.assert_allclose(here.samples, wave / 2**15 / 2, atol=1e-6)
    assert decoder.sound_track(CLIP) is None


def test_a_sound_track_keeps_the_bounds_of_sounds() -> None:
    medium = Medium(MediaKind.VIDEO, with_sound_track(np.zeros((8_000, 2), np.int16), 8_000))
    for limits, reason in [
        (MediaLimits(max_seconds=0.9), Reason.TOO_LONG),
        (MediaLimits(min_seconds=1.1), Reason.SOUND_TOO_SHORT),
        (MediaLimits(max_channels=1), Reason.TOO_MANY_CHANNELS),
    ]:
        with pytest.raises(RowError) as caught:
            sound_track(medium, limits)
        assert caught.value.reason is reason


def test_a_refusal_travels_with_reason_and_detail_and_the_child_lives_on(decoder: Decoder) -> None:
    decoder.decode(PICTURE)
    before = decoder.pid
    broken = Medium(MediaKind.IMAGE, PICTURE.data[:200])
    with pytest.raises(RowError) as here:
        decode(broken, MediaLimits())
    error = refused(decoder, broken)
    assert (error.reason, error.detail) == (here.value.reason, here.value.detail)
    assert decoder.pid == before


def test_a_segmentation_fault_costs_one_medium(decoder: Decoder) -> None:
    decoder.decode(PICTURE)
    child = decoder.pid
    assert child is not None
    os.kill(child, signal.SIGSTOP)  # so that the signal meets it with the request in hand
    threading.Timer(0.1, lambda: [os.kill(child, number) for number in (signal.SIGSEGV, signal.SIGCONT)]).start()
    error = refused(decoder, PICTURE)
    assert error.reason is Reason.DECODER_CRASHED
    assert "SIGSEGV" in error.detail and f"image of {len(PICTURE.data)} bytes" in error.detail
    decoder.decode(SOUND)
    assert decoder.pid not in (None, child)


def test_a_child_that_died_while_idle_costs_nothing(decoder: Decoder) -> None:
    decoder.decode(PICTURE)
    child = decoder.pid
    assert child is not None
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    decoder.decode(PICTURE)
    assert decoder.pid != child


def test_a_decoder_that_hangs_is_ended_in_time() -> None:
    with Decoder(MediaLimits(max_decode_s=0.5)) as decoder:
        large = Medium(MediaKind.IMAGE, PICTURE.data + bytes(4 * 2**20))  # more than a pipe holds
        for medium in (PICTURE, large):
            decoder.decode(PICTURE)
            child = decoder.pid
            assert child is not None
            os.kill(child, signal.SIGSTOP)
            started = time.monotonic()
            error = refused(decoder, medium)
            assert error.reason is Reason.DECODER_TOO_SLOW
            assert "max_decode_s is 0.5" in error.detail
            assert 0.5 < time.monotonic() - started < 5
            assert not Path(f"/proc/{child}").exists()


def test_a_file_that_needs_more_memory_than_allowed_costs_one_medium() -> None:
    buffer = io.BytesIO()
    pillow.new("RGBA", (7_000, 7_000)).save(buffer, format="PNG", compress_level=1)  # 196 MB, and again over white
    limits = MediaLimits(max_decode_mib=768, max_pixels=50_000_000)
    with Decoder(limits) as decoder:
        error = refused(decoder, Medium(MediaKind.IMAGE, buffer.getvalue()))
        assert error.reason is Reason.DECODER_CRASHED
        assert "max_decode_mib is 768" in error.detail
        decoder.decode(PICTURE)


def test_the_child_ends_with_its_parent() -> None:
    script = """
import os, sys
from pipeline.config import MediaLimits
from pipeline.data.isolated import Decoder
from tests.data.test_isolated import PICTURE
decoder = Decoder(MediaLimits())
decoder.decode(PICTURE)
print(decoder.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    child = int(out.stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{child}").exists()
    assert out.stderr == ""


def test_a_child_outlives_the_thread_that_started_it(decoder: Decoder) -> None:
    decoder.close()
    thread = threading.Thread(target=decoder.decode, args=(PICTURE,))
    thread.start()
    thread.join()
    child = decoder.pid
    decoder.decode(SOUND)
    assert child is not None and decoder.pid == child


def test_a_child_that_hangs_without_a_parent_ends_itself() -> None:
    limits = MediaLimits(max_decode_s=0.2)
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline.data.decoder_child", limits.model_dump_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None
    medium = Medium(MediaKind.IMAGE, encode_png(np.zeros((4_000, 4_000, 3), np.uint8)))
    header = {"task": "decode", "kind": "image", "num_bytes": len(medium.data)}
    child.stdin.write(header_frame(header) + medium.data)
    child.stdin.flush()
    assert child.wait(timeout=60) == -signal.SIGALRM, "48 MB of pixels that nobody reads"


def test_the_child_knows_no_secrets_and_imports_nothing_heavy(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    decoder.close()
    decoder.decode(PICTURE)
    assert b"hidden" not in Path(f"/proc/{decoder.pid}/environ").read_bytes()
    script = (
        "import sys, pipeline.data.decoder_child; print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


def test_a_decoder_travels_between_processes_without_its_child(decoder: Decoder) -> None:
    decoder.decode(PICTURE)
    twin: Decoder = pickle.loads(pickle.dumps(decoder))
    assert twin.pid is None and twin.limits == decoder.limits
