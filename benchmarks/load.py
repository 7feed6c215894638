"""Loading: batches of codes gathered over memory-mapped shards against webdataset's own reader of the same shards."""

from __future__ import annotations

import tempfile

import webdataset

from benchmarks.codes import random_codes
from benchmarks.rounds import Comparison, compare
from data_specs.spec import load_spec
from train.loader import Loader

SAMPLES, SHARDS, BATCH = 8192, 4, 256


def load(preset: str, rounds: int) -> Comparison:
    """Samples/s in batches of 256: ours in the order of training (random), webdataset's in the order of the tar."""
    spec = load_spec(preset)
    with tempfile.TemporaryDirectory(prefix="dnd-bench-") as root:
        random_codes(spec, root, SAMPLES, SHARDS)
        loader = Loader(spec.train.codes, root, spec)
        position = 0

        def ours() -> int:
            nonlocal position
            batches = 50 * SAMPLES // BATCH  # it is much faster, so it gets more to do
            for _ in range(batches):
                loader.batch(position, BATCH)
                position += BATCH
            return batches * BATCH

        return compare(ours, lambda: _webdataset(loader.sets[0].set.shard_uris), rounds)


def _webdataset(shards: list[str]) -> int:
    reader = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
    return sum(len(codes) for codes, _ in reader.decode().to_tuple("codes.npy", "cls").batched(BATCH))
