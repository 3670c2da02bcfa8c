"""The rows of a prompt table as samples: decoded within bounds, with the text that is embedded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from pipeline.config import ConfigError, Data
from pipeline.config.fusion import Modality
from pipeline.config.pretrain import TextOf
from pipeline.data.datasets import Datasets, Source
from pipeline.data.isolated import Decoder
from pipeline.data.order import Mixture, Order
from pipeline.data.schema import RowError
from pipeline.data.table import Quarantine
from pipeline.models.fusion.samples import Sample, sample_of
from pipeline.records import Prompt, Quarantined

SHUFFLED_ROWS = 480
"""Rows that are shuffled among each other: as many as the row groups hold that a table keeps in memory."""
MOST_IN_VAIN = 100_000
"""Rows without a pair, one after the other, after which there are taken to be none."""


class SampleReader:
    """One split of all datasets of a run. `quarantine` holds the rows that could not be used, with their reasons."""

    def __init__(self, datasets: Datasets, data: Data, *, text: TextOf) -> None:
        self.datasets = datasets
        self.quarantine = Quarantine()
        self._data = data
        self._text = text
        self._decoder = Decoder(data.limits)

    def sample(self, row: Prompt | Quarantined) -> Sample | None:
        """The sample of a row; None where it cannot be used, which is counted.

        Raises:
            TooManyBadRows: more rows are bad than `data.max_bad_fraction` allows.
        """
        if isinstance(row, Prompt):
            try:
                sample = sample_of(row, decoder=self._decoder.decode)
                return sample if self._text is TextOf.PROMPT else replace(sample, text=row.answer)
            except RowError as error:
                row = error.quarantined(row.id)
        self.quarantine.add(row)
        self.quarantine.check(self.datasets.num_rows, self._data.max_bad_fraction)
        return None

    def all(self) -> Iterator[tuple[Prompt, Sample]]:
        """Every row that can be used, in the order of the files."""
        for source in self.datasets.sources:
            for number in range(len(source.table)):
                (row,) = source.table.read_rows([number], prefix=source.prefix)
                sample = self.sample(row)
                if sample is not None and isinstance(row, Prompt):
                    yield row, sample

    def shuffled(self, pairs: Collection[tuple[Modality, Modality]], *, seed: int, batch_size: int) -> Iterator[Sample]:
        """Rows that have both of some pair, for ever; those of several datasets in proportion to their weights.

        Raises:
            ConfigError: no row has a pair.
        """
        streams = [
            _numbers(source, seed=seed, batch_size=batch_size, data=self._data) for source in self.datasets.sources
        ]
        mixture = Mixture([source.dataset.weight for source in self.datasets.sources])
        in_vain = position = 0
        while True:
            (member,) = mixture.members(position, 1)
            position += 1
            source = self.datasets.sources[member]
            (row,) = source.table.read_rows([next(streams[member])], prefix=source.prefix)
            sample = self.sample(row)
            if sample is not None and any(set(pair) <= sample.modalities for pair in pairs):
                in_vain = 0
                yield sample
                continue
            in_vain += 1
            if in_vain >= min(MOST_IN_VAIN, 2 * self.datasets.num_rows):
                raise ConfigError(
                    f"pretrain.pairs: of {in_vain} rows of the split none has both of "
                    f"{' or '.join(f'{one} and {other}' for one, other in pairs)}; name pairs that rows have, or "
                    "another source of the text (pretrain.text)"
                )


def _numbers(source: Source, *, seed: int, batch_size: int, data: Data) -> Iterator[int]:
    order = Order(
        source.table.layout,
        seed=seed,
        batch_rows=batch_size,
        order=data.order,
        shuffle_rows=min(data.shuffle_rows, SHUFFLED_ROWS),
    )
    for window, skip in order.windows(0):
        yield from window.rows()[skip:].tolist()


def having(found: Sequence[tuple[Prompt, Sample]], modalities: Collection[Modality]) -> list[tuple[Prompt, Sample]]:
    """The rows that have all of these."""
    return [(prompt, sample) for prompt, sample in found if set(modalities) <= sample.modalities]
