"""Commands load what they use: heavy packages stand where they are needed, so that `dnd --help` is there at once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    *("numpy", "PIL", "torch", "ray", "deepspeed", "datasets", "pyarrow", "pandas", "pymupdf", "pypdfium2", "scipy"),
    *("boto3", "botocore", "transformers", "wandb", "jinja2", "einops", "sklearn", "torch._dynamo", "gradio"),
    "onnxruntime",
}


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("infra.cli", set()),
        ("infra.status", {"numpy"}),
        ("data_specs.verify", {"numpy"}),
        ("tokenize_jobs.stopping", {"numpy"}),
        ("pipeline.removal", {"numpy"}),
        ("pipeline.runner", {"numpy", "ray"}),
        ("pipeline.render", {"numpy", "PIL", "pymupdf", "pypdfium2"}),
        ("train.loader", {"numpy", "PIL"}),
        ("tokenize_jobs.encode", {"numpy", "PIL", "torch", "einops"}),
        ("train.evaluation.rocr", set()),
    ],
)
def test_what_a_module_loads(module: str, allowed: set[str]) -> None:
    code = f"import json, sys, {module}; print(json.dumps(list(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert HEAVY & set(json.loads(run.stdout)) <= allowed
