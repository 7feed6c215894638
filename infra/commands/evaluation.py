"""`dnd evaluate …`, `compare`, `report`: what the pictures are worth."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from data_specs import open_shards, storage
from infra.commands.options import RootOpt, SetOpt, SpecArg, compute_workers, open_root
from pipeline.runner import Workers
from train.evaluation.results import compare as compare_results
from train.evaluation.results import set_inputs, with_provenance

app = typer.Typer()
evaluate = typer.Typer(no_args_is_help=True, help="Scores: the FID family, rOCR, PPL-OCR, and the report's summary.")
app.add_typer(evaluate, name="evaluate")

NameOpt = Annotated[str | None, typer.Option("--name", help="the result is ROOT/evaluation/NAME.json")]
EngineOpt = Annotated[str, typer.Option("--engine", help="tesseract, or the folder of a Qwen2-VL model")]
DeviceOpt = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 …")]
WorkersOpt = Annotated[
    int | None, typer.Option("--workers", min=1, help="Ray actors that share the work (default: this process alone)")
]
SamplesOpt = Annotated[str, typer.Option("--samples", help="image shard set of generated images, under the root")]


@evaluate.command()
def summary(root: RootOpt, spec: SpecArg = None, set_: SetOpt = None) -> None:
    """The report's figures on reconstructions and samples (ROOT/evaluation/summary.json)."""
    from train.evaluation.summary import summarise

    resolved, root = open_root(spec, root, set_)
    print(f"evaluation: {summarise(resolved, root)}")


@evaluate.command()
def images(
    samples: Annotated[str, typer.Argument(help="FILE.npz (arr_0), a folder of pictures, or an image shard set")],
    reference: Annotated[str, typer.Option("--reference", help="the same kinds, or an .npz with mu and sigma")],
    root: RootOpt,
    metric: Annotated[Literal["gfid", "rfid"], typer.Option("--metric", help="generated, or reconstructed")] = "gfid",
    kind: Annotated[
        Literal["training", "validation-originals"] | None,
        typer.Option("--kind", help="what the reference holds, where it does not say so itself"),
    ] = None,
    crop: Annotated[str | None, typer.Option("--crop", help="how the reference was cut, for the result")] = None,
    extractor: Annotated[
        str,
        typer.Option(
            "--extractor", help="inception:FILE, transformers:FOLDER, module:PACKAGE.MODULE:FUNCTION, builtin"
        ),
    ] = "builtin",
    force: Annotated[bool, typer.Option("--force", help="accept a reference of the wrong kind; the result says so")] = (
        False
    ),
    name: NameOpt = None,
    device: DeviceOpt = "cpu",
    workers: WorkersOpt = None,
) -> None:
    """FID, sFID, Inception Score, precision and recall as the ADM evaluator computes them.

    gFID is measured against the training set, rFID against the same-crop originals; the wrong kind is refused.
    """
    from train.evaluation.features import load_extractor
    from train.evaluation.fid import evaluate_images
    from train.evaluation.job import extract_on
    from train.evaluation.references import open_reference
    from train.evaluation.sources import open_images

    result = evaluate_images(
        metric,
        open_images(storage.absolute(samples)),
        open_reference(storage.absolute(reference), kind, crop),
        load_extractor(extractor, device),
        forced=force,
        device=device,
        extract_set=partial(extract_on, compute_workers(None, workers), extractor) if workers else None,
    )
    _write(root, name or metric, result, result["figures"])


@evaluate.command()
def rocr(
    root: RootOpt,
    reconstructions: Annotated[
        str, typer.Option("--reconstructions", help="image shard set under the root")
    ] = "reconstructions/val/images",
    originals: Annotated[str, typer.Option("--originals", help="their originals, under the root")] = "images/val",
    engine: EngineOpt = "tesseract",
    against_ocr: Annotated[
        bool, typer.Option("--against-ocr", help="against OCR of the originals instead of the text drawn")
    ] = False,
    num: Annotated[int, typer.Option("--num", min=1, help="images read, evenly over the set")] = 1000,
    name: NameOpt = None,
    device: DeviceOpt = "cpu",
    workers: WorkersOpt = None,
) -> None:
    """How much text survives in reconstructions: ROUGE-1/2/L, CER, WER, word accuracy. A killed run goes on."""
    from train.evaluation.ocr import load_engine
    from train.evaluation.reading import evaluate_rocr

    root, reader = storage.absolute(root), load_engine(engine, device)
    made, truth, records = _open(root, reconstructions), _open(root, originals), _records(root)
    to_read = {"reconstructed": made, "real": truth} if against_ocr else {"reconstructed": made}
    _read(root, to_read, reader, engine, num, workers)
    result = evaluate_rocr(made, truth, reader, records, against_ocr=against_ocr, num_images=num)
    result["inputs"] = set_inputs({"reconstructions": made, "originals": truth})
    _write(root, name or "rocr", result, {k: v for k, v in result.items() if isinstance(v, float)})


@evaluate.command("ppl-ocr")
def ppl_ocr(
    root: RootOpt,
    samples: SamplesOpt = "samples/default/images",
    real: Annotated[str, typer.Option("--real", help="real images, the bound, under the root")] = "images/val",
    engine: EngineOpt = "tesseract",
    model: Annotated[
        str | None,
        typer.Option("--model", help="folder of a causal LM of transformers (default: an n-gram model of the text)"),
    ] = None,
    num: Annotated[int, typer.Option("--num", min=1, help="images of each set")] = 250,
    name: NameOpt = None,
    device: DeviceOpt = "cpu",
    workers: WorkersOpt = None,
) -> None:
    """Perplexity of the text that OCR reads from generated images, and from real ones as the bound."""
    from train.evaluation.ngram import train_ngram
    from train.evaluation.ocr import load_engine
    from train.evaluation.perplexity import TransformersModel
    from train.evaluation.reading import evaluate_ppl_ocr
    from train.evaluation.words import drawn_texts, vocabulary

    root, reader = storage.absolute(root), load_engine(engine, device)
    sets, train = {"real": _open(root, real), "generated": _open(root, samples)}, _open(root, "images/train")
    language = TransformersModel(model, device) if model else train_ngram(drawn_texts(train))
    _read(root, sets, reader, engine, num, workers)
    result = evaluate_ppl_ocr(sets, reader, language, vocabulary(drawn_texts(train)), _records(root), num_images=num)
    result["inputs"] = set_inputs({**sets, "training text": train})
    figures = {f"{kind} perplexity per {result['unit']}": result[kind]["perplexity"] for kind in ("real", "generated")}
    figures |= {f"{kind} real words": result[kind]["words"]["share"] for kind in ("real", "generated")}
    _write(root, name or "ppl-ocr", result, figures)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="ROOT1")], second: Annotated[str, typer.Argument(metavar="ROOT2")]
) -> None:
    """The evaluations of two roots side by side, and the assumptions in which they differ."""
    roots = [_results(storage.absolute(root)) for root in (first, second)]
    result = compare_results(*roots)
    for row in result["figures"]:
        difference = "" if row["difference"] is None else f"{row['difference']:+.4g}"
        print(f"{row['name']:56} {_short(row['a']):>10} {_short(row['b']):>10} {difference:>10}")
    if result["assumptions"]:
        print("\nNot measured alike:")
    for row in result["assumptions"]:
        print(f"{row['name']:56} {row['a']} | {row['b']}")


@app.command()
def report(root: RootOpt) -> None:
    """Writes one self-contained page about everything under the root (ROOT/report/index.html)."""
    from infra.report.report import write_report

    print(f"report: {write_report(storage.absolute(root))}")


def _open(root: str, name: str) -> Any:
    return open_shards(storage.join(root, name))


def _read(root: str, sets: dict[str, Any], reader: Any, engine: str, num: int, workers: int | None) -> None:
    """Has workers read the first `num` images of each set, where they are asked for."""
    from train.evaluation.job import read_on
    from train.evaluation.ocr import TESSERACT
    from train.evaluation.reading import spread

    if workers:
        use = Workers(None, workers) if engine == TESSERACT else compute_workers(None, workers)
        read_on(use, reader, engine, _records(root), {k: (v, spread(len(v), num)) for k, v in sets.items()})


def _records(root: str) -> Path:
    """Where what OCR read is remembered: beside the results; for a remote root, in this machine's temporary folder."""
    if not storage.is_remote(root):
        return Path(root, "evaluation", "ocr.jsonl")
    return Path(tempfile.gettempdir(), f"dnd-ocr-{hashlib.sha256(root.encode()).hexdigest()[:16]}.jsonl")


def _write(root: str, name: str, result: dict[str, Any], figures: dict[str, Any]) -> None:
    uri = storage.join(storage.absolute(root), "evaluation", f"{name}.json")
    storage.write_text(uri, json.dumps(with_provenance(result, sys.argv), indent=1) + "\n")
    for figure, value in figures.items():
        print(f"{figure}: {_short(value)}")
    for note in result.get("notes", []):
        print(f"note: {note}")
    print(f"evaluation: {uri}")


def _results(root: str) -> dict[str, Any]:
    """{name: result} of a root's evaluations."""
    files = [file.uri for file in storage.list_files(storage.join(root, "evaluation")) if file.uri.endswith(".json")]
    if not files:
        raise ValueError(f"{root}/evaluation: there is no result here; run `dnd evaluate`")
    return {uri.rpartition("/")[2].removesuffix(".json"): json.loads(storage.read_text(uri)) for uri in files}


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value or "-")
