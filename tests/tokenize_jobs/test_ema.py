"""The moving average of either training: what it comes to, and that what it stands in for comes back."""

from __future__ import annotations

import pytest
import torch

from tokenize_jobs.ema import MovingAverage


def test_it_starts_short_and_grows_to_its_decay() -> None:
    weight = torch.zeros(3)
    ema = MovingAverage([weight], 0.3)
    wanted = 0.0
    for number, decay in enumerate((1 / 10, 2 / 11, 3 / 12, 0.3, 0.3)):
        weight.fill_(number + 1)
        ema.update(number)
        wanted = decay * wanted + (1 - decay) * (number + 1)
        assert ema.averages[0].tolist() == pytest.approx([wanted] * 3)


def test_what_it_stands_in_for_comes_back_also_from_a_block_that_fails() -> None:
    network = torch.nn.Linear(2, 2)
    ema = MovingAverage(network.parameters(), 0.9)
    averages = [average.clone() for average in ema.averages]
    torch.nn.init.ones_(network.weight)
    with pytest.raises(ZeroDivisionError), ema.in_place():
        assert torch.equal(network.weight, averages[0])
        raise ZeroDivisionError
    assert (network.weight == 1).all() and all(map(torch.equal, ema.averages, averages))
