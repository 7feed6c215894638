"""Peak memory of a rank's training steps, measured by the kernel (VmHWM), as a rank of the tests takes them."""

from __future__ import annotations

import ctypes
import gc
import json
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from code_sets import tiny_spec

from data_specs.spec import Spec
from tokenize_jobs.ema import MovingAverage
from tokenize_jobs.memory import LiveBytes
from train.engine import build_engine, clip_at_stage_0
from train.model import DnDTransformer, config_of
from train.partition import master_weights

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1


def resident(key: str) -> int:
    """VmRSS (now) or VmHWM (the peak) of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def give_back_at_once() -> None:
    """From here on freed memory goes back to the kernel, so that none that was kept is used again uncounted.

    Large tensors are then mapped each by itself; but glibc first looks in its heap, where the fork server left free
    chunks, more or less of them by machine and day, whose pages stay resident when a tensor in them goes. So those
    chunks are taken here, largest first until the heap has to grow, and never written to.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 25)
    for bits in range(24, 14, -1):  # 16 MB … 32 KB
        end = libc.sbrk(0)
        while libc.malloc(1 << bits) and libc.sbrk(0) == end:
            pass
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 16)
    libc.malloc_trim(0)


def begin() -> int:
    """Resident bytes from which on the peak is counted."""
    give_back_at_once()
    warm_up = torch.nn.Linear(64, 64)  # what the first backward of a process loads
    torch.optim.AdamW(warm_up.parameters(), fused=True)
    warm_up(torch.randn(64, 64)).sum().backward()
    gc.collect()
    give_back_at_once()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


BUCKET = 250_000  # elements: small beside the model, as DeepSpeed's 50 million are beside a real one
SMALL_BUCKETS = {
    "zero_optimization": {
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
        "stage3_prefetch_bucket_size": BUCKET,
        "stage3_param_persistence_threshold": 1000,
    }
}


def training_peak(root: str, *overrides: str) -> None:
    """Two steps and their moving average; each rank's peak goes to ROOT/peak_RANK."""
    give_back_at_once()
    train_some(tiny_spec("train.batch_size=2", overrides[-1]), root)  # what the first steps of a process load
    before = begin()
    train_some(tiny_spec(*overrides), root)
    Path(root, f"peak_{dist.get_rank()}").write_text(str(resident("VmHWM") - before))


def train_some(spec: Spec, root: str) -> None:
    """Two steps with all that is kept beside them: the second has the optimizer's state and gradients at once."""
    engine = build_engine(spec, root, dist.get_world_size(), SMALL_BUCKETS)
    ema = MovingAverage(master_weights(engine), 0.9)
    codes, classes = batch_of(spec, engine.train_micro_batch_size_per_gpu())
    for _ in range(2):
        engine.backward(engine(codes, classes, return_loss=True).mean())
        clip_at_stage_0(engine, spec.train.clip)
        engine.step()
        ema.update(0)
    engine.destroy()


def bytes_of_a_step(root: str, *overrides: str) -> None:
    """Tensors' bytes before the second step's forward, after it, and at most in the step: ROOT/bytes.json."""
    spec = tiny_spec(*overrides)
    with LiveBytes() as live:
        engine = build_engine(spec, root, 1, SMALL_BUCKETS)
        ema = MovingAverage(master_weights(engine), 0.9)
        codes, classes = batch_of(spec, engine.train_micro_batch_size_per_gpu())
        for _ in range(2):
            before = live.peak = live.now
            loss = engine(codes, classes, return_loss=True).mean()
            activations = live.now - before
            engine.backward(loss)
            del loss
            engine.step()
            ema.update(0)
    Path(root, "bytes.json").write_text(json.dumps({"before": before, "activations": activations, "peak": live.peak}))


def loss_peak(root: str, chunked: bool, *overrides: str) -> None:
    """Forward and backward of the model alone, its loss in chunks or over the logits of all heads at once."""
    spec = tiny_spec(*overrides)
    model = DnDTransformer(config_of(spec))
    codes, classes = batch_of(spec, spec.train.batch_size)
    before = begin()
    if chunked:
        loss = model(codes, classes, return_loss=True).mean()
    else:
        loss = F.cross_entropy(model(codes, classes).flatten(0, 2), codes.flatten())
    loss.backward()
    Path(root, "peak_0").write_text(str(resident("VmHWM") - before))


def batch_of(spec: Spec, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = spec.shape.grid
    codes = torch.randint(spec.shape.codebook_size, (images, rows * columns, spec.shape.depth))
    return codes, torch.zeros(images, dtype=torch.int64)
