"""Ours against a baseline, in turns: the median of the rounds' ratios."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import NamedTuple, TypeVar

import torch

from tokenize_jobs.device import pick_device

Work = Callable[[], int]  # does some work and returns how many items it made
Clock = Callable[[], float]
Made = TypeVar("Made")


class Comparison(NamedTuple):
    """Median rates in items/s, and the ratio ours / baseline of each round."""

    ours: float
    baseline: float
    ratios: list[float]

    @property
    def ratio(self) -> float:
        """Median ratio over the rounds."""
        return median(self.ratios)


def compare(
    ours: Work, baseline: Work, rounds: int, warm_up: bool = True, clock: Clock = time.perf_counter
) -> Comparison:
    """Run both once unmeasured, then `rounds` times in turns, alternating which of them goes first.

    Args:
        ours: what is measured.
        baseline: what it is compared with.
        rounds: how often each is measured.
        warm_up: whether both run once before.
        clock: seconds, by which rates are taken.
    """
    if warm_up:
        ours()
        baseline()
    rates = list[tuple[float, float]]()
    for number, of_round in enumerate(in_turns([ours, baseline], rounds, clock), 1):
        first, second = (made / seconds for made, seconds in of_round)
        rates.append((first, second))
        print(f"round {number}/{rounds}: {first:.4g} /s against {second:.4g} /s", file=sys.stderr, flush=True)
    return Comparison(median(r[0] for r in rates), median(r[1] for r in rates), [a / b for a, b in rates])


def in_turns(works: Sequence[Callable[[], Made]], rounds: int, clock: Clock) -> Iterator[list[tuple[Made, float]]]:
    """Yield for each round what each of some works made and its seconds; every other round begins with the last."""
    device = pick_device()
    for number in range(rounds):
        order = slice(None, None, -1 if number % 2 else 1)
        yield [_timed(work, device, clock) for work in works[order]][order]


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Measure the seconds of the fastest of some repeats after one unmeasured.

    The device's queue is empty before and after each.
    """
    work()
    return min(_timed(work, device)[1] for _ in range(repeats))


def _timed(work: Callable[[], Made], device: torch.device, clock: Clock = time.perf_counter) -> tuple[Made, float]:
    """Return what some work made, and its seconds, with a GPU's queue empty before and after."""
    _synchronise(device)
    started = clock()
    made = work()
    _synchronise(device)
    return made, clock() - started


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
