"""Loading: batches of codes gathered over memory-mapped shards, against other ways to read the same codes.

- webdataset's own reader of the same shards: whole samples in the order of the tar, all members decoded, on one thread;
- the same with a lean decode: of each sample only the bytes of its codes and class are looked at;
- litdata's reader, where it is installed (`pip install litdata`): its own chunks of the same codes, shuffled, in this
  process, nothing verified;
- a plain memory map: one array of all codes, gathered at random; no shards, no views, no classes, nothing verified.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset

from benchmarks.codes import random_codes
from benchmarks.rounds import Comparison, compare
from data_specs.spec import load_spec
from train.loader import Loader

SAMPLES = 8192
SHARDS = 4
BATCH = 256
BATCHES = 50 * SAMPLES // BATCH  # of what is gathered, since it is much faster than what is unpacked
HEADER = 128  # bytes of a .npy file before its numbers


def load(preset: str, rounds: int) -> dict[str, Comparison]:
    """Measure the samples/s in batches of 256, ours in (random) training order, by what it is compared with."""
    spec = load_spec(preset)
    with tempfile.TemporaryDirectory(prefix="dnd-bench-") as root:
        random_codes(spec, root, SAMPLES, SHARDS)
        loader = Loader(spec.train.codes, root, spec)
        shards = loader.sets[0].set.shard_uris
        position = 0

        def ours() -> int:
            nonlocal position
            for _ in range(BATCHES):
                loader.batch(position, BATCH)
                position += BATCH
            return BATCHES * BATCH

        baselines = {
            "webdataset's reader": lambda: _webdataset(shards),
            "webdataset with a lean decode": lambda: _lean(shards),
            "a plain memory map": _memory_map(loader, Path(root, "codes.bin")),
        }
        if importlib.util.find_spec("litdata"):
            baselines["litdata's reader"] = _litdata(loader, str(Path(root, "litdata")))
        else:
            print("litdata is not installed: `pip install litdata` adds it to the baselines", file=sys.stderr)
        return {name: compare(ours, baseline, rounds) for name, baseline in baselines.items()}


def _webdataset(shards: list[str]) -> int:
    reader = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
    return sum(len(codes) for codes, _ in reader.decode().to_tuple("codes.npy", "cls").batched(BATCH))


def _lean(shards: list[str]) -> int:
    reader = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
    pairs = reader.to_tuple("codes.npy", "cls").map(lambda pair: (np.frombuffer(pair[0][HEADER:], "<u2"), int(pair[1])))
    return sum(len(codes) for codes, _ in pairs.batched(BATCH))


def _litdata(loader: Loader, folder: str) -> Callable[[], int]:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(folder, chunk_bytes="64MB")
    for number in range(SAMPLES):
        codes, classes = loader.in_order(number, 1)
        writer.add_item(number, {"codes": codes[0].astype(np.uint16), "cls": int(classes[0])})
    writer.done()
    writer.merge()
    reader = StreamingDataLoader(StreamingDataset(folder, shuffle=True), batch_size=BATCH)
    return lambda: sum(len(batch["codes"].long()) for batch in reader)


def _memory_map(loader: Loader, path: Path) -> Callable[[], int]:
    np.concatenate([loader.in_order(first, BATCH)[0] for first in range(0, SAMPLES, BATCH)]).astype("<u2").tofile(path)
    codes = np.memmap(path, "<u2", "r").reshape(SAMPLES, -1)
    rng = np.random.default_rng(0)

    def gather() -> int:
        for _ in range(BATCHES):
            codes[rng.integers(SAMPLES, size=BATCH)].astype(np.int64)
        return BATCHES * BATCH

    return gather
