"""Training with the real launcher: two ranks, killed, resumed, told to stop; its curve is the undisturbed one."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ranks
from code_sets import make_root, tiny_spec, write_codes
from safetensors.torch import load_file

from data_specs.metrics import read_rows
from tokenize_jobs.launch import TrainingFailed
from train.job import fit, train

RUN = "import sys; from code_sets import tiny_spec; from train.job import train; "
RUN += "train(tiny_spec(*sys.argv[3:]), sys.argv[1], ranks=int(sys.argv[2]))"
SLOW = ("train.checkpoint_every=4", "train.steps=4000")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DND_WANDB", "0")
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    yield


def rows(root: str) -> list[dict]:
    return read_rows(f"{root}/transformer/metrics.jsonl")


def curve(root: str) -> list[tuple[int, float, float | None]]:
    return [
        (row["step"], row.get("bits_per_code") or row["val_ema_bits_per_code"], row.get("grad_norm"))
        for row in rows(root)
    ]


def wait_for_step(root: str, step: int, patience: float = 120) -> None:
    deadline = time.monotonic() + patience
    while not any(row["step"] >= step for row in rows(root)):
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.02)


def kill_a_rank_at(root: str, step: int) -> None:
    wait_for_step(root, step)
    signal_a_rank(root, signal.SIGKILL)


def signal_a_rank(root: str, number: signal.Signals) -> None:
    ranks = [p for p in psutil.process_iter(["cmdline"]) if root in (p.info["cmdline"] or []) and "-m" in p.cmdline()]
    trainers = [p for p in ranks if p.cmdline()[p.cmdline().index("-m") + 1] == "train.loop"]
    trainers[-1].send_signal(number)


def test_two_ranks_killed_and_restarted_give_the_undisturbed_curve(tmp_path: Path) -> None:
    spec = tiny_spec("train.max_restarts=1", "train.checkpoint_every=4")
    whole, disturbed = make_root(tmp_path / "whole"), make_root(tmp_path / "disturbed")
    ranks.run(2, fit, spec, whole)
    killer = threading.Thread(target=kill_a_rank_at, args=(disturbed, 6))
    killer.start()
    train(spec, disturbed, ranks=2)
    killer.join()
    assert [step for step, *_ in curve(whole)] == sorted([*range(1, 21), 10, 20])
    assert curve(disturbed) == curve(whole)
    for name in ("transformer.safetensors", "ema.safetensors"):
        one, other = (load_file(Path(root, "transformer", name)) for root in (whole, disturbed))
        assert all((one[key] == other[key]).all() for key in one)
    losses = [row["bits_per_code"] for row in rows(whole) if "bits_per_code" in row]
    assert losses[0] == pytest.approx(4, abs=1e-3)  # 16 codes, output layers at zero
    assert losses[-1] < 3

    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    train(spec, whole, ranks=2)
    assert resource.getrusage(resource.RUSAGE_CHILDREN) == ended  # no rank was started
    with pytest.raises(ValueError, match=r"transformer.num_layers|learning_rate"):
        train(tiny_spec("train.learning_rate=0.1"), whole, ranks=2)


def test_told_to_stop_it_saves_and_goes_on_later(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", RUN, root, "1", *SLOW], stderr=subprocess.DEVNULL)
    wait_for_step(root, 5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 75
    last = rows(root)[-1]["step"]
    assert Path(root, f"transformer/step_{last:08d}").is_dir()
    longer = ("train.checkpoint_every=4", f"train.steps={last + 2}")  # the rate is constant: steps are free
    ranks.run(1, ranks.train_plainly, root, *longer)
    assert rows(root)[-1]["step"] == last + 2


def test_an_imported_transformer_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "transformer"
    folder.mkdir()
    (folder / "transformer.safetensors").write_bytes(b"theirs")
    train(tiny_spec(), str(tmp_path))
    assert fit(tiny_spec(), str(tmp_path))
    assert "imported, not trained; to fine-tune it, name it as train.init_from" in capsys.readouterr().out
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("transformer.safetensors", b"theirs")]


@pytest.mark.long
def test_a_rank_that_hangs_ends_the_job_in_time(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    options = ("train.steps=100000", "train.rank_timeout=5", "train.validate_every=100000")
    process = subprocess.Popen([sys.executable, "-c", RUN, root, "2", *options], stderr=subprocess.PIPE)
    try:
        wait_for_step(root, 5)
        signal_a_rank(root, signal.SIGSTOP)
        _, errors = process.communicate(timeout=90)
        assert process.returncode == 1 and b"training died 1 times" in errors
    finally:
        process.kill()
    assert not [p for p in psutil.process_iter(["cmdline"]) if root in (p.info["cmdline"] or [])]


def test_a_loss_that_is_not_finite_stops_at_its_step(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match=r"loss is not finite.* at step"):
        train(tiny_spec("train.learning_rate=1.0e+38", "train.max_restarts=3"), make_root(tmp_path))


def test_a_refused_training_binds_nobody_and_what_it_starts_from_may_go(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    ranks.run(1, ranks.refused_then_begun, root)
    assert [row["step"] for row in rows(root) if "bits_per_code" in row] == [1, 2, 3]


def test_a_validation_set_without_samples_is_trained_without(tmp_path: Path) -> None:
    write_codes(str(tmp_path / "codes/train"), [20])
    write_codes(str(tmp_path / "codes/val"), [0])
    overrides = ("train.steps=3", "train.validate_every=2", "train.zero_stage=0")
    ranks.run(1, ranks.train_with_two_loaders, str(tmp_path), *overrides)
    assert (tmp_path / "transformer/transformer.safetensors").is_file()
    assert rows(str(tmp_path)) and not any("val_bits_per_code" in row for row in rows(str(tmp_path)))
