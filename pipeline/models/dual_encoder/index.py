"""An index of embeddings: what is near a query, exactly by torch, or by FAISS.

It knows which encoder made it. Embeddings of another one lie in another space, where nearness means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.config import ConfigError
from pipeline.config.fusion import Modality
from pipeline.config.retrieve import IndexBackend
from pipeline.models.dual_encoder.joint import JointEncoder

INFO_FILE, VECTORS_FILE = "index.json", "index.safetensors"
MAKE_AGAIN = "make it again with `python -m jobs.retrieve index`"


@dataclass(frozen=True)
class IndexInfo:
    """What an index holds: the key and the size of the encoder, the modality, and the table's split."""

    encoder: str
    embedding_size: int
    modality: str
    split: str


class Index:
    """Rows with their embeddings. `ids`: of the rows; `vectors`: float32 [N, D] of length one."""

    def __init__(self, info: IndexInfo, ids: Sequence[str], vectors: Tensor) -> None:
        """Holds them.

        Raises:
            ValueError: there are not as many ids as vectors, or they have another size than the encoder.
        """
        if vectors.shape != (len(ids), info.embedding_size):
            raise ValueError(
                f"vectors {list(vectors.shape)}: an index of {len(ids)} rows by this encoder has "
                f"[{len(ids)}, {info.embedding_size}]"
            )
        self.info = info
        self.ids = tuple(ids)
        self.vectors = vectors

    def check(self, encoder: JointEncoder, *, place: str) -> None:
        """Makes sure that this encoder may search it.

        place: of the index, for the message.

        Raises:
            ConfigError: another one made it, or one of other dimensions.
        """
        if self.info.embedding_size != encoder.embedding_size:
            raise ConfigError(
                f"retrieve.index={place}: has {self.info.embedding_size} dimensions, and the encoder has "
                f"{encoder.embedding_size}; {MAKE_AGAIN}, or name the encoder that made it (retrieve.encoder)"
            )
        if self.info.encoder != encoder.key:
            raise ConfigError(
                f"retrieve.index={place}: was made by the encoder {self.info.encoder[:12]}, and this one is "
                f"{encoder.key[:12]}; {MAKE_AGAIN}, or name the encoder that made it (retrieve.encoder)"
            )

    def search(self, queries: Tensor, *, top: int, backend: IndexBackend = IndexBackend.EXACT) -> tuple[Tensor, Tensor]:
        """The nearest rows of each query, best first: cosines float32 [Q, k] and places int64 [Q, k], k <= top.

        queries: float32 [Q, D] of length one.

        Raises:
            ValueError: the queries have another size.
            ConfigError: FAISS is asked for and not installed.
        """
        if queries.ndim != 2 or queries.shape[1] != self.info.embedding_size:
            raise ValueError(f"queries {list(queries.shape)}: this index has {self.info.embedding_size} dimensions")
        top = min(top, len(self.ids))
        if backend is IndexBackend.FAISS:
            cosines, places = _faiss(self.vectors).search(queries.numpy(), top)
            return torch.from_numpy(cosines), torch.from_numpy(places)
        found = (queries @ self.vectors.T).topk(top, dim=1)
        return found.values, found.indices

    def save(self, directory: Path) -> None:
        """Writes it."""
        directory.mkdir(parents=True, exist_ok=True)
        save_file({"vectors": self.vectors.contiguous()}, directory / VECTORS_FILE)
        content = {**asdict(self.info), "ids": self.ids}
        (directory / INFO_FILE).write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Index:
        """Reads what `save` wrote.

        Raises:
            ConfigError: there is none.
        """
        if not (directory / INFO_FILE).is_file():
            raise ConfigError(
                f"retrieve.index={directory}: no index here; make one with `python -m jobs.retrieve index`"
            )
        content = json.loads((directory / INFO_FILE).read_text(encoding="utf-8"))
        ids = content.pop("ids")
        info = IndexInfo(**content)
        Modality(info.modality)
        return cls(info, ids, load_file(directory / VECTORS_FILE)["vectors"])


def _faiss(vectors: Tensor) -> Any:
    """FAISS's exact index of inner products."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            f"retrieve.backend=faiss: needs a package that is not installed ({error}); run "
            "`pip install 'polyphony[retrieval]'`, or use retrieve.backend=exact"
        ) from None
    index: Any = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors.numpy())
    return index
