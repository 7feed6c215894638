"""All stages in order (`dnd run`), and the demo that needs nothing but this machine (`dnd demo`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_specs.spec import Spec, load_spec
from infra.reconstruct import reconstruct
from infra.report.report import write_report
from pipeline.job import render
from pipeline.workers import Workers
from tokenize_jobs.job import decode, tokenize
from tokenize_jobs.training import train_tokenizer
from train.evaluation.summary import summarise
from train.job import train
from train.sample_job import sample

SHOWN = 8  # images in the picture of the reconstructions


def run_all(spec: Spec, root: str, workers: Workers, ranks: int) -> str:
    """Runs every stage and returns the report's address; stages that are done are passed over."""
    render(spec, root, workers._replace(gpus=0.0))
    train_tokenizer(spec, root, ranks=ranks)
    tokenize(spec, root, workers)
    train(spec, root, ranks=ranks)
    sample(spec, root, workers)
    out = f"samples/{spec.sample.name}"
    decode(spec, root, f"{out}/codes", out, workers)
    reconstruct(spec, root, "val", workers, SHOWN)
    summarise(spec, root)
    return write_report(root)


def demo_overrides(preset: str, pdfs: Path | None, text: Path | None) -> list[str]:
    """Overrides that put the user's own PDFs and passages in the place of the typeset and docstring sources."""
    own = {"pdf": pdfs, "text": text}
    sources = list[dict[str, Any]]()
    for source in load_spec(preset).render.sources:
        path = own.get(source.document_kind) if source.synthetic else None
        mine = {"kind": source.document_kind, "uri": str(path.absolute())} if path else source.model_dump(mode="json")
        sources.append(mine)
    return [f"render.sources={json.dumps(sources)}"] if pdfs or text else []
