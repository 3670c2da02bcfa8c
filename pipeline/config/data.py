"""The prompt table that training reads, and the bounds of its media."""

from __future__ import annotations

import ipaddress
import re
from enum import StrEnum

from pydantic import Field, field_validator, model_validator

from pipeline.config.paths import Location, Root
from pipeline.config.section import Section

_HOST = re.compile(r"((\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


class MediaLimits(Section):
    """Bounds that every decoder keeps; what is outside goes to the quarantine with a reason."""

    max_bytes: int = Field(default=64 * 2**20, gt=0)
    """Largest encoded medium, in bytes."""
    max_pixels: int = Field(default=4096 * 4096, gt=0)
    """Largest image, or frame of a video, in pixels."""
    max_aspect_ratio: float = Field(default=100.0, ge=1)
    """Longest side divided by shortest side of an image or a frame."""
    min_seconds: float = Field(default=0.05, gt=0)
    """Shortest sound, in seconds: shorter ones give no token."""
    max_seconds: float = Field(default=30.0, gt=0)
    """Longest sound or video, in seconds."""
    max_channels: int = Field(default=8, gt=0)
    """Most channels in a sound."""
    max_frames: int = Field(default=64, gt=1)
    """Most frames that are kept of a video."""
    max_decode_s: float = Field(default=60.0, gt=0)
    """Longest that the decoding of one medium may take, in seconds."""
    max_decode_mib: int = Field(default=4096, ge=768)
    """Largest address space of the process that decodes, in MiB; its libraries take about 420 of them."""
    isolate_decoders: bool = True
    """Whether media are decoded in a process of their own: a decoder that crashes then costs one row, not the job."""

    @model_validator(mode="after")
    def _check(self) -> MediaLimits:
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds={self.min_seconds:g} is above max_seconds={self.max_seconds:g}; lower it")
        return self


class Access(Section):
    """Where media that a row names by path or address may come from. What is not allowed here is refused."""

    roots: tuple[Root, ...] = ()
    """Directories (local, or `s3://bucket/prefix`, `gs://bucket/prefix`) below which paths may lie, and relative ones
    are looked for, after the directory of the source that names them. Links that lead out of them are refused."""
    hosts: tuple[str, ...] = ()
    """Hosts from which `http` and `https` addresses are fetched, at the usual port or at the one named (`host:8080`);
    `*.example.org` allows all below it. Empty: none."""
    private_networks: tuple[str, ...] = ()
    """Networks in CIDR notation that may be fetched from although they are private, such as that of a media server of
    your own. Other private, loopback and link-local addresses are refused, after DNS and on every redirect."""
    timeout_s: float = Field(default=20.0, gt=0)
    """Longest that fetching one medium may take, in seconds."""
    max_redirects: int = Field(default=3, ge=0)
    """Most redirects that are followed, each checked like the first address."""

    @field_validator("roots")
    @classmethod
    def _check_roots(cls, roots: tuple[str, ...]) -> tuple[str, ...]:
        for root in roots:
            if not root or "::" in root or re.match(r"(https?|data|local):", root, re.IGNORECASE):
                raise ValueError(f"{root!r} is no root; name a directory, or an address such as s3://bucket/prefix")
        return roots

    @field_validator("hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise ValueError(f"{host!r} is no host; write example.org, *.example.org, host:8080 or [::1]:8080")
        return hosts

    @field_validator("private_networks")
    @classmethod
    def _check_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f"{error}; write a network such as 10.1.0.0/16") from None
        return networks


class RowOrder(StrEnum):
    SHUFFLED = "shuffled"
    FILE = "file"


class Dataset(Section):
    path: Location
    """Directory, on disk or at an address (`s3://bucket/data`), with a prompt table like that of `data.path`."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the rows that are drawn from it, in proportion to the other weights (in steps of a thousandth)."""
    name: str | None = Field(default=None, pattern=r"^[^/]+$")
    """What metrics call it, and what its rows' ids begin with; null takes the last part of the path."""

    @property
    def label(self) -> str:
        """The name, given or taken from the path."""
        return self.name or self.path.rstrip("/").rpartition("/")[2]


class Data(Section):
    path: Location | None = None
    """Directory, on disk or at an address (`s3://bucket/data`), with the prompt table: `train.parquet`,
    `validation.parquet` and `test.parquet`, each of which may lie in parts (`train-00000-of-00003.parquet`). Default:
    `<run>/data`."""
    mixture: tuple[Dataset, ...] = ()
    """Several prompt tables instead of that of `path`: training draws their rows in proportion to their weights, each
    table in an order and in epochs of its own. The id of a row then begins with its dataset's name and a slash."""
    order: RowOrder = RowOrder.SHUFFLED
    """`shuffled`: every epoch reads the row groups of the table in an order of its own; `file`: in the order of the
    file, so that a table from easy to hard is a curriculum. Rows are shuffled within `shuffle_rows` either way."""
    shuffle_rows: int = Field(default=4096, ge=1)
    """Rows that are shuffled among each other: about so many are read at a time. 1 with `order=file`: no shuffling."""
    shuffle_mib: int = Field(default=64, ge=1)
    """Most MiB of the table that a reader reads at a time, where rows are large: fewer rows are then shuffled together.
    The object store holds about as much for each reader, and once more."""
    num_readers: int = Field(default=2, ge=1)
    """Readers that work at the same time. The order of rows does not depend on it."""
    limits: MediaLimits = MediaLimits()
    """Bounds of media decoding."""
    access: Access = Access()
    """Where media that are named by path or address may come from."""
    columns: tuple[str, ...] = ()
    """Further columns of the table, beside those of docs/data.md: `jobs.prepare` keeps them, and functions and servers
    that give rewards are told them."""
    max_prompt_tokens: int = Field(default=512, gt=0)
    """Longer prompts, placeholders included, go to the quarantine."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Largest share of rows in quarantine before a job stops."""

    @model_validator(mode="after")
    def _check_names(self) -> Data:
        names = [each.label for each in self.mixture]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"mixture: two datasets have the name {name!r}; give each a `name` of its own")
        return self
