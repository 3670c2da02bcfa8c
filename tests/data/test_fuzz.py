"""Over a thousand hostile inputs: each comes through or is refused with a reason, and nothing else ever happens."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.config import Access, MediaLimits
from pipeline.data.access import Reader
from pipeline.data.bounds import ROUNDING_S
from pipeline.data.isolated import Decoder
from pipeline.data.media import flat
from pipeline.data.schema import Reason, RowError
from pipeline.records import DecodedMedium, MediaKind
from tests.data import hostile
from tests.data.web import serve

SEED = 20_240_229
ACCEPTED = "accepted"


def outcomes(cases: Iterable[tuple[str, Callable[[], object]]]) -> Counter[str]:
    """What became of each case: accepted, or the reason of its refusal. Any other exception fails the test by name."""
    found: Counter[str] = Counter()
    for name, attempt in cases:
        try:
            attempt()
        except RowError as error:
            assert error.detail, name
            found[error.reason.value] += 1
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
        else:
            found[ACCEPTED] += 1
    return found


def table(found: Counter[str]) -> str:
    return "\n".join(f"{count:6d} {reason}" for reason, count in found.most_common())


def within(decoded: DecodedMedium, limits: MediaLimits) -> None:
    """What was accepted keeps the bounds, whatever the file said."""
    kind, array, rate = flat(decoded)
    match kind:
        case MediaKind.AUDIO:
            assert rate and limits.min_seconds <= len(array) / rate + ROUNDING_S
            assert len(array) / rate <= limits.max_seconds + ROUNDING_S
            assert np.isfinite(array).all() and np.abs(array).max() <= 1
        case _:
            height, width = array.shape[-3:-1]
            assert 0 < height * width <= limits.max_pixels
            assert array.ndim == 3 or (len(array) <= limits.max_frames and rate and np.isfinite(rate))


def test_a_thousand_hostile_files_end_in_a_picture_a_sound_a_video_or_a_reason() -> None:
    limits = MediaLimits(max_decode_s=20)
    with Decoder(limits) as decoder:

        def attempt(medium: hostile.Medium) -> None:
            within(decoder.decode(medium), limits)
            if medium.kind is MediaKind.VIDEO:
                decoder.sound_track(medium)

        found = outcomes((name, partial(attempt, medium)) for name, medium in hostile.media(SEED, num_each=36))
    print(table(found))
    assert found.total() >= 1_000
    assert set(found) <= {ACCEPTED, *Reason}
    assert found[Reason.DECODER_TOO_SLOW] == 0
    assert found[ACCEPTED] < found.total() / 2, "most of them are broken beyond use"
    for reason in (
        Reason.CORRUPT_IMAGE,
        Reason.CORRUPT_AUDIO,
        Reason.CORRUPT_VIDEO,
        Reason.POLYGLOT,
        Reason.SVG,
        Reason.TOO_MANY_PIXELS,
        Reason.TOO_MANY_FRAMES,
        Reason.TOO_MANY_CHANNELS,
        Reason.TOO_LONG,
        Reason.SOUND_TOO_SHORT,
        Reason.BAD_ASPECT_RATIO,
    ):
        assert found[reason], f"no case of {reason}"


def test_hostile_paths_and_addresses_end_in_bytes_or_a_reason(tmp_path: Path) -> None:
    base = tmp_path / "source"
    (base / "folder").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret")
    (base / "large").write_bytes(bytes(200_001))
    os.mkfifo(base / "pipe")
    for name, target in {"out": "../secret", "round": "link-round", "device": "/dev/zero"}.items():
        (base / f"link-{name}").symlink_to(target)
    with serve() as port:
        access = Access(hosts=(f"127.0.0.1:{port}",), private_networks=("127.0.0.0/8",), timeout_s=5)
        reader = Reader(access, MediaLimits(max_bytes=200_000), str(base))
        read: list[bytes] = []
        cases = [
            (address, partial(lambda name: read.append(reader.read(name)), address))
            for address in hostile.addresses(port)
        ]
        found = outcomes(cases)
    print(table(found))
    assert found.total() > 400
    assert set(read) <= {b"%zz", b"<script>"}, "nothing but what the address itself holds"
    for reason in (
        Reason.NOT_FOUND,
        Reason.BAD_ADDRESS,
        Reason.OUTSIDE_ROOTS,
        Reason.HOST_NOT_ALLOWED,
        Reason.FETCH_FAILED,
        Reason.TOO_MANY_BYTES,
    ):
        assert found[reason], f"no case of {reason}"
