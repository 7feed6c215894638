"""Benchmarks run and give a ratio; that their baselines compute the same thing is checked, not their speed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import dnd

from benchmarks.rounds import compare
from benchmarks.sample import plain_sample
from data_specs.spec import load_spec
from train.model import DnDTransformer, config_of
from train.sampling import sample_codes

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = REPOSITORY / "tests/tiny.yaml"


@pytest.mark.parametrize(
    "arguments", [["render"], ["render", "--kind", "text"], ["tokenize"], ["load"], ["train"], ["sample"]]
)
def test_a_benchmark_prints_a_ratio(arguments: list[str]) -> None:
    result = dnd("bench", *arguments, TINY, "--rounds", 1)
    assert result.returncode == 0, result.stderr[-2000:]
    ratio = result.stdout.splitlines()[-1].partition(": ")[2].split(" x ")[0]
    assert float(ratio) > 0


def test_the_plain_sampler_draws_from_the_same_distribution() -> None:
    torch.manual_seed(0)
    model = DnDTransformer(config_of(load_spec(TINY))).eval()
    for output in model.output:
        torch.nn.init.normal_(output.weight, std=2.0)  # nearly one code each: draws can be compared
    classes = torch.zeros(4, dtype=torch.int64)
    drawn, greedy = plain_sample(model, classes, 1.0), sample_codes(model, classes, temperature=0)
    assert (drawn[:, 0] == greedy[:, 0]).float().mean() > 0.5


def test_rounds_alternate_and_the_median_counts() -> None:
    calls: list[str] = []
    result = compare(lambda: calls.append("ours") or 2, lambda: calls.append("plain") or 1, 2)
    assert calls == ["ours", "plain", "ours", "plain", "plain", "ours"] and len(result.ratios) == 2


def test_without_a_checkout_the_command_says_what_to_do(tmp_path: Path) -> None:
    for floor in ("data_specs", "pipeline", "tokenize_jobs", "train", "infra"):  # what is installed
        (tmp_path / floor).symlink_to(REPOSITORY / floor)
    words = [sys.executable, "-P", "-c", "from infra.cli import main; main()", "bench", "load"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 1 and run.stderr.startswith(f"dnd: dnd bench needs a checkout, and {tmp_path} is none: ")
    assert run.stderr.count("\n") == 1
