"""Rows that say the same again: exactly, in nearly the same words, or with pictures that look the same.

What makes two rows duplicates. A row asks (text), shows (media) and expects (answer). "What digit is this?" about two
pictures are two rows, as are two questions about one picture, and one question with two answers. So

- exact: text, media (by decoded content, in order) and answer are all equal, text but for case and blanks;
- near text: media and answer are equal, and the texts share most of their shingles;
- near pictures: text, answer and all other media are equal, and each picture looks like its counterpart.

Workers compute a `Fingerprint` a row; `Duplicates` sees them in the order of the rows, keeps the first of its like and
refuses the others. Rows that were refused are not compared with, so that no chain of small changes eats a data set.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sqlite3
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow

from pipeline.config.steps import DedupExact, DedupNearImage, DedupNearText, Step
from pipeline.data.schema import Reason, RowError
from pipeline.records import DecodedMedium, Image, MediaKind, Message

_SEED = 1
_SCHEME = "affine64"

_THUMBNAIL = 32
_LOW = 8
_NUM_BANDS = 4
_BAND_BITS = 16


def plain(text: str) -> str:
    """Text as it is compared: one compatibility form, no case, single blanks, none at the ends."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


@lru_cache(64)  # Those of a row are asked for once to find its like, and once to find it in another split.
def text_key(text: str) -> str:
    """sha256 (hex) of a text; the same for texts that differ in case, blanks and compatibility forms alone."""
    return hashlib.sha256(plain(text).encode("utf-8", "surrogatepass")).hexdigest()


def row_key(*, text: str, media_keys: Sequence[str], answer: str) -> str:
    """sha256 (hex) of a row: equal where text, media (content keys, in order) and answer all are."""
    whole = json.dumps([text_key(text), list(media_keys), text_key(answer)])
    return hashlib.sha256(whole.encode()).hexdigest()


def conversation_text(messages: Sequence[Message]) -> str:
    """All turns of a conversation as one text, roles and tags of media included."""
    return "\n".join(f"{message.role}: {message.content}" for message in messages)


def signature(text: str, *, num_permutations: int, shingle: int, group: str = "") -> NDArray[np.uint64]:
    """The MinHash signature of a text: uint64 [num_permutations] (Broder 1997; datasketch).

    The share of equal entries of two signatures estimates the share of shingles (runs of `shingle` characters) that
    their texts have in common, with a standard deviation of at most 0.5 / sqrt(num_permutations).

    Args:
        group: what else must be equal. Every entry is mixed with it, so that texts of two groups have none in common.
    """
    from datasketch import MinHash

    compared = plain(text)
    shingles = {compared[start : start + shingle] for start in range(max(1, len(compared) - shingle + 1))}
    minhash = MinHash(num_perm=num_permutations, seed=_SEED, scheme=_SCHEME)
    minhash.update_batch([each.encode("utf-8", "surrogatepass") for each in sorted(shingles)])
    mixed = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "little")
    return np.asarray(minhash.hashvalues, dtype=np.uint64) ^ np.uint64(mixed)


class NearDuplicates:
    """Texts so far by their signatures; finds the first that nearly equals a new one, in time that hardly grows.

    Locality-sensitive hashing gives candidates, few of which are missed; their signatures decide. datasketch says into
    how many bands signatures are cut.
    """

    def __init__(self, database: sqlite3.Connection, *, threshold: float, num_permutations: int) -> None:
        """`threshold`: least estimated share of common shingles (Jaccard) of near duplicates."""
        from datasketch import MinHashLSH

        self._threshold = threshold
        # Its bands are chosen for few misses: what is found by mistake costs one comparison.
        bands = MinHashLSH(threshold=threshold, num_perm=num_permutations, weights=(0.1, 0.9))
        self._num_bands, self._band_rows = int(bands.b), int(bands.r)
        self._buckets = _Buckets(database, "near_texts")

    def find(self, signature: NDArray[np.uint64]) -> str | None:
        """The id of the earliest near duplicate, or None."""
        for id, found in self._buckets.candidates(self._keys(signature)):
            if np.mean(np.frombuffer(found, np.uint64) == signature) >= self._threshold:
                return id
        return None

    def insert(self, id: str, signature: NDArray[np.uint64]) -> None:
        """Takes in a text that later ones are compared with."""
        self._buckets.insert(id, signature.tobytes(), self._keys(signature))

    def _keys(self, signature: NDArray[np.uint64]) -> list[int]:
        bands = signature[: self._num_bands * self._band_rows].reshape(self._num_bands, self._band_rows)
        return [_hash64(number.to_bytes(2, "big") + band.tobytes()) for number, band in enumerate(bands)]


class _Buckets:
    """Items on disk by keys, several each, that they may share with others; in the order in which they came."""

    def __init__(self, database: sqlite3.Connection, name: str) -> None:
        self._database = database
        database.execute(f"CREATE TABLE {name} (place INTEGER PRIMARY KEY, id, payload)")
        database.execute(
            f"CREATE TABLE {name}_keys (key INTEGER, place INTEGER, PRIMARY KEY (key, place)) WITHOUT ROWID"
        )
        self._name = name

    def candidates(self, keys: Sequence[int]) -> Iterator[tuple[str, bytes]]:
        """Id and payload of the items that have one of these keys."""
        places = f"SELECT place FROM {self._name}_keys WHERE key IN ({', '.join('?' * len(keys))})"
        yield from self._database.execute(
            f"SELECT id, payload FROM {self._name} WHERE place IN ({places}) ORDER BY place", keys
        )

    def insert(self, id: str, payload: bytes, keys: Sequence[int]) -> None:
        place = self._database.execute(f"INSERT INTO {self._name} (id, payload) VALUES (?, ?)", (id, payload)).lastrowid
        self._database.executemany(
            f"INSERT OR IGNORE INTO {self._name}_keys VALUES (?, ?)", [(key, place) for key in keys]
        )


def _hash64(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)


def image_hash(pixels: NDArray[np.uint8]) -> int:
    """A perceptual hash of uint8 [H, W, 3] in 63 bits: pictures that look alike differ in few of them.

    pHash (Zauner 2010): grey, 32x32, discrete cosine transform, the 8x8 lowest frequencies but the mean; a bit is set
    where the coefficient is above their median. Size, encoding and small changes of colour hardly change it.
    """
    grey = pillow.fromarray(pixels).convert("L").resize((_THUMBNAIL, _THUMBNAIL), pillow.Resampling.LANCZOS)
    frequency, place = np.mgrid[:_LOW, :_THUMBNAIL]
    cosines = np.cos(np.pi * frequency * (2 * place + 1) / (2 * _THUMBNAIL))
    # Rounded: what is 0 but for the last bits of a float must not be told apart.
    coefficients = np.round(cosines @ np.asarray(grey, dtype=np.float64) @ cosines.T, 3).ravel()[1:]
    bits = coefficients > np.median(coefficients)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


class NearImages:
    """Pictures so far by their hashes; finds the first whose hashes are near, in time that hardly grows.

    Multi-index hashing (Norouzi et al., arXiv 1307.2982): of four parts of a hash within distance d, one is within
    d // 4, so that only pictures that nearly agree in a part are compared.
    """

    def __init__(self, database: sqlite3.Connection, *, max_distance: int) -> None:
        """`max_distance`: most bits in which hashes of pictures that look the same differ."""
        self._max_distance = max_distance
        radius = max_distance // _NUM_BANDS
        self._flips = [
            sum(1 << bit for bit in bits)
            for count in range(radius + 1)
            for bits in itertools.combinations(range(_BAND_BITS), count)
        ]
        self._buckets = _Buckets(database, "near_pictures")

    def find(self, hashes: Sequence[int], *, group: str = "") -> str | None:
        """The id of the earliest row of the group whose pictures all look like these, one by one, or None."""
        keys = [_picture_key(group, part ^ flip) for part in _parts(hashes[0]) for flip in self._flips]
        for id, payload in self._buckets.candidates(keys):
            their_group, *theirs = json.loads(payload)
            if their_group == group and self._are_near(hashes, theirs):
                return id
        return None

    def _are_near(self, ours: Sequence[int], theirs: Sequence[int]) -> bool:
        return len(ours) == len(theirs) and all(
            (our ^ their).bit_count() <= self._max_distance for our, their in zip(ours, theirs, strict=True)
        )

    def insert(self, id: str, hashes: Sequence[int], *, group: str = "") -> None:
        """Takes in the pictures of a row that later ones are compared with."""
        keys = [_picture_key(group, part) for part in _parts(hashes[0])]
        self._buckets.insert(id, json.dumps([group, *hashes]).encode(), keys)


def _picture_key(group: str, part: int) -> int:
    return _hash64(f"{part} {group}".encode())


def _parts(hash: int) -> Iterator[int]:
    """The four parts of a hash, each with its place above its bits."""
    for band in range(_NUM_BANDS):
        yield band << _BAND_BITS | (hash >> band * _BAND_BITS) & ((1 << _BAND_BITS) - 1)


@dataclass(frozen=True)
class Fingerprint:
    """What tells a row from others.

    key: `row_key`. signature: of the text, mixed with media (and answer); None without `dedup.near_text`.
    picture_group: what else must be equal where pictures look alike. picture_hashes: one a picture, in order; empty
    without `dedup.near_image`.
    """

    key: str
    signature: NDArray[np.uint64] | None
    picture_group: str
    picture_hashes: tuple[int, ...]


def fingerprint(
    steps: Sequence[Step],
    *,
    messages: Sequence[Message],
    media: Sequence[DecodedMedium],
    media_keys: Sequence[str],
    answer: str,
) -> Fingerprint:
    """The fingerprint of a row, as far as the steps ask for it.

    Args:
        media: decoded, in the order of their tags; media_keys: `pipeline.data.media.content_key` of each.
    """
    text = conversation_text(messages)
    minhash, hashes = None, ()
    for step in steps:
        if isinstance(step, DedupNearText):
            group = json.dumps([list(media_keys), text_key(answer) if step.same_answer else ""])
            minhash = signature(text, num_permutations=step.num_permutations, shingle=step.shingle, group=group)
        if isinstance(step, DedupNearImage):
            hashes = tuple(image_hash(medium.pixels) for medium in media if isinstance(medium, Image))
    others = [
        MediaKind.IMAGE.value if isinstance(medium, Image) else key
        for medium, key in zip(media, media_keys, strict=True)
    ]
    return Fingerprint(
        key=row_key(text=text, media_keys=media_keys, answer=answer),
        signature=minhash,
        picture_group=row_key(text=text, media_keys=others, answer=answer) if hashes else "",
        picture_hashes=hashes,
    )


class Duplicates:
    """The rows so far; refuses those that say the same again, by the `dedup` steps of a recipe."""

    def __init__(self, steps: Sequence[Step], database: sqlite3.Connection) -> None:
        """`database`: where the rows so far are kept."""
        self._database = database
        self._is_exact = any(isinstance(step, DedupExact) for step in steps)
        database.execute("CREATE TABLE equal_rows (key PRIMARY KEY, id) WITHOUT ROWID")
        self._texts: NearDuplicates | None = None
        self._images: NearImages | None = None
        for step in steps:
            if isinstance(step, DedupNearText):
                self._texts = NearDuplicates(database, threshold=step.threshold, num_permutations=step.num_permutations)
            elif isinstance(step, DedupNearImage):
                self._images = NearImages(database, max_distance=step.max_distance)

    def admit(self, row_id: str, fingerprint: Fingerprint) -> None:
        """Takes a row in; later ones are compared with it.

        Raises:
            RowError: duplicate or near_duplicate, of an earlier row that the detail names. The row is not taken in.
        """
        marks, hashes, group = fingerprint.signature, fingerprint.picture_hashes, fingerprint.picture_group
        key = bytes.fromhex(fingerprint.key)
        if self._is_exact and (found := self._equal(key)) is not None:
            raise RowError(Reason.DUPLICATE, f"says the same as row {found}")
        if self._texts is not None and marks is not None and (found := self._texts.find(marks)) is not None:
            raise RowError(Reason.NEAR_DUPLICATE, f"its text is nearly that of row {found}")
        if self._images is not None and hashes and (found := self._images.find(hashes, group=group)) is not None:
            raise RowError(Reason.NEAR_DUPLICATE, f"its pictures look like those of row {found}")
        if self._is_exact:
            self._database.execute("INSERT INTO equal_rows VALUES (?, ?)", (key, row_id))
        if self._texts is not None and marks is not None:
            self._texts.insert(row_id, marks)
        if self._images is not None and hashes:
            self._images.insert(row_id, hashes, group=group)

    def _equal(self, key: bytes) -> str | None:
        found = self._database.execute("SELECT id FROM equal_rows WHERE key = ?", (key,)).fetchone()
        return found and found[0]
