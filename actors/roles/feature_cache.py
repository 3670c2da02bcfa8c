"""What an encoder worker keeps: processed prompts and tower features, each once, within a bound of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K")
P = TypeVar("P")
F = TypeVar("F")


@dataclass
class CacheCounts:
    """Of features: how often one was there, or had to be computed, or went; and bytes of all that is kept now."""

    hits: int = 0
    misses: int = 0
    evicted: int = 0
    kept_bytes: int = 0


@dataclass
class _Entry(Generic[P]):
    prompt: P
    num_bytes: int
    media: tuple[str, ...]


@dataclass
class _Features(Generic[F]):
    value: F
    num_bytes: int
    num_users: int = 0
    is_lost: bool = False


class FeatureCache(Generic[K, P, F]):
    """Prompts by key and features of media by content key; the prompts used longest ago go first.

    Features go with the last prompt that holds them: a prompt in the object store keeps its features there, so that
    dropping them alone would free nothing. What somebody still uses lives on; the cache only forgets it.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._prompts: OrderedDict[K, _Entry[P]] = OrderedDict()
        self._features: dict[str, _Features[F]] = {}
        self.counts = CacheCounts()

    def get(self, key: K) -> P | None:
        """A prompt that is kept; its features then count as found."""
        entry = self._prompts.get(key)
        if entry is None:
            return None
        self._prompts.move_to_end(key)
        self.counts.hits += len(entry.media)
        return entry.prompt

    def features(self, key: str, compute: Callable[[], tuple[F, int]]) -> F:
        """Features of a medium: those that are kept, or what `compute` gives, with its bytes.

        They stay when the prompt that they are asked for is put.
        """
        kept = self._features.get(key)
        if kept is not None and not kept.is_lost:
            self.counts.hits += 1
            return kept.value
        self.counts.misses += 1
        value, num_bytes = compute()
        self._features[key] = _Features(value, num_bytes, 0 if kept is None else kept.num_users)
        self.counts.kept_bytes += num_bytes - (0 if kept is None else kept.num_bytes)
        return value

    def lose(self, key: K) -> None:
        """Forgets a prompt that is no longer where it was put, and has the features of its media computed again."""
        entry = self._prompts.pop(key, None)
        if entry is not None:
            for medium in entry.media:
                self._features[medium].is_lost = True
            self._forget(entry)

    def put(self, key: K, prompt: P, *, num_bytes: int, media: Sequence[str]) -> None:
        """Keeps a prompt of `num_bytes` that holds the features of `media`, and forgets what no longer fits."""
        former = self._prompts.pop(key, None)
        self._prompts[key] = _Entry(prompt, num_bytes, tuple(dict.fromkeys(media)))
        self.counts.kept_bytes += num_bytes
        for medium in self._prompts[key].media:
            self._features[medium].num_users += 1
        # After the new one counts as a user, so that features of both stay.
        if former is not None:
            self._forget(former)
        while self.counts.kept_bytes > self._max_bytes and len(self._prompts) > 1:
            self._forget(self._prompts.popitem(last=False)[1])

    def _forget(self, entry: _Entry[P]) -> None:
        self.counts.kept_bytes -= entry.num_bytes
        for medium in entry.media:
            features = self._features[medium]
            features.num_users -= 1
            if not features.num_users:
                del self._features[medium]
                self.counts.kept_bytes -= features.num_bytes
                self.counts.evicted += 1
