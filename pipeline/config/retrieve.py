"""Retrieval over a joint embedding: what lies in the index, who searches it, and what is measured."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from pipeline.config.fusion import Modality
from pipeline.config.paths import DiskPath
from pipeline.config.pretrain import TextOf
from pipeline.config.section import Section


class IndexBackend(StrEnum):
    EXACT = "exact"
    FAISS = "faiss"


class FewShot(Section):
    classes: tuple[str, ...] = ()
    """Answers that are told apart, zero- and few-shot; none measures neither."""
    prompts: tuple[str, ...] = Field(default=("{}",), min_length=1)
    """Texts that stand for a class, each with `{}` in the place of its name; their embeddings are averaged."""
    modality: Modality = Modality.IMAGE
    """What is classified."""
    shots: tuple[int, ...] = (1, 5, 10)
    """Labelled rows of each class, drawn from `retrieve.train_split`, whose mean embeddings stand for it."""
    num_draws: int = Field(default=10, gt=0)
    """Draws of labelled rows over which a row's result is averaged."""

    @model_validator(mode="after")
    def _check(self) -> FewShot:
        for prompt in self.prompts:
            if "{}" not in prompt:
                raise ValueError(f"prompts={prompt!r}: has no {{}} where the name of the class goes")
        if len(set(self.classes)) < len(self.classes) or len(self.classes) == 1:
            raise ValueError(f"classes={list(self.classes)}: name at least two, each once")
        if any(shots < 1 for shots in self.shots):
            raise ValueError(f"shots={list(self.shots)}: at least 1 each; the prompts alone are zero-shot")
        return self


class Retrieve(Section):
    encoder: DiskPath | None = None
    """Directory of the dual encoder: one that `jobs.pretrain` wrote, or a Hugging Face checkpoint with its processor.
    Null is the one of this run."""
    index: DiskPath | None = None
    """Directory of the index; null is `<run>/index`."""
    split: str = "test"
    """Split whose rows are indexed, and searched in the evaluation."""
    train_split: str = "train"
    """Split of the labelled rows of few-shot classification and of its supervised probe."""
    text: TextOf = TextOf.ANSWER
    """A row's text: its answer, or its messages without tags."""
    target: Modality = Modality.IMAGE
    """What is searched for."""
    queries: tuple[Modality, ...] = (Modality.TEXT,)
    """What the evaluation searches with: each row's own."""
    num_rows: int | None = Field(default=None, gt=1)
    """Rows that are searched in the evaluation, the first ones that have all of it; null takes all."""
    distinct: bool = True
    """Whether rows whose text is that of an earlier one are left out of the evaluation: nobody could tell which of the
    two is meant."""
    backend: IndexBackend = IndexBackend.EXACT
    """`exact` compares with every row; `faiss` needs the extra `retrieval`."""
    top: int = Field(default=8, gt=0)
    """Answers that a query shows."""
    batch_size: int = Field(default=64, gt=0)
    """Rows that are embedded at once."""
    few_shot: FewShot = FewShot()
    """Zero- and few-shot classification."""

    @model_validator(mode="after")
    def _check(self) -> Retrieve:
        if self.target in self.queries:
            raise ValueError(f"queries={self.target}: what is searched for cannot be searched with; leave it out")
        return self
