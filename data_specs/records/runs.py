"""What stands beside the sets of a root: readings of OCR, the code that made it, checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from data_specs.records.base import FORMAT_VERSION, Count, Logged, Record, Sha256, Time, Tree
from data_specs.records.samples import Box


class OcrRecord(Record):
    """What an engine read in a picture, a line of ROOT/evaluation/ocr.jsonl; `image` is the digest of its pixels."""

    key: str
    image: Sha256
    engine: str
    version: str
    text: str
    words: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()


class CodeEntry(Record):
    """What code something was done with: a job that was `submitted`, or a folder of the root whose making `began`.

    `patch` names the file under the root that holds what was not committed, where that is not too much to keep; `image`
    is a container's reference.
    """

    at: str
    submitted: str = ""
    began: str = ""
    on: str = ""
    job: str = ""
    image: str = ""
    commit: str | None = None
    dirty: bool = False
    patch: Annotated[str, Field(pattern=r"^code-[0-9a-f]{8}\.patch$")] | None = None
    python: str
    packages: dict[str, str]


class CodeHistory(Record):
    """ROOT/code.json: entries in the order of their time."""

    entries: tuple[CodeEntry, ...] = ()


class CheckpointFile(Record):
    """Size and digest of a file of a checkpoint."""

    bytes: Count
    sha256: Sha256


class GuardState(Record):
    """What the guard against spikes knows: the latest losses, and how many steps it has skipped."""

    recent: tuple[float, ...] = ()
    skipped: Count = 0


class TokenizerState(Record):
    """What a tokenizer's training keeps beside its tensors: steps since the last log row by name of the loss, model."""

    statistics_steps: dict[str, Count]
    config: str


class TransformerState(Record):
    """What a transformer's training keeps beside its tensors."""

    optimizer_steps: Count = Field(description="that were applied")
    num_ema_updates: Count
    zero_stage: Count = Field(description="that wrote it; any other reads it")


class NoState(Record):
    """That a training keeps nothing beside its tensors."""


def _task_of(state: object) -> str:
    """Return the key that tells one task's state from another's, in JSON or in a record."""
    keys = dict(state) if isinstance(state, dict | Record) else {}
    return next((key for key in ("config", "optimizer_steps") if key in keys), "")


TaskState = Annotated[
    Annotated[TokenizerState, Tag("config")]
    | Annotated[TransformerState, Tag("optimizer_steps")]
    | Annotated[NoState, Tag("")],
    Discriminator(_task_of),
]


class CheckpointState(Record):
    """STEP/state.json: where a training is, and what proves that its files are whole."""

    format_version: Literal[2] = FORMAT_VERSION
    step: Count
    position: Count = Field(description="samples consumed")
    world: int = Field(ge=1, description="ranks that wrote it")
    guard: GuardState = GuardState()
    task: TaskState = NoState()
    spec: Tree = Field({})
    files: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+\.safetensors$")], CheckpointFile]


class LogRow(Record):
    """A row of FOLDER/metrics.jsonl: a step, and what was measured there: numbers, or one for each depth."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Logged]

    step: Count
    time: Time = 0.0
    step_seconds: float = 0.0
    images_per_second: float = 0.0


class ReadingOrder(Record):
    """transformer/order.json: in windows of how many shards a training reads its sets (None: all), since its start."""

    shuffle_window: Annotated[int, Field(ge=1)] | None


class Finished(Record):
    """FOLDER/done: the step of a finished training's weights, what proves their files, and how they validate.

    `weights` and `ema` are to be small: bits per code of the transformer, mean squared error of the tokenizer.
    """

    step: Count
    files: dict[Annotated[str, Field(pattern=r"^[a-z]+\.safetensors$")], CheckpointFile] = Field({})
    weights: float = 0.0
    ema: float | None = None
