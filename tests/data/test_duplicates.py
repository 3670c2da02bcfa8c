"""Duplicates: what asks, shows and expects the same is refused, and nothing else is."""

from __future__ import annotations

import io
import random
import sqlite3
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL import ImageFilter
from pydantic import TypeAdapter

from pipeline.config.steps import Step, Steps
from pipeline.data.duplicates import (
    Duplicates,
    Fingerprint,
    NearDuplicates,
    NearImages,
    conversation_text,
    fingerprint,
    image_hash,
    row_key,
    signature,
    text_key,
)
from pipeline.data.media import content_key
from pipeline.data.schema import Reason, RowError
from pipeline.records import Audio, DecodedMedium, Image, Message

LIST: TypeAdapter[tuple[Step, ...]] = TypeAdapter(Steps)
STORY = "the quick brown fox jumps over the lazy dog while the farmer counts his sheep behind the old red barn"


def scene(seed: int) -> NDArray[np.uint8]:
    """A smooth picture of random blobs, 96 x 128."""
    coarse = np.random.default_rng(seed).integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
    return np.array(pillow.fromarray(coarse).resize((128, 96), pillow.Resampling.BICUBIC))


def marks(text: str, group: str = "") -> NDArray[np.uint64]:
    return signature(text, num_permutations=128, shingle=5, group=group)


def memory() -> sqlite3.Connection:
    return sqlite3.connect(":memory:")


def add(index: Any, id: str, *what: Any, **group: str) -> str | None:
    """The id of the earliest that is alike; where there is none, takes this one in."""
    found = index.find(*what, **group)
    if found is None:
        index.insert(id, *what, **group)
    return found


def near_texts(threshold: float = 0.8) -> NearDuplicates:
    return NearDuplicates(memory(), threshold=threshold, num_permutations=128)


def test_text_keys_ignore_case_blanks_and_compatibility_forms_alone() -> None:
    assert text_key("What  digit\nis THIS? ") == text_key("what digit is this?")
    assert text_key("STRASSE ﬁn") == text_key("straße fin")
    assert text_key("what digit is this") != text_key("what digit is this?")
    assert text_key("") != text_key("a")


def test_a_row_key_holds_text_media_in_order_and_answer_apart() -> None:
    key = row_key(text="which?", media_keys=["a", "b"], answer="left")
    assert key == row_key(text=" Which? ", media_keys=["a", "b"], answer="LEFT")
    others = [
        row_key(text="what?", media_keys=["a", "b"], answer="left"),
        row_key(text="which?", media_keys=["b", "a"], answer="left"),
        row_key(text="which?", media_keys=["a"], answer="left"),
        row_key(text="which?", media_keys=["ab"], answer="left"),
        row_key(text="which?", media_keys=["a", "b"], answer="right"),
        row_key(text="which?left", media_keys=["a", "b"], answer=""),
    ]
    assert len({key, *others}) == 7


def test_equal_entries_of_signatures_estimate_the_share_of_common_shingles() -> None:
    longer = STORY + " and sings"
    ours = {STORY[place : place + 5] for place in range(len(STORY) - 4)}
    theirs = {longer[place : place + 5] for place in range(len(longer) - 4)}
    jaccard = len(ours & theirs) / len(ours | theirs)
    pair = [signature(text, num_permutations=2048, shingle=5) for text in (STORY, longer)]
    assert float(np.mean(pair[0] == pair[1])) == pytest.approx(jaccard, abs=0.033), "three standard deviations"


def test_signatures_of_two_groups_have_nothing_in_common_and_within_one_all() -> None:
    assert not (marks(STORY, "a") == marks(STORY, "b")).any()
    np.testing.assert_array_equal(marks(STORY, "a"), marks(STORY.upper(), "a"))


@settings(deadline=None)
@given(st.text(max_size=30))
def test_every_text_has_a_signature_the_empty_one_too(text: str) -> None:
    assert marks(text).shape == (128,)


def test_the_first_of_near_equal_texts_is_found_and_what_differs_is_not() -> None:
    texts = near_texts()
    assert add(texts, "one", marks(STORY)) is None
    assert add(texts, "two", marks(STORY.replace("quick", "quiet"))) == "one"
    assert add(texts, "three", marks("an altogether different sentence about trains")) is None
    assert add(texts, "four", marks(STORY + ".")) == "one"


def test_a_refused_text_is_not_compared_with_so_that_chains_break() -> None:
    words = STORY.split()
    chain = [" ".join(["walk"] * changed + words[changed:]) for changed in range(0, 8)]
    texts = near_texts(0.7)
    found = [add(texts, str(place), marks(text)) for place, text in enumerate(chain)]
    assert found[1] == "0"
    kept = [place for place, earlier in enumerate(found) if earlier is None]
    assert len(kept) >= 2
    assert {earlier for earlier in found if earlier is not None} <= {str(place) for place in kept}


def test_nearly_all_near_duplicates_are_found_among_many_texts() -> None:
    choose = random.Random(0)
    words = ["".join(choose.choices("abcdefghijklmnop", k=6)) for _ in range(500)]
    originals = [" ".join(choose.choices(words, k=30)) for _ in range(300)]
    texts = near_texts()
    assert [add(texts, str(place), marks(text)) for place, text in enumerate(originals)] == [None] * 300
    changed = [text.rsplit(" ", 1)[0] + " other" for text in originals]  # Jaccard about 0.93
    assert [texts.find(marks(text)) for text in changed] == [str(place) for place in range(300)]


def saved(pixels: NDArray[np.uint8], **options: Any) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    pillow.fromarray(pixels).save(buffer, **options)
    return np.array(pillow.open(buffer).convert("RGB"))


@pytest.mark.parametrize("seed", range(5))
def test_a_picture_hashes_nearly_alike_after_encoding_scaling_blurring_and_greying(seed: int) -> None:
    pixels = scene(seed)
    picture = pillow.fromarray(pixels)
    variants = [
        saved(pixels, format="JPEG", quality=30),
        np.array(picture.resize((64, 48))),
        np.array(picture.resize((256, 192))),
        np.array(picture.filter(ImageFilter.GaussianBlur(1))),
        np.array(picture.convert("L").convert("RGB")),
    ]
    assert max((image_hash(variant) ^ image_hash(pixels)).bit_count() for variant in variants) <= 4


def test_different_pictures_differ_in_many_bits_and_flat_ones_in_none() -> None:
    hashes = [image_hash(scene(seed)) for seed in range(40)]
    distances = [(one ^ other).bit_count() for place, one in enumerate(hashes) for other in hashes[:place]]
    assert min(distances) > 11
    assert all(each < 2**64 for each in hashes)
    flat = [image_hash(np.full((20, 30, 3), level, dtype=np.uint8)) for level in (0, 100, 255)]
    assert flat == [0, 0, 0]


@pytest.mark.parametrize("max_distance", [0, 3, 4, 8, 11])
def test_near_pictures_are_those_that_comparing_all_pairs_would_find(max_distance: int) -> None:
    choose = random.Random(max_distance)
    hashes = [choose.getrandbits(64) for _ in range(60)]
    for base in hashes[:40]:
        flips = choose.sample(range(64), choose.randint(0, 14))
        hashes.append(base ^ sum(1 << bit for bit in flips))
    images, kept = NearImages(memory(), max_distance=max_distance), dict[str, int]()
    for place, each in enumerate(hashes):
        near = [name for name, other in kept.items() if (each ^ other).bit_count() <= max_distance]
        found = add(images, str(place), [each])
        assert found == (near[0] if near else None)
        if found is None:
            kept[str(place)] = each
    assert 60 <= len(kept) < 100


def test_pictures_are_compared_within_their_group_one_by_one() -> None:
    images = NearImages(memory(), max_distance=4)
    assert add(images, "one", [0, 2**40], group="a") is None
    assert images.find([1, 2**40], group="b") is None
    assert images.find([1, 2**40 + 1], group="a") == "one"
    assert images.find([2**40, 0b11111], group="a") is None, "the second is five bits away"
    assert images.find([0], group="a") is None


def printed(steps: tuple[Step, ...], text: str, *media: DecodedMedium, answer: str = "yes") -> Fingerprint:
    messages = (Message("system", "Be brief."), Message("user", text))
    keys = [content_key(medium) for medium in media]
    return fingerprint(steps, messages=messages, media=media, media_keys=keys, answer=answer)


def refused(duplicates: Duplicates, row_id: str, print: Fingerprint) -> tuple[Reason, str]:
    with pytest.raises(RowError) as caught:
        duplicates.admit(row_id, print)
    return caught.value.reason, caught.value.detail.rsplit(" ", 1)[-1]


def steps_of(*names: str, **fields: Any) -> tuple[Step, ...]:
    return LIST.validate_python([{"step": name} | fields for name in names])


SKY, SEA = Image(pixels=scene(1)), Image(pixels=scene(2))
HUM = Audio(samples=np.ones(800, dtype=np.float32), sampling_rate=16_000)


def test_one_question_about_two_pictures_and_two_questions_about_one_are_four_rows() -> None:
    steps = steps_of("dedup.exact", "dedup.near_text", "dedup.near_image")
    duplicates = Duplicates(steps, memory())
    for place, (text, image) in enumerate(
        (text, image)
        for text in ("<image>What digit is this?", "<image>What colours do you see in it?")
        for image in (SKY, SEA)
    ):
        duplicates.admit(str(place), printed(steps, text, image))
    assert refused(duplicates, "4", printed(steps, "<image>What digit is THIS?", SEA)) == (Reason.DUPLICATE, "1")


def test_one_question_with_two_answers_is_two_rows() -> None:
    steps = steps_of("dedup.exact", "dedup.near_text", "dedup.near_image")
    duplicates = Duplicates(steps, memory())
    duplicates.admit("a", printed(steps, "<image>Is it so?", SKY, answer="yes"))
    duplicates.admit("b", printed(steps, "<image>Is it so?", SKY, answer="no"))
    # Both were taken in: each is found again as itself.
    assert refused(duplicates, "c", printed(steps, "<image>Is it so?", SKY, answer="yes")) == (Reason.DUPLICATE, "a")
    assert refused(duplicates, "d", printed(steps, "<image>Is it so?", SKY, answer="no")) == (Reason.DUPLICATE, "b")


def test_near_texts_need_equal_media_and_equal_answers_unless_told_otherwise() -> None:
    steps = steps_of("dedup.near_text")
    duplicates = Duplicates(steps, memory())
    duplicates.admit("a", printed(steps, STORY, HUM))
    duplicates.admit("b", printed(steps, STORY))
    duplicates.admit("c", printed(steps, STORY + "!", answer="no"))
    assert refused(duplicates, "d", printed(steps, STORY + "!", HUM)) == (Reason.NEAR_DUPLICATE, "a")
    loose = steps_of("dedup.near_text", same_answer=False)
    duplicates = Duplicates(loose, memory())
    duplicates.admit("a", printed(loose, STORY))
    assert refused(duplicates, "b", printed(loose, STORY + "!", answer="no")) == (Reason.NEAR_DUPLICATE, "a")


def test_near_pictures_need_equal_words_and_equal_sounds() -> None:
    steps = steps_of("dedup.near_image")
    duplicates = Duplicates(steps, memory())
    again = Image(pixels=saved(SKY.pixels, format="JPEG", quality=60))
    duplicates.admit("a", printed(steps, "<image><audio>Does it fit?", SKY, HUM))
    duplicates.admit("b", printed(steps, "<image><audio>Does it rain?", again, HUM))
    duplicates.admit("c", printed(steps, "<image>Does it fit?", again))
    duplicates.admit("d", printed(steps, "<image><audio>Does it fit?", SEA, HUM))
    found = refused(duplicates, "e", printed(steps, "<image><audio>Does it fit?", again, HUM))
    assert found == (Reason.NEAR_DUPLICATE, "a")


def test_a_row_that_one_step_refuses_leaves_no_trace_in_the_others() -> None:
    steps = steps_of("dedup.near_text", "dedup.near_image")
    duplicates = Duplicates(steps, memory())
    again = Image(pixels=saved(SKY.pixels, format="JPEG", quality=60))
    duplicates.admit("a", printed(steps, "<image>" + STORY, SKY))
    near = printed(steps, "<image>" + STORY, again)
    assert refused(duplicates, "b", near)[1] == "a"
    assert refused(duplicates, "c", near)[1] == "a", "its text is not b's"


def test_without_dedup_steps_nothing_is_refused_and_nothing_extra_is_computed() -> None:
    duplicates = Duplicates((), memory())
    print = printed((), STORY, SKY)
    assert (print.signature, print.picture_hashes, print.picture_group) == (None, (), "")
    duplicates.admit("a", print)
    duplicates.admit("b", print)


def test_who_says_what_belongs_to_the_text() -> None:
    assert conversation_text((Message("user", "hi"), Message("assistant", "yes?"))) == "user: hi\nassistant: yes?"
