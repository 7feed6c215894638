"""Starts the training of the tokenizer on this machine: `dnd train-tokenizer SPEC --root ROOT --ranks N`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from data_specs import storage
from data_specs.scratch import scratch_folder
from data_specs.spec import Spec
from tokenize_jobs.fit import fit

REPOSITORY = Path(__file__).resolve().parent.parent


def train_tokenizer(spec: Spec, root: str, *, ranks: int = 1) -> None:
    """Trains to spec.tokenizer.steps on `ranks` processes, one of them this one; a finished run returns at once.

    Raises ValueError where the ranks ended without a tokenizer; they have said why.
    """
    if ranks == 1:
        fit(spec, root)
        return
    root = storage.absolute(root)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    with scratch_folder() as folder:
        spec_file = folder / "spec.yaml"
        spec_file.write_text(spec.to_yaml(), encoding="utf-8")
        command = [*launcher, "-m", "tokenize_jobs.fit", "--root", root, "--spec", str(spec_file)]
        code = subprocess.run(command, env=_environment(ranks), check=False).returncode
    if code:
        raise ValueError(f"{root}/tokenizer: training ended with code {code}; see the output above")


def _environment(ranks: int) -> dict[str, str]:
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if not torch.cuda.is_available():
        environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // ranks))
    return environment
