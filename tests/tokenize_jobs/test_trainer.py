"""The trainer's own part, with a task that takes microseconds: guard, returns, stopping, telling, leases, the log."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from linear_task import LinearTask, spec_of, train_line
from safetensors.torch import load_file
from slurm_cluster import wait_for

from data_specs import lease
from data_specs.records import GuardState
from tokenize_jobs import checkpoint, stopping
from tokenize_jobs.checkpoint import read_finished
from tokenize_jobs.guard import SpikeDetector
from tokenize_jobs.trainer import Step, learning_rate

FORK = multiprocessing.get_context("fork")
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DND_WANDB", "0")
    monkeypatch.setattr(stopping, "_received", [])


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "line")


def rows(folder: str) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def weights(folder: str) -> list[float]:
    return [row["weight"] for row in rows(folder) if "weight" in row]


# ---- guard ---------------------------------------------------------------------------------------------------------
def test_steps_that_are_not_finite_are_left_out_and_the_log_stays_json(folder: str) -> None:
    assert train_line(folder, LinearTask(bad={5, 6, 17}))
    assert [row["skipped_steps"] for row in rows(folder) if "weight" in row] == [0] * 5 + [1] + [2] * 11 + [3] * 23
    assert weights(folder)[5] == weights(folder)[6] == weights(folder)[4]  # nothing moved
    assert all("never" not in row for row in rows(folder))
    assert load_file(Path(folder, "line.safetensors"))["w"].item() == pytest.approx(3, abs=0.01)


def test_too_many_go_back_to_the_checkpoint_and_on_behind_the_data(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    task = LinearTask(bad={22, 23, 24, 25, 26})
    assert train_line(folder, task)
    assert task.taken == [*range(27), *range(27, 47)]  # steps 20 to 40 were made on what follows
    assert [row["step"] for row in rows(folder) if "weight" in row] == list(range(1, 41))
    assert "5 steps in a row: back to step 20; data before sample 216 is left out" in capsys.readouterr().err


def test_checkpoints_come_by_time_as_well_as_by_steps(folder: str) -> None:
    often = ("train.checkpoint_minutes=1e-9", "train.checkpoint_every=1000", "train.keep_last=100")
    assert train_line(folder, LinearTask(), *often)
    assert checkpoint.list_steps(folder) == list(range(1, 41))


def test_a_training_that_only_goes_back_ends_with_one_line(folder: str) -> None:
    with pytest.raises(
        ValueError, match=r"the loss is not finite, or leaps, 5 steps in a row, at step 25, also after 3"
    ):
        train_line(folder, LinearTask(bad=set(range(20, 1000))))
    assert read_finished(folder) is None and not Path(folder, "line.safetensors").exists()
    whole = checkpoint.find_whole(folder, checkpoint.Ranks())
    assert whole is not None and whole[1].step == 20


def test_weights_that_are_not_finite_are_never_saved_and_gone_back_from(folder: str) -> None:
    """Broken between two steps whose losses are finite: the checkpoint shows it."""
    task = LinearTask(spoil_at=29)
    task.bad = set()
    assert train_line(folder, task, "train.keep_last=1", "train.spike=null")
    assert load_file(Path(folder, "line.safetensors"))["w"].isfinite().all()
    assert task.taken[:30] == list(range(30)) and task.taken[-1] > 40
    assert checkpoint.list_steps(folder) == [40]


def test_a_rate_that_ruins_the_weights_ends_without_a_model(folder: str) -> None:
    with pytest.raises(ValueError, match="not finite"):
        train_line(folder, LinearTask(), "train.learning_rate=1e30")
    assert not Path(folder, "done").exists() and not Path(folder, "line.safetensors").exists()
    with pytest.raises(ValueError, match="not finite"):
        train_line(folder + "2", LinearTask(spoil_at=0), "train.steps=1")
    assert not Path(folder + "2", "done").exists()


def test_a_spike_is_told_from_the_fall_of_the_first_steps() -> None:
    guard = SpikeDetector(6, 5)
    for step in range(60):
        assert 1 / (1 + step) <= guard.limit
        guard.accept(1 / (1 + step) + 0.01 * (-1) ** step)
    assert math.isfinite(guard.limit) and guard.limit < 1
    again = SpikeDetector(6, 5, GuardState.parse(guard.state().to_json(), "state"))
    assert again.limit == guard.limit


def skipped(losses: Iterable[float]) -> list[int]:
    """Which of the losses a guard leaves out."""
    guard, left_out = SpikeDetector(6, 5), list[int]()
    for step, loss in enumerate(losses):
        if loss <= guard.limit:
            guard.accept(loss)
        else:
            left_out.append(step)
            if guard.skip(loss):
                break
    return left_out


def test_rare_hard_data_is_learned_after_a_few_skips_and_a_leap_that_stays_is_not() -> None:
    quiet = [1 + 0.01 * (-1) ** step for step in range(800)]
    rare = [3.0 if step % 25 == 24 and step >= 100 else loss for step, loss in enumerate(quiet)]
    assert 0 < len(skipped(rare)) <= 8 and max(skipped(rare)) < 300  # of 28
    assert skipped([*quiet[:100], *[3.0] * 100]) == [100, 101, 102, 103, 104]
    assert skipped([*quiet[:100], 1e9, *quiet[:20], 3.0]) == [100, 121]  # one wild loss does not blind it
    assert skipped([*quiet[:100], math.inf, math.nan]) == [100, 101]


# ---- resume --------------------------------------------------------------------------------------------------------
def test_a_damaged_last_checkpoint_costs_the_steps_since_the_one_before(folder: str) -> None:
    whole = LinearTask()
    assert train_line(folder + "-whole", whole)
    assert train_line(folder, LinearTask(), "train.steps=30")
    rank = Path(folder, "step_00000030/rank_00000_of_00001.safetensors")
    rank.write_bytes(bytes(rank.stat().st_size))
    again = LinearTask()
    assert train_line(folder, again)
    assert again.taken == list(range(20, 40)) and weights(folder) == weights(folder + "-whole")


def test_the_rate_follows_the_schedule_and_its_extension() -> None:
    cosine = spec_of("train.schedule=cosine", "train.warmup_steps=10").train
    assert [learning_rate(cosine, step) for step in (0, 9, 10, 39)] == pytest.approx(
        [0.03, 0.3, 0.3, 0.00381], rel=1e-2
    )


# ---- stopping ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("begun", [True, False])
def test_told_to_stop_it_saves(folder: str, number: signal.Signals, begun: bool) -> None:
    """In mid-training, and before the first step, when there is nothing to save yet."""
    process = FORK.Process(target=train_for_ever, args=(folder, begun))
    process.start()
    up = Path(folder, "metrics.jsonl") if begun else Path(folder + ".up")
    wait_for(lambda: up.exists() and up.stat().st_size > 100, 60, "the process")
    os.kill(process.pid or 0, number)
    process.join(60)
    assert process.exitcode == 75
    assert checkpoint.list_steps(folder) == ([rows(folder)[-1]["step"]] if begun else [])
    assert lease.holder_of(folder) is None


def train_for_ever(folder: str, begun: bool) -> None:
    with stopping.noted():
        if not begun:
            Path(folder + ".up").write_text("." * 101)
            wait_for(stopping.stop_requested, 60, "the signal")
        finished = train_line(folder, LinearTask(), "train.steps=10000000", "train.checkpoint_every=1000000")
        os._exit(0 if finished else stopping.STOPPED)


def test_a_rank_that_hangs_ends_itself_and_the_next_start_goes_on(folder: str) -> None:
    process = FORK.Process(target=train_and_hang, args=(folder,))
    process.start()
    process.join(60)
    assert process.exitcode == 1
    task = LinearTask()
    assert train_line(folder, task)
    assert task.taken[0] in (10, 20)  # that of step 20 may still have been in the writing
    assert task.taken == list(range(task.taken[0], 40))


def train_and_hang(folder: str) -> None:
    """Trains until step 25, which never ends."""
    task = LinearTask()
    step = task.step

    def step_or_hang(rate: float, limit: float) -> Step:
        if task.batch == 25:
            threading.Event().wait()
        return step(rate, limit)

    task.step = step_or_hang  # type: ignore[method-assign]
    train_line(folder, task, "train.rank_timeout=3")


def test_the_entries_install_their_handlers_before_anything_slow() -> None:
    """Nothing of torch, DeepSpeed, NumPy or pydantic is loaded when they stand."""
    for module in ("tokenize_jobs.fit", "train.loop"):
        code = f"import sys, {module}; print(sorted({{'torch', 'deepspeed', 'numpy', 'pydantic'}} & set(sys.modules)))"
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert done.stdout == "[]\n", module


def test_a_second_training_on_one_folder_says_so_and_ends(folder: str) -> None:
    refused = pytest.raises(ValueError, match=r"`dnd train` writes here since .* \(host .*, process \d+\)")
    with lease.hold(folder, "dnd train"), refused:
        train_line(folder, LinearTask())
    assert train_line(folder, LinearTask())
    assert not Path(folder, "step_00000010").exists()  # only the last two stay


# ---- the average ---------------------------------------------------------------------------------------------------
def test_an_average_worse_than_the_weights_is_said_once_and_kept(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_line(folder, LinearTask(average=0.5))
    assert capsys.readouterr().err.count("the moving average validates worse than the weights") == 1
    done = read_finished(folder)
    assert done is not None and done.ema == 2.5 and done.weights < 0.01
    assert train_line(folder + "2", LinearTask(average=3.0))
    assert "moving average" not in capsys.readouterr().err
