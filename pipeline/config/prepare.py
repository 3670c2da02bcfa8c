"""What `jobs.prepare` makes: a prompt table out of what a user has, or the built-in data."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from pipeline.config.paths import Location
from pipeline.config.section import Section
from pipeline.config.steps import Steps


class Form(StrEnum):
    AUTO = "auto"
    PARQUET = "parquet"
    ARROW = "arrow"
    JSON = "json"
    CSV = "csv"
    WEBDATASET = "webdataset"
    FOLDER = "folder"


class Ids(StrEnum):
    COLUMN = "column"
    PLACE = "place"


class SplitBy(StrEnum):
    FRACTION = "fraction"
    HASH = "hash"
    GROUP = "group"
    COLUMN = "column"


class Leaks(StrEnum):
    LEAVE_OUT = "leave_out"
    STOP = "stop"
    ALLOW = "allow"


class MediaAs(StrEnum):
    BYTES = "bytes"
    REFERENCES = "references"


class Answers(StrEnum):
    REQUIRED = "required"
    OPTIONAL = "optional"


class Source(Section):
    path: Location
    """A file or a directory, on disk or at an address that pyarrow or fsspec opens (`s3://bucket/data`)."""
    form: Form = Form.AUTO
    """`parquet`, `arrow` (what `datasets` saves to disk), `json` (arrays, or a row a line), `csv`, `webdataset` (tar
    files), `folder` (files in directories that name their label); `auto` goes by the names of the files."""
    name: str | None = None
    """What rows of this source say in the column `dataset`; null takes the last part of the path."""
    task: str | None = None
    """Task of rows that name none; null takes the source's name."""
    question: str | None = None
    """What is asked of rows that hold media and a label but no question, such as `<image>What is this?`."""
    ids: Ids | None = None
    """What makes the ids of this source's rows; null takes `prepare.ids`."""
    map: dict[str, str] = Field(default_factory=dict[str, str])
    """Where columns of this source have other names than usual: our name to theirs, beside `prepare.map`."""


class Splitting(Section):
    by: SplitBy = SplitBy.HASH
    """`hash`: by the id, so that a row stays where it is when the data grow; `fraction`: at random by seed; `group`:
    rows with the same value of `column` (or, without one, the same first medium) stay together; `column`: as the rows'
    `column` says, or else the names of their files."""
    column: str | None = None
    """The source's column that holds the group, or the split."""
    rl: float = Field(default=0.0, ge=0, lt=1)
    """Share of the split `rl`: prompts for the loop that SFT does not see (`rlhf.split=rl`)."""
    validation: float = Field(default=0.05, ge=0, lt=1)
    """Share of the validation split."""
    test: float = Field(default=0.05, ge=0, lt=1)
    """Share of the test split."""
    leaks: Leaks = Leaks.LEAVE_OUT
    """What happens to a row that shares a medium, or its whole text, with a row of a later split (train, rl,
    validation, test): `leave_out` and count it, `stop`, or `allow`."""

    @model_validator(mode="after")
    def _check(self) -> Splitting:
        if self.rl + self.validation + self.test >= 1:
            shares = f"rl={self.rl}, validation={self.validation} and test={self.test}"
            raise ValueError(f"{shares} leave no rows to train on; make them smaller")
        return self


class Prepare(Section):
    """Where the prompt table comes from: files of yours, or the built-in digits, speech, scenes and videos."""

    sources: tuple[Source, ...] = ()
    """What the table is made of. Empty: the built-in data."""
    map: dict[str, str] = Field(default_factory=dict[str, str])
    """Where columns have other names than usual: our name to theirs, for all sources. `--map answer=label` adds one."""
    ignore: tuple[str, ...] = ()
    """Columns of the sources, and keys inside their turns (`messages.reasoning`), that are left out on purpose: they
    are not named as unread, and refuse no row."""
    ids: Ids = Ids.COLUMN
    """`column`: the rows' own ids, as far as they have some, and a number behind those that repeat (`7`, `7-2`, `7-3`);
    `place`: where a row lies in its source, whatever its columns say."""
    answers: Answers = Answers.REQUIRED
    """`required`: a row without an answer is refused; `optional`: it is kept, with a null in its place. Rewards that
    compare with an answer refuse such rows in training. A blank answer is refused either way. The prompt of a
    completion that was judged bad has no answer: the reward model can learn that judgement with `optional` alone."""
    steps: Steps = ()
    """Preprocessing, in this order: docs/preprocessing.md."""
    split: Splitting = Splitting()
    """How rows are shared out among train, rl, validation and test."""
    media: MediaAs = MediaAs.BYTES
    """`bytes`: media lie in the table; `references`: each file once in `media/` beside it, named by its content."""
    sort_by: str | None = None
    """A curriculum: the train split in ascending order of this column of the sources, or of `num_tokens`. Read it with
    `data.order=file`."""
    count_tokens: bool = True
    """Whether the model's own processor counts each row's tokens, so that what it would refuse later is refused now."""
    num_workers: int | None = Field(default=None, gt=0)
    """Workers that prepare at the same time; null takes as many as the cluster has CPUs."""
    rows_per_file: int = Field(default=4096, gt=0)
    """Rows in a Parquet file; a split of more has several."""
    train_rows: int = Field(default=480, gt=0)
    """Built-in data: rows of each task in the train split."""
    rl_rows: int = Field(default=0, ge=0)
    """Built-in data: rows of each task in the split `rl`, prompts that SFT does not see (`rlhf.split=rl`)."""
    validation_rows: int = Field(default=16, gt=0)
    """Built-in data: rows of each task in the validation split."""
    test_rows: int = Field(default=64, gt=0)
    """Built-in data: rows of each task in the test split."""
    tasks: tuple[str, ...] = ("digit", "speech", "sum", "video", "scene", "text")
    """Built-in data: which of its tasks to make."""

    @model_validator(mode="after")
    def _check(self) -> Prepare:
        if self.sort_by == "num_tokens" and not self.count_tokens:
            raise ValueError("sort_by=num_tokens needs the tokens counted: set count_tokens=true, or sort by a column")
        names = [source.name for source in self.sources if source.name]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"sources: {', '.join(twice)} names two of them; ids would repeat")
        return self
