"""Writes ROOT/report/index.html (self-contained) and metrics.json from what the stages left under the root."""

from __future__ import annotations

import base64
import json
import math
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

import infra.stages  # noqa: F401 (the registry is filled)
from data_specs import open_shards, storage
from data_specs.manifest import Account
from data_specs.metrics import read_rows
from data_specs.progress import clock
from data_specs.receipts import valid_receipts
from data_specs.root import read_spec
from data_specs.spec import Spec
from data_specs.units import read_plan
from data_specs.verify import find_shard_sets
from infra.report.charts import chart_svg, curves_of
from infra.report.tables import Table, against_published, table_of
from infra.verdict import figures
from pipeline.png import encode_photo
from pipeline.stages import registered
from tokenize_jobs.decode import grid
from train.evaluation.published import PUBLISHED, SOURCE
from train.evaluation.results import flatten, naming_its_file, read_results, read_summary, with_provenance

SHOWN = 16
REJECTS = 200  # rejected documents that the report names, of each set
FROM_MANIFEST = ("digest", "totals", "filtered", "rejects", "complete")  # of a manifest
LOOKED = 4  # contact sheets shown
PACKAGES = ("torch", "deepspeed", "ray", "pymupdf", "pillow", "webdataset")


def write_report(root: str) -> str:
    """Writes the report and returns the page's address; the page says which stages have not run."""
    spec = read_spec(None, root)
    provenance = with_provenance({}, sys.argv)
    results = read_results(root)
    results.pop("summary", None)
    summary = read_summary(root)
    evaluations = [_evaluation(root, name, result) for name, result in results.items()]
    stages = [_stage(root, uri) for uri in find_shard_sets(root)]
    metrics = {
        "name": spec.name,
        "root": root,
        "stages": stages,
        "durations": sorted([*map(_set_duration, stages), *_trainings(root)], key=lambda one: one["ended"]),
        "evaluation": summary and summary.model_dump(mode="json"),
        "evaluations": evaluations,
        "published": {
            "source": SOURCE,
            "figures": [row._asdict() | {"conditions": row.conditions._asdict()} for row in PUBLISHED],
        },
        "command": provenance["command"],
        "versions": {package: version(package) for package in PACKAGES} | provenance["versions"],
    }
    storage.write_text(storage.join(root, "report", "metrics.json"), json.dumps(metrics, indent=1) + "\n")
    try:
        page = _template().render(
            metrics=metrics,
            results=[(one, _table(root, one)) for one in evaluations],
            verdict=figures(summary) if summary else [],
            published=against_published(evaluations, spec, root),
            source=SOURCE,
            spec=spec,
            spec_yaml=spec.to_yaml(),
            pictures=_pictures(spec, root),
            curves=[(chart.title, Markup(chart_svg(chart))) for chart in curves_of(root)],  # noqa: S704 (it escapes)
        )
    except jinja2.UndefinedError as error:
        raise ValueError(f"{root}/evaluation: a result lacks what the report shows ({error}): evaluate again") from None
    uri = storage.join(root, "report", "index.html")
    storage.write_text(uri, page)
    return uri


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["clock"] = clock
    return environment.get_template("page.html")


def _evaluation(root: str, name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Name, result, assumptions, command and worst readings."""
    with naming_its_file(root, name):
        return {
            "name": name,
            "result": result,
            "assumptions": {k: v for k, v in flatten(result).items() if isinstance(v, str | bool | int) and v != ""},
            "command": shlex.join(["dnd", *result.get("command", [])[1:]]),
            "worst": [example for example in result.get("worst", []) if "reference" in example],
        }


def _table(root: str, evaluation: dict[str, Any]) -> Table:
    with naming_its_file(root, evaluation["name"]):
        return table_of(evaluation["result"])


def _stage(root: str, set_uri: str) -> dict[str, Any]:
    """Counts, reasons and time of one shard set."""
    plan = read_plan(set_uri)
    assert plan is not None
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
        "name": set_uri.removeprefix(root.rstrip("/") + "/"),
        "identity": plan.identity.model_dump(mode="json"),
        "units": plan.num_units,
        "done": manifest.totals.units,
        "seconds": seconds,
        "took": max(ended - began, 0.0),
        "ended": ended,
        "manifest": manifest.model_dump(mode="json", include=set(FROM_MANIFEST)) if manifest.complete else {},
        "rejected": rejects,
    }


def _set_duration(stage: dict[str, Any]) -> dict[str, Any]:
    return {"name": stage["name"], "took": stage["took"], "work": stage["seconds"], "ended": stage["ended"]}


def _trainings(root: str) -> Iterator[dict[str, Any]]:
    """How long each training took, by its log."""
    for stage in registered():
        if stage.trains and (
            rows := [r for r in read_rows(storage.join(root, stage.makes, "metrics.jsonl")) if "time" in r]
        ):
            first = rows[0]["time"] - rows[0]["step"] * rows[0].get("step_seconds", 0.0)
            yield {"name": stage.makes, "took": rows[-1]["time"] - first, "work": None, "ended": rows[-1]["time"]}


def _pictures(spec: Spec, root: str) -> list[dict[str, str]]:
    """Contact sheets as data URIs: real, reconstructed and generated images."""
    rows = [
        ("Generated", f"samples/{spec.sample.name}/images"),
        ("Real, of the validation split", "images/val"),
        ("Their reconstructions", "reconstructions/val/images"),
    ]
    sheets = []
    for title, name in rows:
        if storage.exists(storage.join(root, name, "manifest.json")):
            if not len(items := open_shards(storage.join(root, name))):
                continue
            places = np.linspace(0, len(items) - 1, min(SHOWN, len(items))).round().astype(int)
            sheets.append({"title": title, "uri": data_uri([items[int(index)]["image"] for index in places])})
    depths = storage.join(root, "reconstructions/val/depths.png")
    if storage.exists(depths):
        title = "Originals, then reconstructions and differences from 1, 2, … codes a position"
        sheets.append({"title": title, "uri": png_uri(storage.read_bytes(depths))})
    return [*sheets, *_charts_of_legibility(root), *_drawn_in_training(root), *_looked_at(root)]


def _charts_of_legibility(root: str) -> Iterator[dict[str, str]]:
    """The pictures of `dnd evaluate legibility`."""
    for file in storage.list_files(storage.join(root, "evaluation")):
        if file.uri.endswith(".svg"):
            data = base64.b64encode(storage.read_bytes(file.uri)).decode()
            title = "Real words against distinct words, over temperatures"
            yield {"title": title, "uri": f"data:image/svg+xml;base64,{data}"}


def _looked_at(root: str) -> Iterator[dict[str, str]]:
    """The first of the contact sheets that `dnd look` drew."""
    for file in islice(storage.list_files(storage.join(root, "look")), LOOKED):
        title = f"Kept and dropped: {file.uri.rpartition('/')[2].removesuffix('.png')}"
        yield {"title": title, "uri": png_uri(storage.read_bytes(file.uri))}


def _drawn_in_training(root: str) -> Iterator[dict[str, str]]:
    """The first, a middle and the last of the pictures that training drew (train.sample_every)."""
    files = storage.list_files(storage.join(root, "transformer", "samples"))
    drawn = sorted((int(found[1]), f.uri) for f in files if (found := re.search(r"/step_(\d+)\.png$", f.uri)))
    for step, uri in dict.fromkeys(drawn[n] for n in (0, len(drawn) // 2, len(drawn) - 1) if drawn):
        yield {"title": f"Drawn while training, step {step}", "uri": png_uri(storage.read_bytes(uri))}


def data_uri(images: Sequence[np.ndarray]) -> str:
    """A grid of images, each enlarged to at least 128 px by repeating pixels, as a PNG data URI."""
    factor = max(1, 128 // images[0].shape[0])
    enlarged = [image.repeat(factor, 0).repeat(factor, 1) for image in images]
    return png_uri(encode_photo(grid(enlarged, columns=8, gap=4)))


def png_uri(data: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(data).decode()
