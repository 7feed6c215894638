"""The receipts that commit samples, the manifests of shard sets, and who works on a set."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data_specs.records.base import FORMAT_VERSION, Count, Md5, PartName, Record, Sha256, ShardName, Time
from data_specs.records.reasons import ReasonKey
from data_specs.records.samples import Dropped, Sample


class Reject(Record):
    """A rejected document or picture, as a receipt keeps it."""

    key: str
    source: str
    reason: ReasonKey
    detail: str = ""


class ShardFile(Record):
    """A shard of a set: file name, size and digests of the tar, digest of its index and of its table."""

    name: ShardName
    bytes: Count
    md5: Md5
    sha256: Sha256
    index_sha256: Sha256
    table_sha256: Sha256


class InputRead(Record):
    """What a unit read: where it lay, how many bytes, and their digest."""

    uri: str = ""
    bytes: Count = 0
    sha256: Sha256


Outcome = Sample | Dropped | InputRead  # what a stage's work on a unit yields


class Execution(Record):
    """Where and when a unit was made: the only part of a receipt that differs from run to run."""

    host: str
    seconds: float
    ended: Time


class Receipt(Record):
    """That a unit is done, and what became of all that it was offered."""

    format_version: Literal[2] = FORMAT_VERSION
    digest: Sha256
    unit: Count
    offered: Count
    written: Count
    filtered: dict[ReasonKey, Count] = Field({})
    rejected: tuple[Reject, ...] = ()
    shard: ShardFile | None = None
    replaces: tuple[ShardName, ...] = ()
    read: tuple[InputRead, ...] = ()
    ran: Execution

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.offered != self.written + sum(self.filtered.values()) + len(self.rejected):
            raise ValueError("offered is not written + filtered + rejected")
        if (self.shard is None) != (self.written == 0):
            raise ValueError("number of samples and shard do not fit together")
        names = (*self.replaces, *([self.shard.name] if self.shard else []))
        if any(not name.startswith(f"{self.unit:06d}-") for name in names):
            raise ValueError("names a shard of another unit")
        if self.shard and self.shard.name in self.replaces:
            raise ValueError("names its shard as one that it replaced")
        return self


class Failure(Record):
    """A unit that failed three times, and why."""

    unit: Count
    reason: str
    host: str
    ended: Time


# ---- manifests -----------------------------------------------------------------------------------------------------
class Totals(Record):
    """The account of a shard set: offered = written + filtered + rejected."""

    units: Count = 0
    offered: Count = 0
    written: Count = 0
    filtered: Count = 0
    rejected: Count = 0
    bytes: Count = 0

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.offered != self.written + self.filtered + self.rejected:
            raise ValueError("offered is not written + filtered + rejected")
        return self


class ShardEntry(Record):
    """A shard in a manifest, under wids' names; `replaces` keeps the names of what it was made anew from."""

    url: ShardName
    nsamples: Count
    filesize: Count
    md5sum: Md5
    sha256: Sha256
    index_sha256: Sha256
    table_sha256: Sha256 | None = Field(None, description="None in manifests of before")
    replaces: tuple[ShardName, ...] = ()


class PartEntry(Record):
    """A part of a large manifest: a wids index of its own."""

    url: PartName
    nshards: Count
    nsamples: Count
    sha256: Sha256


class ManifestPart(Record):
    """A wids index: the shards of a part of a large manifest."""

    kind: Literal["wids-shard-index-v1"] = Field("wids-shard-index-v1", alias="__kind__")
    wids_version: Literal[1] = 1
    name: str
    shardlist: tuple[ShardEntry, ...] = ()


class Manifest(ManifestPart):
    """A shard set's receipts merged; reads as a wids index. Large ones name `parts` in the place of shards."""

    format_version: Literal[2] = FORMAT_VERSION
    digest: Sha256
    complete: bool
    totals: Totals
    filtered: dict[ReasonKey, Count] = Field({})
    rejects: dict[ReasonKey, Count] = Field({})
    parts: tuple[PartEntry, ...] = ()
    emptied: tuple[ShardName, ...] = ()

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        held = sum(entry.nsamples for entry in self.shardlist) + sum(part.nsamples for part in self.parts)
        if held != self.totals.written:
            raise ValueError("its shards do not hold as many samples as its totals say")
        reasons = (sum(self.filtered.values()), sum(self.rejects.values()))
        if reasons != (self.totals.filtered, self.totals.rejected):
            raise ValueError("its reasons do not add up to its totals")
        return self


class JobState(Record):
    """What a running job says of itself: SET/progress.json. Times are in seconds."""

    digest: Sha256
    host: str
    written: Time
    ended: bool
    units: Count
    done: Count
    failed: Count
    workers: Count
    running: Count
    longest: tuple[tuple[int, int, str], ...] = Field((), description="unit, seconds, node: the longest first")
    units_per_minute: float
    seconds_left: int | None = None
    totals: Totals
    filtered: dict[ReasonKey, Count] = Field({})
    rejects: dict[ReasonKey, Count] = Field({})


class LeaseHolder(Record):
    """FOLDER/lease/NNNNNN.json: who writes there, and when it last said so. Times are in seconds since 1970."""

    host: str
    pid: int = Field(ge=0, lt=1 << 31)
    pid_space: str = Field(description="the kernel's number of the namespace that `pid` counts in")
    command: str
    since: Time
    beat: Time


class Removed(Record):
    """What must not be in ROOT/images: documents by id, samples as SPLIT/UNIT/KEY."""

    ids: tuple[str, ...] = ()
    samples: tuple[Annotated[str, Field(pattern=r"^(train|val)/\d+/[A-Za-z0-9_-]+$")], ...] = ()
