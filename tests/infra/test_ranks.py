"""How many processes train where nobody says."""

from __future__ import annotations

import pytest
import torch

from infra.commands.options import ranks_here


@pytest.mark.parametrize(
    ("gpus", "asked", "batches", "ranks"),
    [(0, None, (16,), 1), (8, None, (256,), 8), (6, None, (32, 16), 4), (8, 2, (256,), 2), (0, 2, (7,), 2)],
)
def test_one_a_gpu_as_far_as_the_batch_divides(
    monkeypatch: pytest.MonkeyPatch, gpus: int, asked: int | None, batches: tuple[int, ...], ranks: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert ranks_here(asked, *batches) == ranks
