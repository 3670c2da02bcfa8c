"""Decoding within bounds: what comes through is right, what does not has its reason."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image as pillow

from pipeline.config import MediaLimits
from pipeline.data.media import blank, content_key, decode, encode_png, encode_video, encode_wav, resample
from pipeline.data.schema import Reason, RowError
from pipeline.records import Audio, DecodedMedium, Image, MediaKind, Medium, Video
from tests.data.files import image_file, sound_file, sound_in, tone

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, size=(6, 9, 3), dtype=np.uint8)
TONE = Audio(samples=(0.5 * np.sin(np.arange(8_000) / 10)).astype(np.float32), sampling_rate=16_000)
FRAMES = np.stack([np.full((32, 48, 3), 20 * number, dtype=np.uint8) for number in range(12)])
CLIP = encode_video(FRAMES, 6.0)


def decoded(kind: MediaKind, data: bytes, **limits: Any) -> DecodedMedium:
    return decode(Medium(kind, data), MediaLimits(**limits))


def reason(kind: MediaKind, data: bytes, **limits: Any) -> Reason:
    with pytest.raises(RowError) as caught:
        decoded(kind, data, **limits)
    return caught.value.reason


def test_a_png_comes_back_pixel_for_pixel() -> None:
    image = decoded(MediaKind.IMAGE, encode_png(PIXELS))
    assert isinstance(image, Image)
    np.testing.assert_array_equal(image.pixels, PIXELS)


def test_a_photograph_is_turned_by_its_exif_orientation() -> None:
    exif = pillow.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image = decoded(MediaKind.IMAGE, image_file(pillow.fromarray(PIXELS), exif=exif))
    assert isinstance(image, Image)
    np.testing.assert_array_equal(image.pixels, np.rot90(PIXELS, k=-1))


def test_transparency_lies_over_white_and_16_bits_are_scaled_to_8() -> None:
    clear = decoded(MediaKind.IMAGE, image_file(pillow.new("RGBA", (3, 3), (255, 0, 0, 0))))
    deep = decoded(MediaKind.IMAGE, image_file(pillow.fromarray(np.full((3, 3), 128 * 257, dtype=np.uint16))))
    assert isinstance(clear, Image) and isinstance(deep, Image)
    assert (clear.pixels == 255).all()
    assert (deep.pixels == 128).all()


def test_numbers_of_more_than_8_bits_become_grey_where_their_black_and_white_are_known() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for deep in ((ramp / 255).astype(np.float32), ramp.astype(np.uint16) * 257):
        image = decoded(MediaKind.IMAGE, image_file(pillow.fromarray(deep), "TIFF"))
        assert isinstance(image, Image)
        np.testing.assert_array_equal(image.pixels, np.repeat(ramp[:, :, None], 3, axis=2))
    for unknown in (
        ramp.astype(np.int32),
        ramp.astype(np.int32) * 2**23,
        ramp.astype(np.float32),
    ):
        with pytest.raises(RowError, match="8 or 16 bits") as caught:
            decoded(MediaKind.IMAGE, image_file(pillow.fromarray(unknown), "TIFF"))
        assert caught.value.reason is Reason.UNSUPPORTED_FORMAT


def test_a_jpeg_whose_rest_is_zeros_is_refused_and_not_made_grey() -> None:
    noise = pillow.fromarray(RNG.integers(0, 256, (200, 300, 3), np.uint8))
    exif = pillow.Exif()
    thumbnail = image_file(noise.resize((16, 16)), "JPEG")
    exif[0x010E] = thumbnail.decode("latin-1")  # with an end mark of its own
    for options in ({}, {"progressive": True}, {"exif": exif}):
        jpeg = image_file(noise, "JPEG", **options)
        decoded(MediaKind.IMAGE, jpeg)
        half = len(jpeg) // 2
        assert reason(MediaKind.IMAGE, jpeg[:half] + bytes(len(jpeg) - half)) is Reason.CORRUPT_IMAGE


def test_pictures_out_of_bounds_are_refused_before_they_are_decoded() -> None:
    large = image_file(pillow.new("1", (9_000, 9_000)))
    assert reason(MediaKind.IMAGE, large) is Reason.TOO_MANY_PIXELS
    assert reason(MediaKind.IMAGE, large[:200]) is Reason.TOO_MANY_PIXELS, "the header is enough"
    bomb = image_file(pillow.new("1", (20_000, 20_000)))
    assert reason(MediaKind.IMAGE, bomb, max_pixels=10**9) is Reason.TOO_MANY_PIXELS, "Pillow's own limit counts too"
    assert reason(MediaKind.IMAGE, image_file(pillow.new("L", (404, 4)))) is Reason.BAD_ASPECT_RATIO
    assert reason(MediaKind.IMAGE, encode_png(PIXELS), max_bytes=10) is Reason.TOO_MANY_BYTES


def test_a_corrupt_or_a_vector_picture_is_refused() -> None:
    png = encode_png(RNG.integers(0, 256, size=(64, 64, 3), dtype=np.uint8))
    assert reason(MediaKind.IMAGE, png[: len(png) // 2]) is Reason.CORRUPT_IMAGE
    assert reason(MediaKind.IMAGE, b"not a picture") is Reason.CORRUPT_IMAGE
    assert reason(MediaKind.IMAGE, image_file(pillow.new("RGB", (8, 8)), format="EPS")) is Reason.UNSUPPORTED_FORMAT


def test_a_wav_comes_back_at_its_own_rate_to_16_bits() -> None:
    sound = decoded(MediaKind.AUDIO, encode_wav(TONE))
    assert isinstance(sound, Audio)
    assert (sound.sampling_rate, sound.samples.dtype) == (16_000, np.float32)
    np.testing.assert_allclose(sound.samples, TONE.samples, atol=1 / 32_000)


def test_channels_are_averaged_over_every_block_of_a_long_sound() -> None:
    stereo = np.stack([np.linspace(-0.5, 0.5, 150_000), np.zeros(150_000)], axis=1)
    sound = decoded(MediaKind.AUDIO, sound_file(stereo, format="FLAC"))
    assert isinstance(sound, Audio)
    np.testing.assert_allclose(sound.samples, stereo.mean(axis=1), atol=1e-4)


def test_resampling_keeps_duration_and_loudness() -> None:
    slow = resample(TONE, 8_000)
    assert (len(slow.samples), slow.sampling_rate) == (4_000, 8_000)
    assert np.sqrt(np.mean(slow.samples**2)) == pytest.approx(np.sqrt(np.mean(TONE.samples**2)), rel=0.02)
    assert resample(TONE, 16_000) is TONE


def test_sounds_out_of_bounds_are_refused() -> None:
    assert reason(MediaKind.AUDIO, sound_file(np.zeros(0))) is Reason.SOUND_TOO_SHORT
    assert reason(MediaKind.AUDIO, sound_file(np.zeros(320))) is Reason.SOUND_TOO_SHORT, "20 ms give no token"
    assert reason(MediaKind.AUDIO, sound_file(np.zeros(32_000)), max_seconds=1.9) is Reason.TOO_LONG
    assert reason(MediaKind.AUDIO, sound_file(np.zeros((8_000, 9)))) is Reason.TOO_MANY_CHANNELS
    assert reason(MediaKind.AUDIO, encode_wav(TONE), max_bytes=100) is Reason.TOO_MANY_BYTES


def test_a_corrupt_sound_is_refused() -> None:
    noise = sound_file(RNG.uniform(-1, 1, 48_000), format="FLAC")
    assert reason(MediaKind.AUDIO, noise[: len(noise) // 2]) is Reason.CORRUPT_AUDIO
    assert reason(MediaKind.AUDIO, b"RIFF but no sound") is Reason.CORRUPT_AUDIO
    not_numbers = sound_file(np.full(8_000, np.nan, dtype=np.float32), subtype="FLOAT")
    assert reason(MediaKind.AUDIO, not_numbers) is Reason.CORRUPT_AUDIO


def heard(data: bytes, **limits: Any) -> Audio:
    sound = decoded(MediaKind.AUDIO, data, **limits)
    assert isinstance(sound, Audio)
    return sound


def mp3(*, header: bool, **coding: str) -> bytes:
    """About a second of a tone of 48 kHz; without `header`, frames alone, as services that speak send them."""
    return sound_in("mp3", "libmp3lame", {"write_xing": str(int(header)), "id3v2_version": "0"}, coding)


def with_cover(data: bytes) -> bytes:
    """Behind an ID3 tag with a picture of noise, larger than the sound."""
    picture = image_file(pillow.fromarray(RNG.integers(0, 256, (200, 200, 3), np.uint8)), "JPEG")
    body = b"\0image/jpeg\0\3\0" + picture
    frame = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    return b"ID3\3\0\0" + bytes(len(frame) >> 7 * place & 127 for place in (3, 2, 1, 0)) + frame + data


def test_an_mp3_without_a_header_is_read_to_its_end_whatever_stands_before_or_behind() -> None:
    plain = mp3(header=False)
    sound = heard(plain)
    assert len(sound.samples) == pytest.approx(48_000, abs=2 * 1_152)
    for data in (with_cover(plain), plain + bytes(4_096), plain + b"TAG" + bytes(125), plain + b"no frame at all" * 99):
        np.testing.assert_array_equal(heard(data).samples, sound.samples)
    assert len(heard(mp3(header=False, q="9")).samples) == pytest.approx(48_000, abs=2 * 1_152), "variable rate"
    assert len(heard(sound_in("wav", "libmp3lame")).samples) == pytest.approx(48_000, abs=2 * 1_152), "in a WAV"
    assert reason(MediaKind.AUDIO, plain, max_seconds=0.9) is Reason.TOO_LONG


@pytest.mark.parametrize("between", [b"", b"TAG" + bytes(125)], ids=["joined", "with a tag between"])
@pytest.mark.parametrize("header", [True, False])
def test_mp3s_that_were_joined_are_read_to_the_end_of_the_last(header: bool, between: bytes) -> None:
    part = mp3(header=header)
    assert len(heard(part + between + part).samples) == pytest.approx(96_000, abs=5 * 1_152)


def test_an_mp3_with_a_header_has_as_many_samples_as_were_encoded_at_their_places() -> None:
    wave = tone(16_000)[:, 0]
    sound = heard(sound_file(wave, format="MP3"), max_seconds=1)
    assert len(sound.samples) == 16_000
    np.testing.assert_allclose(sound.samples, wave, atol=0.05)


def test_an_mp3_that_is_cut_off_or_has_a_hole_is_refused() -> None:
    for data in (plain := mp3(header=False), headed := mp3(header=True)):
        half = len(data) // 2
        assert reason(MediaKind.AUDIO, data[: half + 7]) is Reason.CORRUPT_AUDIO
        assert reason(MediaKind.AUDIO, data[:half] + bytes(2_000) + data[half + 2_000 :]) is Reason.CORRUPT_AUDIO
    at_a_frame = plain.index(plain[:2], len(plain) // 2)
    heard(plain[:at_a_frame])
    assert reason(MediaKind.AUDIO, headed[: len(headed) // 2] + bytes(len(headed) // 2)) is Reason.CORRUPT_AUDIO


@pytest.mark.parametrize(
    ("form", "mark", "size"),
    [("WAV", b"data", size.to_bytes(4, "little")) for size in (0, 0x7F000000, 0x7FFFF000, 0xFFFFFFFF)]
    + [("AIFF", b"SSND", size.to_bytes(4, "big")) for size in (0, 8, 0x7F000008)]
    + [("AU", b".snd\0\0\0\x18", size.to_bytes(4, "big")) for size in (0, 0x7FFFFFFF, 0xFFFFFFFF)]
    + [("CAF", b"data", b"\xff" * 8)],
)
def test_a_size_that_a_recorder_did_not_know_is_that_of_the_rest_of_the_file(
    form: str, mark: bytes, size: bytes
) -> None:
    data = sound_file(tone(16_000), format=form)
    at = data.index(mark) + len(mark)
    np.testing.assert_array_equal(heard(data[:at] + size + data[at + len(size) :]).samples, heard(data).samples)


def ogg(subtype: str) -> bytes:
    return sound_file(RNG.normal(0, 0.1, 144_000), 48_000, "OGG", subtype=subtype)


@pytest.mark.parametrize("subtype", ["OPUS", "VORBIS"])
def test_an_ogg_of_many_links_is_read_to_the_end_of_the_last(subtype: str) -> None:
    assert len(heard(ogg(subtype) + ogg(subtype)).samples) == pytest.approx(288_000, abs=3_000)
    assert reason(MediaKind.AUDIO, ogg(subtype) + ogg(subtype)[:-50]) is Reason.CORRUPT_AUDIO


def test_flac_in_an_ogg_is_read() -> None:
    assert len(heard(sound_in("ogg", "flac")).samples) == pytest.approx(48_000, abs=4_608)


@pytest.mark.parametrize("subtype", ["OPUS", "VORBIS"])
def test_an_ogg_whose_rest_is_zeros_is_refused(subtype: str) -> None:
    data = ogg(subtype)
    half = len(data) // 2
    assert reason(MediaKind.AUDIO, data[: data.rindex(b"OggS", 0, half)] + bytes(20_000)) is Reason.CORRUPT_AUDIO
    np.testing.assert_array_equal(heard(data + bytes(99)).samples, heard(data).samples)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100])
def test_the_shortest_sound_may_be_shorter_by_a_rounding(rate: int) -> None:
    heard(sound_file(np.zeros(int(0.05 * rate)), rate))
    assert reason(MediaKind.AUDIO, sound_file(np.zeros(int(0.047 * rate)), rate)) is Reason.SOUND_TOO_SHORT


def test_floats_that_are_whole_numbers_are_refused_with_what_to_do_and_loud_ones_are_clipped() -> None:
    with pytest.raises(RowError, match="divide") as caught:
        heard(sound_file(tone() * 32_000, subtype="FLOAT"))
    assert caught.value.reason is Reason.CORRUPT_AUDIO
    assert heard(sound_file(tone() * 8, subtype="FLOAT")).samples.max() == 1


def test_a_video_comes_back_frame_by_frame_at_its_rate() -> None:
    video = decoded(MediaKind.VIDEO, CLIP)
    assert isinstance(video, Video)
    assert video.frames_per_second == pytest.approx(6.0)
    assert video.frames.shape == FRAMES.shape
    assert np.abs(video.frames.astype(int) - FRAMES).max() <= 4, "H.264 loses little at this quality"


def test_a_long_video_is_thinned_evenly_and_keeps_its_duration() -> None:
    video = decoded(MediaKind.VIDEO, CLIP, max_frames=4)
    assert isinstance(video, Video)
    assert np.round(video.frames.mean(axis=(1, 2, 3)) / 20).tolist() == [0, 3, 6, 9]
    assert video.frames_per_second == pytest.approx(2.0)


def test_a_video_with_odd_sides_grows_to_even_ones() -> None:
    video = decoded(MediaKind.VIDEO, encode_video(FRAMES[:2, :31, :47], 2.0))
    assert isinstance(video, Video)
    assert video.frames.shape == (2, 32, 48, 3)


def test_a_video_is_turned_as_its_header_says() -> None:
    identity = bytes.fromhex("00010000 00000000 00000000 00000000 00010000".replace(" ", ""))
    quarter_clockwise = bytes.fromhex("00000000 00010000 00000000 ffff0000 00000000".replace(" ", ""))
    picture = np.zeros((1, 32, 48, 3), dtype=np.uint8)
    picture[:, :16, :24] = 255  # top left
    track = (clip := encode_video(picture, 1.0)).index(b"tkhd")
    matrix = clip.index(identity, track)
    turned = decoded(MediaKind.VIDEO, clip[:matrix] + quarter_clockwise + clip[matrix + len(identity) :])
    assert isinstance(turned, Video)
    assert turned.frames.shape == (1, 48, 32, 3)
    assert turned.frames[0, :20, 20:].mean() > 230, "top left goes to top right"
    assert turned.frames[0, :20, :12].mean() < 25


def test_videos_out_of_bounds_are_refused() -> None:
    assert reason(MediaKind.VIDEO, CLIP, max_seconds=1.9) is Reason.TOO_LONG
    assert reason(MediaKind.VIDEO, CLIP, max_pixels=32 * 47) is Reason.TOO_MANY_PIXELS
    assert reason(MediaKind.VIDEO, CLIP, max_aspect_ratio=1.4) is Reason.BAD_ASPECT_RATIO
    assert reason(MediaKind.VIDEO, CLIP, max_bytes=100) is Reason.TOO_MANY_BYTES
    many = encode_video(np.repeat(FRAMES[:1], 130, axis=0), 1_000.0)
    assert reason(MediaKind.VIDEO, many, max_seconds=1.0) is Reason.TOO_MANY_FRAMES


def test_a_truncated_video_is_refused_wherever_it_is_cut() -> None:
    noise = encode_video(RNG.integers(0, 256, size=(8, 32, 32, 3), dtype=np.uint8), 4.0)
    for share in (0.02, 0.3, 0.6, 0.9, 0.98):
        assert reason(MediaKind.VIDEO, noise[: int(share * len(noise))]) is Reason.CORRUPT_VIDEO
    assert reason(MediaKind.VIDEO, b"not a film") is Reason.CORRUPT_VIDEO
    assert reason(MediaKind.VIDEO, encode_wav(TONE)) is Reason.UNSUPPORTED_FORMAT, "a sound is no video"


def test_a_playlist_that_points_to_other_files_stays_closed(tmp_path: Any) -> None:
    (tmp_path / "secret.mp4").write_bytes(CLIP)
    concat = f"ffconcat version 1.0\nfile {tmp_path}/secret.mp4\n".encode()
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n".encode()
    assert reason(MediaKind.VIDEO, concat) is Reason.CORRUPT_VIDEO
    assert reason(MediaKind.VIDEO, hls) is Reason.UNSUPPORTED_FORMAT


@pytest.mark.parametrize("medium", [Image(PIXELS), TONE, Video(FRAMES, 6.0)], ids=["image", "audio", "video"])
def test_blanking_keeps_shape_and_rate_and_leaves_nothing_to_see_or_hear(medium: DecodedMedium) -> None:
    empty = blank(medium)
    assert type(empty) is type(medium)
    for name, value in vars(medium).items():
        other = getattr(empty, name)
        if isinstance(value, np.ndarray):
            assert (other.shape, other.dtype) == (value.shape, value.dtype)
            assert not other.any()
        else:
            assert other == value
    assert content_key(empty) != content_key(medium)


def test_the_content_key_knows_content_from_container() -> None:
    as_png, as_bmp = encode_png(PIXELS), image_file(pillow.fromarray(PIXELS), format="BMP")
    assert content_key(decoded(MediaKind.IMAGE, as_png)) == content_key(decoded(MediaKind.IMAGE, as_bmp))
    assert content_key(Image(PIXELS)) != content_key(Image(PIXELS.reshape(9, 6, 3))), "shape counts"
    assert content_key(TONE) != content_key(Audio(TONE.samples, 8_000)), "rate counts"
    assert len(content_key(TONE)) == 64


def test_a_drawing_is_encoded_smaller_than_a_photograph_and_both_keep_every_pixel() -> None:
    drawing = np.full((64, 64, 3), 255, np.uint8)
    drawing[::8, 4:60:2] = 0  # equal dotted lines
    photograph = (RNG.normal(0, 4, (64, 64, 3)) + np.linspace(50, 200, 64)[:, None]).astype(np.uint8)
    for pixels, most in ((drawing, 350), (photograph, 64 * 64 * 3 * 0.75)):
        encoded = encode_png(pixels)
        assert len(encoded) < most
        np.testing.assert_array_equal(decode_pixels(encoded), pixels)


def decode_pixels(data: bytes) -> Any:
    image = decoded(MediaKind.IMAGE, data)
    assert isinstance(image, Image)
    return image.pixels
