"""The transformer's training: the ZeRO stages against each other, a kill and a resume, and how fast large models go."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.accept.machine import peak, reset_peak
from benchmarks.accept.record import Row, Setting
from benchmarks.codes import random_batch, random_codes
from benchmarks.roofline import estimated_mfu
from benchmarks.rounds import seconds_of
from benchmarks.train import join_alone
from data_specs.metrics import read_rows
from data_specs.spec import Spec, load_spec
from tokenize_jobs.device import memory_of, room_in
from tokenize_jobs.ema import MovingAverage
from tokenize_jobs.ranks import Ranks
from train.engine import build_engine, compile_layers
from train.flops import utilisation
from train.memory import Kernels, fitting_micro_batch, predict
from train.model import config_of
from train.partition import master_weights
from train.task import TransformerTask

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

SMALL = [
    "shape={image_size: 32, grid: [4, 4], depth: 2, codebook_size: 64}",
    "tokenizer={steps: 1, encoder: convolutional, patch: 1, channel_multipliers: [1, 2, 2, 4]}",
    "transformer={num_layers: 4, num_heads: 4, width: 128, head_layers: [2, 3]}",
    "train={steps: 40, batch_size: 16, dtype: float32, learning_rate: 1.0e-3, checkpoint_every: 10, log_every: 1, "
    "validate_every: 20, validation_images: 16}",
]
STEPS = 6
MICRO_BATCHES = (8, 16, 32)
GOAL = 0.5  # of dense bfloat16, compiled, at the largest of these
PREDICTED = 0.05  # of the peak


# ---- that it is right ----------------------------------------------------------------------------------------------
def zero(setting: Setting) -> Iterator[Row]:
    """Yield rows comparing the losses of a few steps at every ZeRO stage with those of stage 0.

    The codes are the same; the stages run in float32 and in bfloat16.

    Stage 3, which is not compiled, is held against a stage 0 that is not either: compiled dropout draws otherwise.
    """
    join_alone()
    root = str(setting.folder)
    random_codes(load_spec("demo", SMALL), root, 256, 2)
    compiled, plain = (_losses(root, "train.zero_stage=0", *more) for more in ((), ("train.compile=false",)))
    for dtype, allowed in (("float32", 1e-4), ("bfloat16", 2e-2)):
        for stage, wanted in ((1, compiled), (2, compiled), (3, plain)):
            found = _losses(root, f"train.zero_stage={stage}", f"train.dtype={dtype}")
            apart = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
            what = f"stage {stage} in {dtype} against stage 0 in float32, {STEPS} steps"
            yield Row(part="zero", what=what, measured=apart, unit="nats", most=allowed)


def _losses(root: str, *overrides: str) -> list[float]:
    spec = load_spec("demo", [*SMALL, *overrides])
    task = TransformerTask(spec, root, Ranks())
    task.begin(0, STEPS)
    losses = [task.step(spec.train.learning_rate, math.inf).loss for _ in range(STEPS)]
    task.close()
    return losses


def resume(setting: Setting) -> Iterator[Row]:
    """Yield a row comparing a training that is killed after a checkpoint and restarted with an uninterrupted one."""
    straight, killed = (setting.folder / name for name in ("straight", "killed"))
    spec = load_spec("demo", SMALL)
    for root in (straight, killed):
        random_codes(spec, str(root), 256, 2)
        (root / "given.yaml").write_text(spec.to_yaml(), encoding="utf-8")
    assert _rank(straight).wait(300) == 0
    process = _rank(killed)
    while not (killed / "transformer/latest").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _rank(killed).wait(300) == 0
    apart = [abs(a - b) for a, b in zip(_bits(straight), _bits(killed), strict=True)]
    allowed = 1e-3 if setting.on_gpu else 0.0  # on CUDA sums of some kernels come in any order
    yield Row(part="resume", what="bits after a kill against none", measured=max(apart), unit="bits", most=allowed)


def _rank(root: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"DND_WANDB": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)  # of this process, which has joined itself
    words = [sys.executable, "-P", "-m", "train.loop", "--root", str(root), "--spec", str(root / "given.yaml")]
    return subprocess.Popen(words, env=environment)


def _bits(root: Path) -> list[float]:
    rows = read_rows(str(root / "transformer/metrics.jsonl"))
    return [row["bits_per_code"] for row in rows if "bits_per_code" in row]


# ---- how fast it is ------------------------------------------------------------------------------------------------
def speeds(setting: Setting) -> Iterator[Row]:
    """Yield rows on steps of XXL and XXXL at several micro batches, eager and compiled.

    The codes are random; measured are MFU, idle share and memory.
    """
    join_alone()
    for size in ("small",) if setting.tiny else ("XXL", "XXXL"):
        yield from _of_size(setting, size)


def _of_size(setting: Setting, size: str) -> Iterator[Row]:
    given = SMALL if setting.tiny else [f"transformer.size={size}", "train.steps=100"]
    given = [*given, "train.zero_stage=2", "train.compile=false", "train.batch_size=1024", "train.micro_batch_size=1"]
    spec = load_spec("demo" if setting.tiny else "imagenet_16x16x2", given)
    memory = memory_of(setting.device)
    engine = build_engine(spec, str(setting.folder), 1)
    ema = MovingAverage(master_weights(engine), 0.9999)
    for kernels in ("fused", "compiled"):
        if kernels == "compiled":
            compile_layers(engine.module, "aot_eager" if setting.tiny else "inductor")
        largest = fitting_micro_batch(spec, 1, memory)
        for micro in sorted({2} if setting.tiny else {*MICRO_BATCHES, largest or 1}):
            needed = predict(spec, 1, micro, kernels)["total"]
            what = f"{size}, {kernels}, micro batch {micro}"
            if needed > room_in(memory) and not setting.tiny:
                yield Row(part="train", what=what, measured=None, note=f"would take {needed / 1e9:.0f} GB")
                continue
            yield from _measured(setting, spec, engine, ema, micro, kernels, what)
    engine.destroy()


def _measured(
    setting: Setting, spec: Spec, engine: DeepSpeedEngine, ema: MovingAverage, micro: int, kernels: Kernels, what: str
) -> Iterator[Row]:
    config = config_of(spec)
    device = setting.device
    codes, classes = random_batch(config, micro, device)

    def step() -> None:
        engine.set_gradient_accumulation_boundary(True)
        engine.backward(engine(codes, classes, return_loss=True).mean())
        engine.step()
        ema.update(0)

    step()
    reset_peak(setting)
    seconds = seconds_of(step, device, 3)
    rate = micro / seconds
    estimated = estimated_mfu(config, micro, kernels, device)
    mfu = utilisation(config, rate, device)
    goal = GOAL if kernels == "compiled" and micro == max(MICRO_BATCHES) and setting.on_gpu else None
    if mfu is None:
        yield Row(part="train", what=what, measured=rate, unit="images/s")
    else:
        yield Row(part="train", what=f"{what}: MFU", measured=mfu, estimated=estimated, least=goal)
    if setting.on_gpu:
        idle = max(1 - _busy_seconds(step, device) / seconds, 0.0)
        yield Row(part="train", what=f"{what}: idle share", measured=idle, most=0.1)
        needed = predict(spec, 1, micro, kernels)["total"]
        yield from peak(setting, "train", f"{what}: peak", needed, 1 - PREDICTED, 1 + PREDICTED)


def _busy_seconds(step: Callable[[], None], device: torch.device) -> float:
    """Seconds of a step in which a kernel ran; the profiler itself slows only the host."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize(device)
    return float(sum(event.self_device_time_total for event in profiled.key_averages())) / 1e6
