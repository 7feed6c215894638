"""The processes of one training: how a process joins the others, and what they tell each other beside the training."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from tokenize_jobs.device import USABLE, multiplies_bfloat16, pick_device

T = TypeVar("T")
MEETING = timedelta(hours=2)  # machines come one by one, and fetch an image of gigabytes first


def join_ranks(timeout: timedelta) -> None:
    """Join the processes that a launcher or `srun` started; a process on its own is the only one.

    Args:
        timeout: of whatever the ranks do together, once all have met.

    Raises:
        ValueError: `srun` started several, and their addresses cannot be found.
    """
    if "RANK" not in os.environ:
        os.environ |= _ranks_of_srun() or _alone()
    device = pick_device() if torch.cuda.is_available() else None
    if device is not None:
        torch.cuda.set_device(device)
        torch.cuda.set_per_process_memory_fraction(USABLE, device)  # CUDA and NCCL find theirs; an end names its key
    store, rank, world = next(rendezvous("env://", timeout=max(MEETING, timeout)))
    store.set_timeout(timeout)
    backend = "gloo" if device is None else "nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout, device_id=device)


def _alone() -> dict[str, str]:
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    return variables | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


def _ranks_of_srun() -> dict[str, str] | None:
    """Return the variables that a launcher would have set, from those of a Slurm step of several tasks.

    Returns:
        The variables by name, None outside of such a step.
    """
    step = {name.removeprefix("SLURM_"): value for name, value in os.environ.items() if name.startswith("SLURM_")}
    if int(step.get("STEP_NUM_TASKS", "1")) == 1:
        return None
    variables = {"RANK": step["PROCID"], "LOCAL_RANK": step["LOCALID"], "WORLD_SIZE": step["STEP_NUM_TASKS"]}
    port = 10_000 + (int(step["JOB_ID"]) * 31 + int(step["STEP_ID"])) % 20_000  # steps that share a node differ in it
    return variables | {
        "MASTER_ADDR": os.environ.get("MASTER_ADDR") or _first_host(step["STEP_NODELIST"]),
        "MASTER_PORT": os.environ.get("MASTER_PORT", str(port)),
    }


def _first_host(nodes: str) -> str:
    try:
        command = ["scontrol", "show", "node", "--oneliner", nodes]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        return next(word.removeprefix("NodeAddr=") for word in shown.split() if word.startswith("NodeAddr="))
    except (OSError, subprocess.SubprocessError, StopIteration) as error:
        raise ValueError(
            f"srun started several processes on {nodes}, whose addresses Slurm does not tell ({error}): start "
            "infra/launch.sh once a node, or set MASTER_ADDR and MASTER_PORT"
        ) from None


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Ranks:
    """This process among those that train together, also where there is only one and nothing was joined."""

    def __init__(self) -> None:
        self.joined = dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if self.joined else (0, 1)
        self.control = dist.new_group(backend="gloo") if self.joined else None  # no GPU stands still for it

    def gather(self, value: T) -> list[T]:
        """Return what every rank gave, in the order of ranks; all call it."""
        if not self.joined:
            return [value]
        values: list[T | None] = [None] * self.world
        dist.all_gather_object(values, value, group=self.control)
        return values  # type: ignore[return-value]

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set on any rank; all call it."""
        if not self.joined:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.control)
        return [bool(flag) for flag in found]

    def on_first(self, call: Callable[[], T]) -> T | None:
        """Return what a call gives on rank 0, None on the others; its ValueError is raised on all, which call it."""
        found = None
        error = ""
        if self.rank == 0:
            try:
                found = call()
            except ValueError as raised:
                error = str(raised)
        if refusal := self.gather(error)[0]:
            raise ValueError(refusal)
        return found


def common_dtype(wanted: str | None, ranks: Ranks) -> str:
    """Return the arithmetic of a training, the same on all ranks, which call it.

    Args:
        wanted: what the spec says; None or "auto": bfloat16 if every rank multiplies it in hardware, else float32.
    """
    if wanted not in (None, "auto"):
        return wanted
    (lacking,) = ranks.any(not multiplies_bfloat16(pick_device()))
    return "float32" if lacking else "bfloat16"
