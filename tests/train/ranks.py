"""Ranks of training for the tests: processes of the fork server that has imported torch and DeepSpeed once."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import command
from code_sets import tiny_spec
from ray_cluster import free_ports


def start(world: int, work: Callable[..., None], *arguments: Any) -> list[BaseProcess]:
    """Starts `world` processes, each of which joins the others and calls work(*arguments)."""
    (port,) = free_ports(1)
    ranks = [
        command.PROCESSES.Process(target=_rank, args=(rank, world, port, dict(os.environ), work, arguments))
        for rank in range(world)
    ]
    for process in ranks:
        command.start(process)
    return ranks


def run(world: int, work: Callable[..., None], *arguments: Any) -> None:
    """`start`, and waits until all have ended well."""
    ranks = start(world, work, *arguments)
    for process in ranks:
        process.join(300)
    assert [process.exitcode for process in ranks] == [0] * world


def _rank(
    rank: int, world: int, port: int, environment: dict[str, str], work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    from datetime import timedelta

    import torch

    from tokenize_jobs.ranks import join_ranks

    os.environ |= environment  # the fork server has that of its start
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "DND_WANDB": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    join_ranks(timedelta(seconds=60))
    work(*arguments)
    sys.stdout.flush()
    os._exit(0)  # the work is done and on disk; gloo's threads sometimes abort at the interpreter's end


def train(root: str, *overrides: str) -> None:
    """Trains the tiny spec under a root; what the steps really took goes to ROOT/read_RANK.jsonl."""
    from train.job import fit
    from train.task import TransformerTask

    begin = TransformerTask.begin

    def recorded(task: TransformerTask, batches: Iterator[Any], first: int) -> Iterator[Any]:
        path = Path(root, f"read_{task.ranks.rank}_of_{task.ranks.world}.jsonl")
        with open(path, "a", encoding="utf-8") as file:
            for step, (codes, classes) in enumerate(batches, first):
                file.write(json.dumps([step, [fingerprint(sample) for sample in codes]]) + "\n")
                file.flush()
                yield codes, classes

    def begin_recording(self: TransformerTask, position: int, num_steps: int) -> None:
        begin(self, position, num_steps)
        assert self.batches is not None
        self.batches = recorded(self, self.batches, position // self.section.batch_size)  # type: ignore[assignment]

    TransformerTask.begin = begin_recording  # type: ignore[method-assign]
    fit(tiny_spec(*overrides), root)


def train_plainly(root: str, *overrides: str) -> None:
    """Trains the tiny spec under a root, which may lie on S3."""
    from train.job import fit

    fit(tiny_spec(*overrides), root)


def train_with_two_loaders(root: str, *overrides: str) -> None:
    """Trains the tiny spec; no loader is asked by the validation while a thread reads the training's batches ahead."""
    from train.job import fit
    from train.loader import Loader

    asked: dict[Loader, set[str]] = {}

    def recorded(name: str) -> Callable[..., Any]:
        method = getattr(Loader, name)

        def call(self: Loader, *arguments: Any) -> Any:
            asked.setdefault(self, set()).add(name)
            return method(self, *arguments)

        return call

    Loader.ahead = recorded("ahead")  # type: ignore[method-assign]
    Loader.in_order = recorded("in_order")  # type: ignore[method-assign]
    fit(tiny_spec(*overrides), root)
    assert sorted(map(sorted, asked.values())) == [["ahead"], ["in_order"]]


def refused_then_begun(root: str) -> None:
    """Refuses a spec, which leaves all under the root as it was; then trains from weights that go after the start."""
    import pytest
    from safetensors.torch import save_file

    from train.job import fit
    from train.model import DnDTransformer, config_of

    start = Path(root, "start")
    start.mkdir()
    save_file(DnDTransformer(config_of(tiny_spec())).state_dict(), start / "ema.safetensors")
    before = {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="does not divide into"):
        fit(tiny_spec("train.micro_batch_size=3", "train.shuffle_window=1", "train.learning_rate=5"), root)
    assert {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()} == before
    fit(tiny_spec("train.init_from=start", "train.steps=2"), root)
    shutil.rmtree(start)
    fit(tiny_spec("train.init_from=start", "train.steps=3"), root)


def fingerprint(codes: Any) -> int:
    """What a sample is recognised by: a checksum of its codes, in whatever type and shape."""
    return zlib.crc32(codes.astype("<u2").tobytes())


def consumed(root: str, world: int, steps: range) -> list[int]:
    """Sample numbers in the order of the run, as the ranks' training steps took them."""
    from data_specs import open_shards

    items = open_shards(f"{root}/codes/train")
    numbers = {fingerprint(items[number]["codes"]): number for number in range(len(items))}
    assert len(numbers) == len(items)
    taken: list[int] = []
    by_rank = [
        dict(json.loads(line) for line in Path(root, f"read_{rank}_of_{world}.jsonl").read_text().splitlines())
        for rank in range(world)
    ]
    for step in steps:
        taken += [numbers[print_] for rank in by_rank for print_ in rank[step]]
    return taken
