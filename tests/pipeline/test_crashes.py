"""SIGKILL before and after every link, replace and unlink: the same command again ends in the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sets import contents, make_here, render_here, text_spec, write_texts

from data_specs.lease import hold
from data_specs.verify import clean_litter, find_shard_sets, verify_set
from pipeline.removal import remove
from pipeline.workers import Workers
from tokenize_jobs.job import TOKENIZE
from tokenize_jobs.networks import config_of
from tokenize_jobs.rqvae import RQVAE
from tokenize_jobs.weights import save_tokenizer

CALLS = ("link", "replace", "unlink")
FORK = multiprocessing.get_context("fork")
IDS = [f"doc{number}" for number in range(8)]
Step = Callable[[Path], object]  # finishes a root; the texts lie beside it


def render(root: Path) -> None:
    with hold(str(root / "images"), "dnd render", shared=True):
        render_here(text_spec(texts(root, "a", IDS)), root)


def extend(root: Path) -> None:
    with hold(str(root / "images"), "dnd render", shared=True):
        render_here(text_spec(texts(root, "b", ["new0", "new1"])), root, extend=True)


def take_over(root: Path) -> None:
    """Takes and gives back leases, of one writer and of one beside others; the first finds those of the dead."""
    for number in range(3):
        for shared in (False, True):
            with hold(str(root / "images"), f"dnd {number}", shared):
                pass


def texts(root: Path, name: str, ids: list[str]) -> Path:
    """The folder of the texts, with a file written once: a plan keeps its time of change."""
    folder = root.parent / "texts"
    if not (folder / f"{name}.jsonl").exists():
        write_texts(folder / f"{name}.jsonl", ids)
    return folder


def take_out(root: Path) -> None:
    list(remove(str(root), ["doc3", "doc4"], []))


def new_tokenizer(root: Path) -> None:
    """A tokenizer that has learned nothing: the same from equal seeds."""
    torch.manual_seed(0)
    save_tokenizer(RQVAE(config_of(text_spec(root))), root / "tokenizer")


def encode(root: Path) -> None:
    spec = text_spec(root, "tokenize.compute_batch=8")
    for output in TOKENIZE.outputs(spec, str(root), Workers()):
        make_here(output.plan, output.setup, "codes")


STEPS: dict[str, tuple[list[Step], Step]] = {
    "render": ([], render),
    "extend": ([render], extend),
    "remove": ([render], take_out),
    "leases": ([render], take_over),
    "tokenize": ([render, new_tokenizer], encode),
}


def _run_and_die(step: Step, root: Path, at: int, calls: Any) -> None:
    """Runs a step; dies as by SIGKILL at an even moment before the call of that number, at an odd one after it."""
    for name in CALLS:
        setattr(os, name, _counting(getattr(os, name), at, calls, str(root)))
    step(root)


def _counting(call: Callable[..., None], at: int, calls: Any, root: str) -> Callable[..., None]:
    def counted(*paths: Any, **options: Any) -> None:
        inside = any(str(path).startswith(root) for path in paths)
        if inside and 2 * calls.value == at:
            os.kill(os.getpid(), signal.SIGKILL)
        call(*paths, **options)
        if inside and 2 * calls.value + 1 == at:
            os.kill(os.getpid(), signal.SIGKILL)
        calls.value += inside

    return counted


def killed_at(step: Step, root: Path, at: int) -> int:
    """Calls that the step came to before it was killed at this moment, or ended (at -1: it is not killed)."""
    calls = FORK.Value("i", 0)
    child = FORK.Process(target=_run_and_die, args=(step, root, at, calls))
    child.start()
    child.join(120)
    assert child.exitcode == (0 if at < 0 or at >= 2 * calls.value + 2 else -signal.SIGKILL), at
    return int(calls.value)


def lasting(root: Path) -> dict[str, bytes]:
    """Bytes of the set but of receipts, which say when they were made, and of what nobody lists."""
    every = contents(root) | contents(root, "codes")
    files = {name: (name.rpartition("/")[2], data) for name, data in every.items()}
    return {
        name: data
        for name, (last, data) in files.items()
        if not (".part" in name or (last[:6].isdigit() and last.endswith(".json")))
    }


def every_moment(name: str, folder: Path, most: int) -> None:
    """Kills a step at so many moments, or at all there are, and has the next finish it."""
    before, step = STEPS[name]
    start, whole, root = folder / "start", folder / "whole", folder / "killed"
    start.mkdir()
    for one in before:
        one(start)
    shutil.copytree(start, whole)
    num_calls = killed_at(step, whole, -1)
    assert num_calls > 8
    stride = max(2 * num_calls // most, 1) | 1  # odd: before some calls, after others
    for at in range(0, 2 * num_calls, stride):
        shutil.copytree(start, root)
        killed_at(step, root, at)
        step(root)
        for set_uri in find_shard_sets(str(root)):
            clean_litter(set_uri)
            assert list(verify_set(set_uri)) == [], at
        assert lasting(root) == lasting(whole), at
        assert not list((root / "images/lease").glob("*.json")), at
        shutil.rmtree(root)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_killed_at_some_moments_is_finished_by_the_next(name: str, tmp_path: Path) -> None:
    every_moment(name, tmp_path, 4)


@pytest.mark.long
@pytest.mark.parametrize("name", STEPS)
def test_a_step_killed_at_every_moment_is_finished_by_the_next(name: str, tmp_path: Path) -> None:
    every_moment(name, tmp_path, 10**9)
