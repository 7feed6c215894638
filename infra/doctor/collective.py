"""A short all-reduce over all ranks of a training to come, and its speed: `infra/launch.sh check`.

Run it on the nodes and by the launcher that a long training will have: a fabric that is not there, or that NCCL does
not take, shows here in a minute as a low figure or an end with 1, and in a training as slow steps or a hang.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from data_specs.text import one_line, say

MEBIBYTES = 64
ROUNDS = 5
TIMEOUT = timedelta(minutes=5)


def main() -> None:
    """Run one rank of the check; rank 0 prints the result.

    It ends with 1 where a sum is wrong or a rank does not answer.
    """
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        seconds = measure(device)
    except (RuntimeError, ValueError) as error:
        say(f"check: {socket.gethostname()}, rank {os.environ['RANK']}: {one_line(error, 300)}")
        sys.stdout.flush()
        os._exit(1)  # the other ranks may wait for this one: no orderly end is possible
    if dist.get_rank() == 0:
        say(report(dist.get_world_size(), dist.get_backend(), seconds))
    dist.destroy_process_group()


def measure(device: torch.device) -> float:
    """Return the seconds of the fastest of a few all-reduces.

    Raises:
        RuntimeError: a rank did not answer, or a sum is wrong.
    """
    rank = dist.get_rank()
    world = dist.get_world_size()
    fastest = float("inf")
    for _ in range(ROUNDS):
        data = torch.full((MEBIBYTES << 18,), float(rank), device=device)
        dist.barrier()
        started = time.monotonic()
        dist.all_reduce(data)
        wrong = int((data != world * (world - 1) / 2).sum())  # waits for the device
        fastest = min(fastest, time.monotonic() - started)
        if wrong:
            raise RuntimeError(f"{wrong} sums of {len(data)} are wrong: take this node out")
    return fastest


def report(world: int, backend: str, seconds: float) -> str:
    """Return the result as one line.

    Its GB/s are what each rank sends and receives (NCCL's bus bandwidth: 2 · (n - 1) / n of the data).
    """
    speed = 2 * (world - 1) / world * (MEBIBYTES << 20) / seconds / 1e9
    what = f"all-reduce of {MEBIBYTES} MiB over {world} ranks by {backend}"
    return f"check: {what}: {seconds * 1e3:.1f} ms, {speed:.1f} GB/s"


if __name__ == "__main__":
    main()
