"""Ranks meet for longer than they may then be silent: machines of a cluster come one by one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray_cluster import free_ports

REPOSITORY = Path(__file__).resolve().parents[2]
JOIN = """
from datetime import timedelta
import torch.distributed as dist
from tokenize_jobs.ranks import join_ranks
print("here", flush=True)
join_ranks(timedelta(seconds=10))
print(dist.get_rank(), "of", dist.get_world_size(), flush=True)
"""


@pytest.mark.long
def test_a_rank_that_comes_after_the_timeout_is_waited_for() -> None:
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    ranks = []
    for rank in range(2):
        environment = os.environ | variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-c", JOIN], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
            )
        )
        assert ranks[rank].stdout and ranks[rank].stdout.readline() == "here\n"
        time.sleep(15 * (rank == 0))  # longer than the timeout of what comes after
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert said == ["0 of 2\n", "1 of 2\n"]
