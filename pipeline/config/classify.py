"""What `jobs.classify` trains and compares."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from pipeline.config.fusion import FusionKind, FusionSettings, Modality
from pipeline.config.section import Section


class PairedTask(StrEnum):
    DIGIT = "digit"
    DIAGNOSIS = "diagnosis"


class Paired(Section):
    task: PairedTask = PairedTask.DIGIT
    """Built-in table, where `data.path` is null: `digit` (the same digit, scanned and spoken) or `diagnosis` (a case
    drawn as a nucleus, written as findings and measured)."""
    train_rows: int = Field(default=1200, gt=0)
    """Rows of the train split."""
    validation_rows: int = Field(default=160, gt=0)
    """Rows of the validation split; a source comes again only when all have come."""
    test_rows: int = Field(default=320, gt=0)
    """Rows of the test split, drawn alike."""
    degraded: float = Field(default=1.0, ge=0, le=1)
    """Share of the rows, in every split, of which one modality is degraded: by noise, or blank, as often."""
    noise: float = Field(default=1.0, ge=0)
    """How strong noise is. 1: a picture's has the spread of all grey levels, a sound's is 20 dB above the speech, half
    of a text's letters are others, numbers are off by three times their spread."""


class Classify(Section):
    model: FusionSettings = FusionSettings()
    """The fusion model; each of `fusions` takes the place of its kind."""
    fusions: tuple[FusionKind, ...] = Field(default=tuple(FusionKind), min_length=1)
    """Kinds of fusion that are compared, each with the best single modality."""
    built_in: Paired = Paired()
    """The built-in data."""
    numbers: tuple[str, ...] = ()
    """Further columns of the table that are a row's numbers; as many as `model.sizes.num_numbers`."""
    group: str = "degraded"
    """Further column by which accuracy is split in the report; rows of tables without it are one group."""
    epochs: int = Field(default=20, gt=0)
    """How often each arm sees the train split. The weights of the epoch that is best on validation are kept."""
    batch_size: int = Field(default=64, gt=0)
    """Rows in an optimizer step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """AdamW's highest step size; it rises over a tenth of the steps and falls to 0 as a cosine."""
    weight_decay: float = Field(default=0.05, ge=0)
    """AdamW's weight decay."""
    cpus_per_arm: float = Field(default=1.0, gt=0)
    """CPUs that Ray reserves for an arm: a kind of fusion, or a single modality."""
    shown_rows: int = Field(default=8, ge=0)
    """Decisions that the report shows, with the weights of their modalities."""

    @model_validator(mode="after")
    def _check(self) -> Classify:
        if len(set(self.fusions)) < len(self.fusions):
            raise ValueError(f"fusions={[*map(str, self.fusions)]}: name each once")
        wanted = self.model.sizes.num_numbers if Modality.NUMBERS in self.model.modalities else 0
        if len(self.numbers) != wanted:
            raise ValueError(
                f"numbers={list(self.numbers)}: the model takes {wanted} (model.modalities, model.sizes.num_numbers); "
                "name as many columns"
            )
        return self
