"""All stages in order (`dnd run`), and the demo that needs nothing but this machine (`dnd demo`)."""

from __future__ import annotations

import json

import infra.stages  # noqa: F401
from data_specs import open_shards, storage
from data_specs.spec import Spec, load_spec
from data_specs.text import say
from infra.commands.stages import run_stage
from infra.report.report import write_report
from infra.verdict import verdict_lines
from pipeline.stages import registered
from pipeline.workers import Workers
from train.evaluation.summary import summarise


def run_all(spec: Spec, root: str, workers: Workers, ranks: int) -> None:
    """Run every stage, skipping those that are done, and say what came of it.

    Without a validation image nothing is reconstructed and scored.

    Raises:
        ValueError: before any work, where the tokenizer is to learn by LPIPS and its weights are not there.
    """
    from tokenize_jobs.networks import lpips_of

    if not storage.exists(storage.join(root, "tokenizer", "tokenizer.safetensors")):
        lpips_of(spec, root)
    took = dict[str, float]()
    for stage in registered():
        if stage.in_run and (stage.name != "reconstruct" or _has_validation(root)):
            use = workers if stage.computes else workers._replace(gpus=0.0)
            took[stage.name] = run_stage(stage, spec, root, Workers(num_workers=ranks) if stage.trains else use)
    summary = summarise(spec, root) if _has_validation(root) else None
    say(f"report: {write_report(root)}\n")
    for line in verdict_lines(summary, took, root) if summary else ["no validation images: nothing is scored"]:
        say(line)


def _has_validation(root: str) -> bool:
    return len(open_shards(storage.join(root, "codes/val"))) > 0


def demo_overrides(preset: str, pdfs: str | None, text: str | None) -> list[str]:
    """Return overrides that put the user's PDFs and passages in place of the typeset and docstring sources."""
    own = {"pdf": pdfs, "text": text}
    sources = list[dict[str, object]]()
    for source in load_spec(preset).render.sources:
        uri = own.get(source.document_kind) if source.synthetic else None
        mine: dict[str, object] = {"kind": source.document_kind, "uri": uri and storage.absolute(uri, is_source=True)}
        sources.append(mine if uri else source.model_dump(mode="json"))
    return [f"render.sources={json.dumps(sources)}"] if pdfs or text else []
