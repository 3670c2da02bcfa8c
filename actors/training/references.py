"""Log probabilities of completions under the reference: computed once, kept on disk by what they are of.

    <run>/reference_logprobs/<fingerprint of the checkpoint>.bin     records of 24 bytes: a key, a float64

A key is of the prompt's content and the completion's tokens, so that a later try and another loss find what is there.
The file grows by whole records, and one that was cut off in the middle of writing is dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from actors.roles.encoder import PromptRef
from pipeline.records import Ids, Spans


class Asked(NamedTuple):
    """A prompt, the token ids of a completion after it, and where in these the user speaks."""

    prompt: PromptRef
    ids: Ids
    given: Spans = ()

    @property
    def num_learned(self) -> int:
        """Tokens whose log probabilities count: those that the model says."""
        return len(self.ids) - sum(end - start for start, end in self.given)


KEY_BYTES = 16
_RECORD = np.dtype([("key", f"V{KEY_BYTES}"), ("logprob", "<f8")])
_CHUNK_BYTES = 2**24


def reference_key(asked: Asked) -> bytes:
    """What a log probability is of: the prompt's content, and the completion's tokens."""
    prompt, ids, given = asked
    told = f"{prompt.content} {','.join(map(str, ids))}" + (f" {given}" if given else "")
    return hashlib.sha256(told.encode()).digest()[:KEY_BYTES]


def checkpoint_fingerprint(path: Path, dtype: str) -> str:
    """SHA-256 (hex) of a checkpoint's weights and configuration, and of the type that it is loaded as."""
    digest = hashlib.sha256(dtype.encode())
    files = [path / "config.json", *sorted(path.glob("*.safetensors")), *sorted(path.glob("*.bin"))]
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


class ReferenceLogprobs(Mapping[bytes, float]):
    """Log probabilities by `reference_key`, in a file that grows."""

    def __init__(self, file: Path):
        """Reads what is there."""
        self._file = file
        self._found: dict[bytes, float] = {}
        if file.is_file():
            content = file.read_bytes()
            whole = len(content) // _RECORD.itemsize
            records = np.frombuffer(content, _RECORD, whole)
            keys: Sequence[bytes] = [key.tobytes() for key in records["key"]]
            self._found = dict(zip(keys, records["logprob"].tolist(), strict=True))
            if len(content) % _RECORD.itemsize:
                with file.open("r+b") as opened:
                    opened.truncate(whole * _RECORD.itemsize)

    @classmethod
    def of(cls, directory: Path, checkpoint: Path, dtype: str) -> ReferenceLogprobs:
        """Those of a checkpoint, in the directory of a run."""
        return cls(directory / "reference_logprobs" / f"{checkpoint_fingerprint(checkpoint, dtype)[:16]}.bin")

    def add(self, found: Mapping[bytes, float]) -> None:
        """Keeps some more."""
        new = [(key, value) for key, value in found.items() if key not in self._found]
        self._found.update(new)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("ab") as opened:
            opened.write(np.array(new, _RECORD).tobytes())

    def __getitem__(self, key: bytes) -> float:
        return self._found[key]

    def __iter__(self):
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
