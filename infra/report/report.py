"""Writes ROOT/report/index.html (self-contained) and metrics.json from what the stages left under the root."""

from __future__ import annotations

import base64
import json
import math
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from pydantic import JsonValue

import infra.stages  # noqa: F401 (the registry is filled)
from data_specs import open_shards, storage
from data_specs.code_version import installed_version
from data_specs.manifest import Account
from data_specs.metrics import read_rows
from data_specs.progress import clock
from data_specs.receipts import valid_receipts
from data_specs.records import Result
from data_specs.root import name_under, read_spec
from data_specs.spec import Spec
from data_specs.units import require_plan
from data_specs.verify import find_shard_sets
from infra.report.charts import chart_svg, curves_of
from infra.report.tables import against_published, figure_text, table_of
from infra.verdict import figures
from pipeline.png import encode_photo
from pipeline.stages import registered
from tokenize_jobs.decode import grid
from tokenize_jobs.losses import losses_in_words
from train.evaluation.published import PUBLISHED, SOURCE
from train.evaluation.reading import spread
from train.evaluation.results import flatten, provenance, read_results, read_summary

PAGE = Path(__file__).parent / "page.html"
SHOWN = 16
REJECTS = 200  # rejected documents that the report names, of each set
FROM_MANIFEST = ("digest", "totals", "filtered", "rejects", "complete")  # of a manifest
LOOKED = 4  # contact sheets shown
PACKAGES = ("torch", "deepspeed", "ray", "pymupdf", "pillow", "webdataset")


def write_report(root: str) -> str:
    """Write the report and return the page's address; the page says which stages have not run."""
    spec = read_spec(None, root)
    made = provenance(sys.argv)
    summary = read_summary(root)
    results = {name: result for name, result in read_results(root).items() if name != "summary"}
    stages = [_stage(root, uri) for uri in find_shard_sets(root)]
    evaluations = [_evaluation(name, result) for name, result in results.items()]
    metrics: dict[str, Any] = {
        "name": spec.name,
        "root": root,
        "stages": stages,
        "durations": sorted([*map(_duration, stages), *_trainings(root)], key=lambda one: one["ended"]),
        "evaluation": summary and summary.tree(),
        "evaluations": evaluations,
        "published": {
            "source": SOURCE,
            "figures": [row._asdict() | {"conditions": row.conditions._asdict()} for row in PUBLISHED],
        },
        "command": made.command,
        "versions": {package: installed_version(package) for package in PACKAGES} | made.versions,
    }
    page = template(PAGE).render(
        metrics=metrics,
        results=zip(evaluations, map(table_of, results.values()), strict=True),
        verdict=figures(summary) if summary else [],
        published=against_published(results, spec, root),
        source=SOURCE,
        spec=spec,
        spec_yaml=spec.to_yaml(),
        losses=losses_in_words(spec.tokenizer) if spec.tokenizer else "",
        pictures=list(_pictures(spec, root)),
        curves=[(chart.title, chart_svg(chart)) for chart in curves_of(root)],
    )
    uri = storage.join(root, "report", "index.html")
    storage.write_text(storage.join(root, "report", "metrics.json"), json.dumps(metrics, indent=1) + "\n")
    storage.write_text(uri, page)
    return uri


def template(path: Path) -> jinja2.Template:
    """Return a template that escapes what it shows, with the filters `clock` and `figure`."""
    loader = jinja2.FileSystemLoader(path.parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"clock": clock, "figure": figure_text}
    return environment.get_template(path.name)


def _evaluation(name: str, result: Result) -> dict[str, JsonValue]:
    """Name, result, assumptions, command and worst readings."""
    tree = result.tree()
    return {
        "name": name,
        "result": tree,
        "assumptions": {k: v for k, v in flatten(tree).items() if isinstance(v, str | bool | int) and v != ""},
        "command": shlex.join(["dnd", *result.command[1:]]),
        "worst": tree.get("worst", []),
    }


def _stage(root: str, set_uri: str) -> dict[str, Any]:
    """Return the counts, reasons and time of one shard set."""
    plan = require_plan(set_uri)
    account = Account()
    seconds = 0.0
    rejects = list[dict[str, Any]]()
    began = math.inf
    ended = 0.0
    for receipt in valid_receipts(set_uri, plan.digest):
        account.add(receipt)
        seconds += receipt.ran.seconds
        began = min(began, receipt.ran.ended - receipt.ran.seconds)
        ended = max(ended, receipt.ran.ended)
        rejects += [reject.model_dump(mode="json") for reject in receipt.rejected[: REJECTS - len(rejects)]]
    manifest = account.manifest(plan, "")
    return {
        "name": name_under(root, set_uri),
        "identity": plan.identity.model_dump(mode="json"),
        "units": plan.num_units,
        "done": manifest.totals.units,
        "seconds": seconds,
        "took": max(ended - began, 0.0),
        "ended": ended,
        "manifest": manifest.model_dump(mode="json", include=set(FROM_MANIFEST)) if manifest.complete else {},
        "rejected": rejects,
    }


def _duration(stage: dict[str, Any]) -> dict[str, Any]:
    return {"name": stage["name"], "took": stage["took"], "work": stage["seconds"], "ended": stage["ended"]}


def _trainings(root: str) -> Iterator[dict[str, Any]]:
    """How long each training took, by its log."""
    for stage in registered():
        if stage.trains and (
            rows := [r for r in read_rows(storage.join(root, stage.makes, "metrics.jsonl")) if "time" in r]
        ):
            first = rows[0]["time"] - rows[0]["step"] * rows[0].get("step_seconds", 0.0)
            yield {"name": stage.makes, "took": rows[-1]["time"] - first, "work": None, "ended": rows[-1]["time"]}


def _pictures(spec: Spec, root: str) -> Iterator[dict[str, str]]:
    """Title and data URI of sheets of real, reconstructed and generated images, and of what other commands drew."""
    sets = {
        "Generated": f"samples/{spec.sample.name}/images",
        "Real, of the validation split": "images/val",
        "Their reconstructions": "reconstructions/val/images",
    }
    for title, name in sets.items():
        if storage.exists(storage.join(root, name, "manifest.json")):
            items = open_shards(storage.join(root, name))
            if images := [items[index]["image"] for index in spread(len(items), SHOWN)]:
                yield {"title": title, "uri": data_uri(encode_photo(_sheet(images)))}
    for title, uri in _drawn(root):
        yield {"title": title, "uri": data_uri(storage.read_bytes(uri), uri.rpartition(".")[2])}


def _sheet(images: Sequence[np.ndarray]) -> np.ndarray:
    """Return a grid of images, each enlarged to at least 128 px by repeating pixels."""
    factor = max(1, 128 // images[0].shape[0])
    return grid([image.repeat(factor, 0).repeat(factor, 1) for image in images], columns=8, gap=4)


def _drawn(root: str) -> Iterator[tuple[str, str]]:
    """Title and address of what other commands drew: reconstruct, evaluate legibility, training, look."""
    depths = storage.join(root, "reconstructions/val/depths.png")
    if storage.exists(depths):
        yield "Originals, then reconstructions and differences from 1, 2, … codes a position", depths
    for file in storage.list_files(storage.join(root, "evaluation")):
        if file.uri.endswith(".svg"):
            yield "Real words against distinct words, over temperatures", file.uri
    files = storage.list_files(storage.join(root, "transformer", "samples"))
    steps = sorted((int(found[1]), f.uri) for f in files if (found := re.search(r"/step_(\d+)\.png$", f.uri)))
    for step, uri in dict.fromkeys(steps[n] for n in (0, len(steps) // 2, len(steps) - 1) if steps):
        yield f"Drawn while training, step {step}", uri
    looked = (file for file in storage.list_files(storage.join(root, "look")) if file.uri.endswith(".png"))
    for file in islice(looked, LOOKED):
        yield f"Kept and dropped: {file.uri.rpartition('/')[2].removesuffix('.png')}", file.uri


def data_uri(data: bytes, kind: str = "png") -> str:
    """Return a picture, "png" or "svg", as a data URI."""
    mime = {"png": "image/png", "svg": "image/svg+xml"}[kind]
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
