"""Results as the tables of the report: a head, and rows of one label and a value a column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from data_specs.records import DepthScores, ImageScores, Legibility, PplOcr, Reconstruction, Result, Rocr
from data_specs.root import spec_of_samples
from data_specs.spec import Spec
from train.evaluation.published import PUBLISHED, Conditions, Published, differences

NAMES = {
    "psnr": "PSNR, dB",
    "psnr_of_mean_error": "PSNR of the mean error, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "bits_per_pixel": "bits a pixel",
    "information_compression_ratio": "bits of codes for a bit of image",
    "codebook_share_used": "share of the codebook in use",
    "codebook_perplexity": "perplexity of the codes",
    "num_images": "images",
    "num_identical": "of them reproduced exactly",
    "gfid": "gFID",
    "rfid": "rFID",
    "sfid": "sFID",
    "kid": "KID",
    "ppl_ocr": "PPL-OCR",
    "inception_score": "Inception Score",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "cer": "character error rate",
    "wer": "word error rate",
    "word_accuracy": "word accuracy",
    "num_without_text": "images without text, not scored",
    "num_words": "words",
    "ratio": "ratio to real text",
    "ratio_interval": "its 95 % interval",
    "distinct_words": "distinct real words",
    "distinct_pairs": "distinct pairs of words",
    "duplicates": "texts that occur twice",
    "copied": "copies of a training passage",
    "copied_lines": "lines of the training text",
    "scribbles": "scribbles taken for words",
    "num_scored": "images scored",
    "num_too_short": "images of fewer than five words, not scored",
}
DATA = {"imagenet": "ImageNet", "text_image": "Text-Image", "arxiv_image": "arXiv-Image"}  # by name of the preset


class Table(NamedTuple):
    """A head, and rows of a label and a value for each other column; the page shows them by `figure_text`."""

    head: list[str]
    rows: Sequence[tuple[str, Sequence[object]]]


class Comparison(NamedTuple):
    """A published figure, its name as it is shown, and ours of the same name, each with what differs."""

    published: Published
    name: str
    here: list[str]


def figure_text(value: object) -> str:
    """Format a figure in four digits, a count whole, the ends of an interval; – where there is none."""
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return " to ".join(map(figure_text, value))
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def table_of(result: Result) -> Table:
    """Return the table of one evaluation.

    Depths or kinds of image stand side by side where it has them; else it lists the figures.
    """
    if isinstance(result, Reconstruction):
        return _by_depth(result.depths)
    if isinstance(result, Legibility):
        return _by_temperature(result)
    if isinstance(result, PplOcr):
        return _by_kind(result)
    figures = result.figures if isinstance(result, ImageScores) else {k: v for k, v in result if k in NAMES}
    if isinstance(result, Rocr) and result.originals:  # the ceiling
        rows = [(_name(k), [v, getattr(result.originals, k, None)]) for k, v in figures.items()]
        return Table(["figure", "reconstructions", "originals"], rows)
    return Table(["figure", "value"], [(_name(k), [v]) for k, v in figures.items()])


def against_published(results: Mapping[str, Result], spec: Spec, root: str) -> list[Comparison]:
    """Return the published figures for a run's data, size and codes per position, with ours of the same name."""
    concerned = (_data_of(spec), spec.shape.image_size, spec.shape.depth)
    ours = [(name, *row) for name, result in results.items() for row in _measured(result, spec, root)]
    rows = []
    for row in (row for row in PUBLISHED if row.conditions[:3] == concerned):
        here = [
            f"{figure_text(value)} ({name}{_but(differences(row.conditions, own))})"
            for name, figure, value, own in ours
            if figure == row.figure
        ]
        rows.append(Comparison(row, _name(row.figure), here))
    return rows


def _measured(result: Result, spec: Spec, root: str) -> Iterator[tuple[str, float, Conditions]]:
    """Yield (figure, value, conditions) of each figure of a result that has a published name.

    The preset's name tells the data set.
    """
    known = Conditions(_data_of(spec), spec.shape.image_size, spec.shape.depth, "RQ-VAE")
    figures: Mapping[str, float | None] = {}
    if isinstance(result, ImageScores):
        figures = result.figures
        known = known._replace(reader=result.extractor.name, images=result.samples.count)
        if result.metric == "gfid":
            model, guidance = _drawn_by(result.samples.uri, root)
            known = known._replace(model=model, guidance=guidance)
    elif isinstance(result, Rocr):
        figures = {"rougeL": result.rougeL}
        known = known._replace(reader=f"{result.engine} {result.engine_version}", images=result.num_images)
    elif isinstance(result, PplOcr) and result.unit == "token":
        figures = {"ppl_ocr": result.real.perplexity}
        reader = f"{result.engine} {result.engine_version}, {result.model}"
        known = known._replace(model="real images", reader=reader, images=result.real.num_images)
    names = {row.figure for row in PUBLISHED}
    for label, value in figures.items():
        figure = label.partition("[")[0]  # gfid[5,000 images]
        if figure in names and value is not None:
            yield figure, value, known


def _data_of(spec: Spec) -> str:
    return next((name for prefix, name in DATA.items() if spec.name.startswith(prefix)), spec.name)


def _drawn_by(uri: str, root: str) -> tuple[str, float | None]:
    """(model, guidance) of samples, by the spec that their folder keeps; unknown where they are not this root's."""
    made = spec_of_samples(root, uri)
    if not made or not made.transformer or not isinstance(made.sample.guidance, float):
        return "", None
    heads = {"dnd": "DnD"}.get(made.transformer.heads, made.transformer.heads)
    return f"{heads} {made.transformer.size or 'of its own size'}", made.sample.guidance


def _but(differ: list[str] | None) -> str:
    return f"; but {', '.join(differ)}" if differ else ""


def _by_depth(depths: Sequence[DepthScores]) -> Table:
    head = ["codes a position", *(str(one.depth) for one in depths)]
    keys = depths[0].model_dump(exclude={"depth"})
    return Table(head, [(_name(key), [getattr(one, key) for one in depths]) for key in keys])


def _by_temperature(result: Legibility) -> Table:
    """Legibility: real and reconstructed pictures, the samples, and those of each temperature of the sweep."""
    by_kind = ("exact_words", "real_words", "distinct_words")
    real, reconstructed, generated = (
        {key: getattr(result, key).get(kind) for key in by_kind} for kind in ("real", "reconstructed", "generated")
    )
    sampled = (dict(result) | generated, *map(dict, result.sweep))
    columns = [
        ("real", dict(result.real) | real),
        ("reconstructed", reconstructed),
        *((_sampled_at(of["temperature"]), of) for of in sampled),
    ]
    keys = (
        *("exact_words", "real_words", "ratio", "ratio_interval", "distinct_words", "distinct_pairs", "duplicates"),
        *("copied", "copied_lines", "scribbles"),
    )
    rows = [(_name(key), [of.get(key) for _, of in columns]) for key in keys]
    openings = ("commonest opening", [_opening(of) for _, of in columns])
    return Table(["", *(name for name, _ in columns)], [*rows, openings])


def _sampled_at(temperature: object) -> str:
    return "generated" if temperature is None else f"temperature {figure_text(temperature)}"


def _opening(of: Mapping[str, object]) -> str | None:
    return f"{of['opening']}, {of['opening_share']:.0%}" if of.get("opening") else None


def _by_kind(result: PplOcr) -> Table:
    of = (result.real, result.generated)
    rows: list[tuple[str, Sequence[object]]] = [
        (f"perplexity per {result.unit}", [one.perplexity for one in of]),
        ("95 % interval", [one.interval_95 or "none" for one in of]),
        ("median of the images", [one.median for one in of]),
        ("real words", [one.words and one.words.share for one in of]),
        *((_name(key), [getattr(one, key) for one in of]) for key in ("num_images", "num_scored", "num_too_short")),
    ]
    return Table(["", "real", "generated"], rows)


def _name(key: str) -> str:
    plain, bracket, rest = key.partition("[")
    return NAMES.get(plain, plain.replace("_", " ")) + (f" {bracket}{rest}" if rest else "")
