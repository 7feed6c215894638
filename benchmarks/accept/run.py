"""The parts of the acceptance in their order, and one run of them."""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.accept import exact, machine, speed, training
from benchmarks.accept.record import HEAD, Acceptance, Part, Row, Setting, row_line
from data_specs.text import say
from tokenize_jobs.device import device_name, pick_device

PARTS: dict[str, Part] = {
    "machine": machine.machine,
    "golden": exact.golden,
    "graphs": exact.graphs,
    "agree": exact.agree,
    "zero": training.zero,
    "resume": training.resume,
    "train": training.speeds,
    "sample": speed.sampling,
    "encode": speed.encoding,
    "tokenizer": speed.tokenizer,
}


def accept(names: list[str], tiny: bool, reference: Path | None, out: Path | None = None) -> Acceptance:
    """Run parts (all, where none is named), and print each row; a part that fails is a row that misses.

    Args:
        out: folder of accept.json, which is written anew with each row: what was measured stays if the run is ended.

    Raises:
        ValueError: an unknown part, or no GPU without `tiny`.
    """
    device = pick_device()
    if unknown := [name for name in names if name not in PARTS]:
        raise ValueError(f"--part {unknown[0]}: there are {', '.join(PARTS)}")
    if device.type != "cuda" and not tiny:
        raise ValueError(
            "dnd accept measures GPUs, and torch sees none here: --tiny shows on a CPU that its parts work"
        )
    found = Acceptance(device=device_name(device), torch=torch.__version__, tiny=tiny, seconds={}, rows=[])
    if out:
        out.mkdir(parents=True, exist_ok=True)
    say(HEAD)
    with tempfile.TemporaryDirectory(prefix="dnd-accept-") as folder:
        for name in names or PARTS:
            started = time.monotonic()
            work = Path(folder, name)
            work.mkdir()
            say(f"{name} …")
            for row in _run(name, Setting(device, tiny, reference, work)):
                say(row_line(row))
                seconds = found.seconds | {name: round(time.monotonic() - started, 1)}
                found = found.model_copy(update={"rows": [*found.rows, row], "seconds": seconds})
                if out:
                    (out / "accept.json").write_bytes(found.to_json())
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return found


def _run(name: str, setting: Setting) -> Iterator[Row]:
    try:
        yield from PARTS[name](setting)
    except Exception as error:
        say(traceback.format_exc())
        line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        yield Row(part=name, what="ran to its end", measured=None, note=line, failed=True)
