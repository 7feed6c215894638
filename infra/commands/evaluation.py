"""`dnd evaluate …`, `compare`, `report`: what the pictures are worth."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from data_specs import storage
from data_specs.records import Legibility, Metric, PplOcr, Result, Rocr, SetInfo, TextFigures
from data_specs.text import say
from infra.commands.options import JsonOpt, RootArg, RootCommand, RootOpt, SetOpt, SpecArg, open_root, with_gpus
from infra.report.tables import figure_text
from pipeline.workers import Workers
from train.evaluation.results import summary_uri, write_result

if TYPE_CHECKING:
    from train.evaluation.ocr import OcrEngine
    from train.evaluation.sources import ImageSet

app = typer.Typer()
evaluate = typer.Typer(no_args_is_help=True, help="Scores: the FID family, rOCR, PPL-OCR, and the report's summary.")
app.add_typer(evaluate, name="evaluate")


def _result_name(text: str) -> str:
    """Return the name of a result, refusing one that lies elsewhere, and that of the summary."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", text) or text == "summary":
        raise typer.BadParameter(f"{text!r}: letters, digits, dots, _ and -; and not summary, which is another's")
    return text


NameOpt = Annotated[
    str | None, typer.Option("--name", help="the result is ROOT/evaluation/NAME.json", parser=_result_name)
]
EngineOpt = Annotated[
    str,
    typer.Option(
        "--engine", help="auto (the first that is installed), tesserocr, tesseract, rapidocr, qwen2-vl:FOLDER or FOLDER"
    ),
]
DeviceOpt = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 …")]
WorkersOpt = Annotated[
    int | None, typer.Option("--workers", min=1, help="Ray actors that share the work (default: this process alone)")
]
SamplesOpt = Annotated[
    str, typer.Option("--samples", help="generated images: FILE.npz, a folder or a shard set, under the root or not")
]
RealOpt = Annotated[str, typer.Option("--real", help="real images, the bound; the same kinds")]


@evaluate.command()
def summary(root: RootOpt, spec: SpecArg = None, set_: SetOpt = None, as_json: JsonOpt = False) -> None:
    """Write the report's figures on reconstructions and samples (ROOT/evaluation/summary.json)."""
    from train.evaluation.summary import summarise

    resolved, root = open_root(spec, root, set_)
    summarise(resolved, root)
    uri = summary_uri(root)
    say(storage.read_text(uri).rstrip() if as_json else f"evaluation: {uri}")


@evaluate.command()
def images(
    samples: Annotated[str, typer.Argument(help="FILE.npz (arr_0), a folder of pictures, or an image shard set")],
    reference: Annotated[
        str, typer.Option(help="the same kinds, an .npz with mu and sigma, or a name of `dnd pretrained`")
    ],
    root: RootOpt,
    metric: Annotated[Metric, typer.Option(help="generated, or reconstructed")] = "gfid",
    kind: Annotated[
        Literal["training", "validation-originals"] | None,
        typer.Option(help="what the reference holds, where it does not say so itself"),
    ] = None,
    crop: Annotated[str | None, typer.Option(help="how the reference was cut, for the result")] = None,
    extractor: Annotated[
        str, typer.Option(help="inception[:FILE], transformers:FOLDER, module:PACKAGE.MODULE:FUNCTION, builtin")
    ] = "builtin",
    force: Annotated[bool, typer.Option("--force", help="accept a reference of the wrong kind; the result says so")] = (
        False
    ),
    name: NameOpt = None,
    device: DeviceOpt = "cpu",
    workers: WorkersOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """FID, sFID, Inception Score, precision and recall as the ADM evaluator computes them.

    gFID is measured against the training set, rFID against the same-crop originals; the wrong kind is refused.
    """
    from infra.weights import REGISTRY, fetch_weights
    from train.evaluation.features import load_extractor
    from train.evaluation.fid import evaluate_images
    from train.evaluation.job import extract_on
    from train.evaluation.references import open_reference
    from train.evaluation.sources import open_images

    root = storage.absolute(root)
    extractor = _with_weights(extractor)
    known = REGISTRY.get(reference)
    result = evaluate_images(
        metric,
        open_images(storage.absolute(samples)),
        open_reference(storage.absolute(fetch_weights(reference)), kind or (known.reference if known else None), crop),
        load_extractor(extractor, device),
        forced=force,
        device=device,
        extract_set=partial(extract_on, with_gpus(Workers(None, workers)), extractor) if workers else None,
    )
    _write(root, name or metric, result, result.figures, as_json)


@evaluate.command(cls=RootCommand)
def rocr(
    root: RootArg,
    reconstructions: Annotated[
        str, typer.Option(help="FILE.npz, a folder or a shard set, under the root or not")
    ] = "reconstructions/val/images",
    originals: Annotated[str, typer.Option(help="their originals; the same kinds")] = "images/val",
    engine: EngineOpt = "auto",
    against_ocr: Annotated[
        bool, typer.Option("--against-ocr", help="against OCR of the originals instead of the text drawn")
    ] = False,
    num: Annotated[int, typer.Option(min=1, help="images read, evenly over the set")] = 1000,
    name: NameOpt = None,
    device: DeviceOpt = "cpu",
    workers: WorkersOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """How much text survives in reconstructions: ROUGE-1/2/L, CER, WER, word accuracy. A killed run goes on.

    Behind each figure stands the originals' own: what the engine reads in them is the ceiling.
    """
    from train.evaluation.reading import evaluate_rocr
    from train.evaluation.reading_cache import cache_of

    root = storage.absolute(root)
    reader = _engine(engine, device)
    sets = _read(root, reader, num, workers, reconstructions=reconstructions, originals=originals)
    made = sets["reconstructions"]
    truth = sets["originals"]
    result = evaluate_rocr(made, truth, reader, cache_of(root), against_ocr=against_ocr, num_images=num)
    figures = result.model_dump(include=set(TextFigures.model_fields))
    own = result.originals.model_dump() if result.originals else None
    result = result.model_copy(update={"inputs": _inputs(sets)})
    _write(root, name or "rocr", result, figures, as_json, own)


@evaluate.command("ppl-ocr", cls=RootCommand)
def ppl_ocr(
    root: RootArg,
    samples: SamplesOpt = "samples/default/images",
    real: RealOpt = "images/val",
    engine: EngineOpt = "auto",
    model: Annotated[
        str | None, typer.Option(help="folder of a causal LM of transformers (default: an n-gram model of the text)")
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="images of each set")] = 250,
    name: NameOpt = None,
    device: DeviceOpt = "cpu",
    workers: WorkersOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Perplexity of the text that OCR reads from generated images, and from real ones as the bound."""
    from infra.weights import fetch_weights
    from train.evaluation.ngram import train_ngram
    from train.evaluation.perplexity import TransformersModel
    from train.evaluation.reading import evaluate_ppl_ocr
    from train.evaluation.reading_cache import cache_of
    from train.evaluation.sources import ShardImages
    from train.evaluation.words import drawn_texts, vocabulary

    root = storage.absolute(root)
    reader = _engine(engine, device)
    train = ShardImages(storage.join(root, "images/train/manifest.json"))
    language = TransformersModel(fetch_weights(model), device) if model else train_ngram(drawn_texts(train.items))
    known = vocabulary(drawn_texts(train.items))
    sets = _read(root, reader, num, workers, real=real, generated=samples)
    result = evaluate_ppl_ocr(sets, reader, language, known, cache_of(root), num_images=num)
    read = {"real": result.real, "generated": result.generated}
    figures = {f"{kind} perplexity per {result.unit}": of.perplexity for kind, of in read.items()}
    figures |= {f"{kind} real words": of.words.share for kind, of in read.items() if of.words}
    result = result.model_copy(update={"inputs": _inputs(sets | {"training text": train})})
    _write(root, name or "ppl-ocr", result, figures, as_json)


@evaluate.command(cls=RootCommand)
def legibility(
    root: RootArg,
    samples: SamplesOpt = "samples/default/images",
    real: RealOpt = "images/val",
    reconstructions: Annotated[
        str, typer.Option(help="of the real images; the same kinds")
    ] = "reconstructions/val/images",
    engine: EngineOpt = "auto",
    num: Annotated[int, typer.Option(min=1, help="images of each set")] = 250,
    temperatures: Annotated[
        str, typer.Option(help="drawn anew and compared, of this root's own samples; empty: none")
    ] = "0.3,0.6,0.8,1.0",
    name: NameOpt = None,
    device: DeviceOpt = "cpu",
    workers: WorkersOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Real words beside distinct words, copies of the training text and scribbles, over temperatures.

    Writes ROOT/evaluation/legibility.json, and a picture beside it: share of real words against distinct words, with
    real text as a point.
    """
    from infra.legibility import measure

    root = storage.absolute(root)
    wanted = _temperatures(temperatures)
    reader = _engine(engine, device)
    names = {"real": real, "generated": samples}
    if samples.startswith("samples/") and storage.exists(storage.join(root, reconstructions, "manifest.json")):
        names["reconstructed"] = reconstructions
    sets = _read(root, reader, num, workers, **names)
    result = measure(root, sets, reader, num, wanted, with_gpus(Workers(None, workers or 0)), name or "legibility")
    result = result.model_copy(update={"inputs": _inputs(sets)})
    shares = {"exact_words": result.exact_words, "real_words": result.real_words}
    figures = {f"{figure} {kind}": share for figure, of in shares.items() for kind, share in of.items()}
    others = {"ratio", "ratio_interval", "distinct_words", "duplicates", "copied", "scribbles"}
    _write(root, name or "legibility", result, figures | result.model_dump(include=others), as_json)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="ROOT1")],
    second: Annotated[str, typer.Argument(metavar="ROOT2")],
    as_json: JsonOpt = False,
) -> None:
    """Two roots side by side: what differs in their specs, their trainings' curves, their evaluations."""
    from infra.compare import compare_roots, comparison_lines

    compared = compare_roots(storage.absolute(first), storage.absolute(second))
    say(json.dumps(compared, indent=1) if as_json else "\n".join(comparison_lines(compared)))


@app.command(cls=RootCommand)
def report(root: RootArg) -> None:
    """Write one self-contained page about everything under the root (ROOT/report/index.html)."""
    from infra.report.report import write_report

    say(f"report: {write_report(storage.absolute(root))}")


def _temperatures(text: str) -> list[float]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if wrong := [word for word in words if not re.fullmatch(r"\d*\.?\d+", word)]:
        raise ValueError(f"--temperatures {text}: {wrong[0]!r} is none: give numbers with commas between them")
    return [float(word) for word in words]


def _with_weights(spec: str) -> str:
    """KIND:NAME of an extractor or engine with the path of what NAME names; `inception` is the published file."""
    from infra.weights import fetch_weights

    kind, _, name = spec.partition(":")
    if kind not in ("inception", "transformers", "qwen2-vl") or not (name or kind == "inception"):
        return spec
    return f"{kind}:{fetch_weights(name or kind)}"


def _pictures(root: str, name: str) -> ImageSet:
    """Open a set of pictures under the root, or at its own address where the root has none of this name."""
    from train.evaluation.sources import open_images

    below = storage.join(root, name)
    elsewhere = Path(name).exists() and not (
        storage.exists(below) or storage.exists(storage.join(below, "manifest.json")) or Path(below).is_dir()
    )
    return open_images(storage.absolute(name) if elsewhere else below)


def _engine(spec: str, device: str) -> OcrEngine:
    from train.evaluation.ocr import load_engine

    return load_engine(_with_weights(spec), device)


def _read(root: str, reader: OcrEngine, num: int, workers: int | None, **names: str) -> dict[str, ImageSet]:
    """Open sets of pictures by these names, `num` of each read by workers where they are asked for."""
    from train.evaluation.job import read_on
    from train.evaluation.reading import spread
    from train.evaluation.reading_cache import cache_of

    sets = {kind: _pictures(root, name) for kind, name in names.items()}
    if workers:
        use = with_gpus(Workers(None, workers)) if reader.on_device else Workers(None, workers)
        read_on(use, reader, cache_of(root), {kind: (of, spread(len(of), num)) for kind, of in sets.items()})
    return sets


def _inputs(sets: Mapping[str, ImageSet]) -> dict[str, SetInfo]:
    return {name: of.describe() for name, of in sets.items()}


def _write(
    root: str,
    name: str,
    result: Result,
    figures: Mapping[str, object],
    as_json: bool,
    originals: Mapping[str, object] | None = None,
) -> None:
    """Write ROOT/evaluation/NAME.json and print it, or its figures followed by the originals' own."""
    uri = storage.join(root, "evaluation", f"{name}.json")
    text = write_result(uri, result)
    if as_json:
        say(text)
        return
    if isinstance(result, Rocr | PplOcr | Legibility):
        say(f"read by {result.engine} {result.engine_version}")
    for figure, value in figures.items():
        own = f" (originals {figure_text(originals[figure])})" if originals else ""
        say(f"{figure}: {figure_text(value)}{own}")
    for note in getattr(result, "notes", ()):
        say(f"note: {note}")
    say(f"evaluation: {uri}")
