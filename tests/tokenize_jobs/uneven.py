"""A codebook that learns on ranks whose shares of a batch differ, as a rank of the tests takes its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from tokenize_jobs.quantizer import ResidualQuantizer


def learn(folder: Path, options: dict[str, Any]) -> None:
    """Three steps on shares of 3 and 1, 4 and 0, 0 and 4 images; each rank's state goes to a file of the folder."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = ResidualQuantizer(num_rows=24, channels=4, depth=2, **options).train()
    batches = load_file(folder / "batches.safetensors")
    for step in range(3):
        torch.manual_seed(step if rank == 0 else 1000)  # only rank 0's generator matters
        whole = batches[f"step{step}"]
        shares = [len(whole)] if world == 1 else [(3, 1), (4, 0), (0, 4)][step]
        model(whole.split(list(shares))[rank])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, folder / f"world{world}rank{rank}.safetensors")
