"""The summary of a root's evaluation, which the report and the verdict show."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from data_specs.records.base import Count, Logged, Record, Sha256, Tree
from data_specs.records.results import AtDepth, EngineInfo, Quality, Result, Share, WordShare


class SummaryInputs(Record):
    """All that decides a summary: content of the sets by name, settings, the last validation, the OCR engine."""

    sets: dict[str, Sha256]
    settings: Tree
    validation_images: Count | None
    validated_at: Count | None
    engine: EngineInfo | None


class CodebookUse(AtDepth):
    """What one depth uses of its codebook."""

    rows_used: Count
    share_used: Share
    perplexity: float
    entropy_bits: float


class HistogramBits(Record):
    """Bits a code that frequencies alone reach, and the entropy of what they predict."""

    bits_per_code: float
    bits_per_code_by_depth: tuple[float, ...]
    val_entropy_bits: float
    val_entropy_bits_by_depth: tuple[float, ...]
    num_codes: Count
    definition: str


class ContextBits(Record):
    """Bits a code that counts of neighbours reach."""

    bits_per_code: float
    bits_per_code_by_depth: tuple[float, ...]
    num_train_codes: Count
    num_val_codes: Count
    definition: str


class RealWords(WordShare):
    """Real words in a set of pictures, those that could not be read, and the first texts."""

    num_unread: Count = 0
    unread: dict[str, Count] = Field({})
    texts: tuple[str, ...] = ()


class SummaryWords(Record):
    """Real words by kind of picture, the share of generated ones to reach, and the engine; or why they are missing."""

    missing: str = ""
    engine: str = ""
    engine_version: str = ""
    aim: float = 0.0
    vocabulary: Count = 0
    real: RealWords | None = None
    reconstructed: RealWords | None = None
    generated: RealWords | None = None

    @model_validator(mode="after")
    def _are_there_or_missing(self) -> Self:
        if not self.missing and None in (self.real, self.reconstructed, self.generated):
            raise ValueError("a kind of pictures has none, and nothing says why")
        return self


class Summary(Result):
    """ROOT/evaluation/summary.json; `transformer` is the row of the training's last validation."""

    inputs: SummaryInputs
    split: str = "val"
    bits_per_code: float | None
    context_bits_per_code: float
    histogram_bits_per_code: float
    reconstruction: Quality
    codebook: tuple[CodebookUse, ...] = ()
    histogram: HistogramBits
    context: ContextBits
    transformer: dict[str, Logged] | None = None
    words: SummaryWords
