"""Results of evaluation, ROOT/evaluation/NAME.json: a model for each kind of them, and the parts that they share.

A key stands in its file where it stands here: those of a class's bases first, of the last base before the others; what
`Result` holds comes last.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
)

from data_specs.records.base import Count, Record, Sha256, Tree


def _none_if_not_finite(value: object, info: ValidationInfo) -> object:
    """Return a figure as it was computed, None where it is no finite number; one in a file is left to be refused."""
    return None if info.mode == "python" and isinstance(value, float) and not math.isfinite(value) else value


Share = Annotated[float, Field(ge=0, le=1)]
Measured = Annotated[float | None, BeforeValidator(_none_if_not_finite)]
Interval = tuple[Measured, Measured] | None  # the 2.5 and 97.5 % quantiles over resampled pictures
Scored = Literal["real", "generated"]  # pictures whose text is compared
Kind = Literal[Scored, "reconstructed"]
Metric = Literal["gfid", "rfid"]


class Result(Record):
    """What every result says besides its figures: the command that made it, and versions of what decides figures."""

    command: tuple[str, ...] = ()
    versions: dict[str, str | None] = Field({})

    def tree(self) -> dict[str, JsonValue]:
        """Return the result as it stands in its file."""
        tree = self.model_dump(mode="json")
        return tree | {key: tree.pop(key) for key in Result.model_fields}


# ---- what several kinds of results share ---------------------------------------------------------------------------
class EngineInfo(Record):
    """An OCR engine and its version, which decides what it reads."""

    engine: str
    engine_version: str


class SetInfo(Record):
    """A set of images that was scored: where it lay, how many there are, and the digest of its content."""

    uri: str
    count: Count
    digest: Sha256


class AtDepth(Record):
    """A number of codes a position, or the place of one of them."""

    depth: Count


class Quality(Record):
    """How close pictures are to their originals; a PSNR is None where all of them came back exactly."""

    num_images: Count
    num_identical: Count
    psnr: float | None
    psnr_of_mean_error: float | None
    ssim: float


class WordShare(Record):
    """The share of real words among those that OCR read in a set of pictures; None where it read none."""

    share: Share | None
    num_real: Count = 0
    num_words: Count = 0
    num_images: Count = 0
    num_wordless: Count = 0
    min_letters: Count = 0
    vocabulary_size: Count = 0


class Perplexity(Record):
    """PPL-OCR of a set of pictures; `unit` is what the model counts. None where nothing could be scored."""

    perplexity: Measured
    median: Measured
    interval_95: Interval
    unit: str
    model: str
    num_images: Count
    num_scored: Count
    num_too_short: Count
    num_units: Count


# ---- dnd evaluate images -------------------------------------------------------------------------------------------
class ExtractorInfo(Record):
    """The network that made the features."""

    name: str
    digest: Sha256
    dim: Count


class ReferenceInfo(Record):
    """What was measured against."""

    uri: str
    kind: str
    count: Count | None
    crop: str | None
    digest: Sha256
    statistics: Literal["computed", "precomputed"]


class ImageScores(Result):
    """The FID family: figures by their true names, and all that was assumed; `forced` is what would have refused it.

    `manifolds` holds their neighbours, and the numbers of pictures that span them.
    """

    metric: Metric
    figures: dict[str, Measured]
    extractor: ExtractorInfo
    samples: SetInfo
    reference: ReferenceInfo
    manifolds: dict[str, Count]
    forced: tuple[str, ...]
    notes: tuple[str, ...]


# ---- dnd evaluate rocr ---------------------------------------------------------------------------------------------
class TextFigures(Record):
    """How much of a text was read: ROUGE by picture, errors and words over the whole set."""

    rouge1: float
    rouge2: float
    rougeL: float
    cer: float
    wer: float
    word_accuracy: float


class WorstReading(Record):
    """A picture that was read badly; rouge_score gives the integer 0 for an empty text."""

    key: str
    rougeL: int | float
    reference: str
    text: str


class TextScores(TextFigures):
    """The figures of a set of texts, and the pictures that were read worst."""

    num_images: Count
    num_without_text: Count
    num_words: Count
    worst: tuple[WorstReading, ...]


class Rocr(TextScores, Result):
    """rOCR of reconstructions; `originals` is what the engine reads in those, the ceiling; None without their text."""

    reference: str
    originals: TextFigures | None
    engine: str
    engine_version: str
    num_offered: Count
    num_unread: Count
    unread: dict[str, Count]
    inputs: dict[str, SetInfo] = Field({})


# ---- dnd evaluate ppl-ocr ------------------------------------------------------------------------------------------
class ReadText(Perplexity):
    """What was read in one set of pictures: perplexity, real words where a vocabulary is known, the first texts."""

    words: WordShare | None
    texts: tuple[str, ...]
    num_unread: Count
    unread: dict[str, Count]


class PplOcr(EngineInfo, Result):
    """PPL-OCR of generated pictures, and of real ones as the bound."""

    model: str
    unit: str
    notes: tuple[str, ...]
    real: ReadText
    generated: ReadText
    too_repetitive: bool
    inputs: dict[str, SetInfo] = Field({})


# ---- dnd evaluate legibility ---------------------------------------------------------------------------------------
class TextVariety(Record):
    """What a set of texts, one a picture, repeats of itself and of the training text.

    `distinct_pairs` are different pairs of neighbouring words, `duplicates` the share of the texts with words that
    another picture has, too, `opening` is the commonest first word, and `opening_share` its share of them. `copied` is
    the share of the texts of at least 12 letters and blanks within two edits of a whole passage, `copied_lines` that of
    the lines of at least two words that stand word for word within one; None where there is no such text or line.
    """

    distinct_pairs: Count
    duplicates: Share
    opening: str
    opening_share: Share
    copied: Share | None
    copied_lines: Share | None


class ReadWords(EngineInfo):
    """Shares of the words by kind of pictures, and the ratio of the generated share of real words to the real one."""

    num_images: Count
    exact_words: Annotated[dict[Kind, Share | None], Field(min_length=1)]
    real_words: Annotated[dict[Kind, Share | None], Field(min_length=2)]
    ratio: Measured
    ratio_interval: Interval
    distinct_words: Annotated[dict[Scored, Count], Field(min_length=2)]


class SweepPoint(Record):
    """The samples of one temperature of a sweep."""

    temperature: float
    real_words: Share | None
    ratio: Measured
    ratio_interval: Interval
    distinct_words: Count
    distinct_pairs: Count
    duplicates: Share
    num_images: Count


class Legibility(Result, TextVariety, ReadWords):
    """Legibility beside diversity, memorisation and temperature; the variety is that of the generated pictures."""

    real: TextVariety
    scribbles: Share | None
    vocabulary_size: Count
    ppl_ocr: Annotated[dict[Scored, Perplexity], Field(min_length=2)]
    too_repetitive: bool
    notes: tuple[str, ...]
    num_unread: Count
    unread: dict[str, Count]
    texts: tuple[str, ...]
    temperature: float | list[float] | None = None
    sampling: Tree = Field({})
    sweep: tuple[SweepPoint, ...] = ()
    inputs: dict[str, SetInfo] = Field({})


# ---- dnd reconstruct -----------------------------------------------------------------------------------------------
class DepthScores(Quality, AtDepth):
    """Reconstructions from the first `depth` codes of each position; without LPIPS where it was not measured."""

    bits_per_pixel: float
    information_compression_ratio: float
    lpips: Measured = None
    codebook_share_used: Share
    codebook_perplexity: float

    @model_serializer(mode="wrap")
    def _without_lpips(self, dump: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        tree: dict[str, JsonValue] = dump(self)
        return {key: value for key, value in tree.items() if key != "lpips" or value is not None}


class ReconstructionInputs(Record):
    """What decides the figures of reconstructions: both sets' content, and how many images are compared."""

    originals: Sha256
    reconstructions: Sha256
    num: Count


class Reconstruction(Result):
    """What the tokenizer loses, code by code."""

    split: str
    inputs: ReconstructionInputs
    depths: Annotated[tuple[DepthScores, ...], Field(min_length=1)]
    lpips_weights: str
