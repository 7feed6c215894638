"""infra/slurm/train.sbatch under a real Slurm: whole nodes; two nodes stopped twice end as if undisturbed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import image_sets
import pytest
import ranks
from code_sets import make_root, tiny_spec
from slurm_cluster import Slurm, missing_binaries, slurm_cluster, wait_for

from data_specs.metrics import read_rows
from data_specs.root import read_spec
from train.job import fit

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 150
FIGURES = ("step", "position", "bits_per_code_by_depth", "grad_norm", "val_ema_bits_per_code_by_depth")


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """Four nodes; skips where Slurm is not installed."""
    if missing := missing_binaries():
        pytest.skip(f"{', '.join(missing)} not installed: apt-get install --no-install-recommends slurm-wlm munge")
    with slurm_cluster(4) as cluster:
        yield cluster


def root_of(folder: Path, *overrides: str) -> str:
    root = make_root(folder)
    rare = ("train.checkpoint_every=100000", "train.validate_every=50")  # only being stopped makes a checkpoint
    Path(root, "spec.yaml").write_text(tiny_spec(f"train.steps={STEPS}", *rare, *overrides).to_yaml())
    return root


def submit(slurm: Slurm, root: str, *options: str, stage: str = "train", **variables: str) -> str:
    """Number of the job, as a user with the environment's Python on PATH submits it; four share this machine."""
    variables = {"DND_WANDB": "0", "OMP_NUM_THREADS": "1"} | variables
    variables["PATH"] = f"{Path(sys.executable).parent}:{slurm.environment['PATH']}"
    mine = slurm._replace(environment=slurm.environment | variables)
    where = ("--parsable", "--nodes=2", *options, f"--output={root}/log")
    return mine.run("sbatch", *where, "infra/slurm/train.sbatch", stage, "--root", root, cwd=REPOSITORY)


def ended(slurm: Slurm, job: str) -> dict[str, str]:
    wait_for(lambda: slurm.job(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"), 400, f"job {job}'s end")
    return slurm.job(job)


def rows(root: str) -> list[dict[str, Any]]:
    return read_rows(f"{root}/transformer/metrics.jsonl")


def figures(root: str) -> list[list[Any]]:
    return [[row.get(name) for name in FIGURES] for row in rows(root)]


def after_rows(slurm: Slurm, job: str, root: str, number: int) -> None:
    wait_for(lambda: len(rows(root)) >= number or slurm.job(job)["JobState"] == "FAILED", 400, f"{number} rows")


def test_srun_alone_starts_ranks_of_one_training(slurm: Slurm, tmp_path: Path) -> None:
    """Two tasks on two nodes without a launcher: each takes its half of every batch."""
    root = make_root(tmp_path)
    Path(root, "spec.yaml").write_text(tiny_spec("train.steps=3").to_yaml())
    variables = {"DND_WANDB": "0", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY)}
    command = ["srun", "--nodes=2", "--ntasks=2", sys.executable, "-P", "-m", "train.loop", "--root", root]
    done = subprocess.run(command, env=slurm.environment | variables, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(root) if "rate" in row] == [1, 2, 3]
    assert len(list(Path(root, "transformer/step_00000003").glob("rank_*_of_00002.safetensors"))) == 2


def test_stopped_by_requeue_it_ends_as_the_undisturbed_run(slurm: Slurm, tmp_path: Path) -> None:
    """One rank that a preemption stops; USR1 stops a tokenizer, and both stop two nodes, in the long forms."""
    whole, cut = root_of(tmp_path / "whole"), root_of(tmp_path / "cut")
    job = submit(slurm, cut, "--nodes=1")
    after_rows(slurm, job, cut, STEPS // 5)
    slurm.run("scontrol", "requeue", job)
    slurm.hurry(job)
    assert 0 < saved_step(cut) < STEPS
    ranks.run(1, fit, read_spec(None, whole), whole)
    end = ended(slurm, job)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), Path(cut, "log").read_text()[-4000:]
    same_end(whole, cut)


def same_end(whole: str, cut: str) -> None:
    """Both runs logged the same figures and ended in the same weights, to the last bit."""
    assert len(figures(whole)) == STEPS + 3 and figures(cut) == figures(whole)
    for name in ("transformer.safetensors", "ema.safetensors"):
        assert Path(cut, "transformer", name).read_bytes() == Path(whole, "transformer", name).read_bytes()


@pytest.mark.long
def test_stopped_by_usr1_and_by_requeue_it_ends_as_the_undisturbed_run(slurm: Slurm, tmp_path: Path) -> None:
    whole, cut = root_of(tmp_path / "whole"), root_of(tmp_path / "cut")
    jobs = submit(slurm, whole), submit(slurm, cut)
    after_rows(slurm, jobs[1], cut, STEPS // 5)
    slurm.run("scancel", "--batch", "--signal=USR1", jobs[1])  # as Slurm does before the time limit
    slurm.hurry(jobs[1])
    first = saved_step(cut)
    after_rows(slurm, jobs[1], cut, first + STEPS // 5)
    slurm.run("scontrol", "requeue", jobs[1])  # as a preemption does
    slurm.hurry(jobs[1])
    second = saved_step(cut)
    assert 0 < first < second < STEPS
    for job, root, restarts in zip(jobs, (whole, cut), ("0", "2"), strict=True):
        end = ended(slurm, job)
        assert (end["JobState"], end["Restarts"]) == ("COMPLETED", restarts), Path(root, "log").read_text()[-4000:]
    same_end(whole, cut)


def saved_step(root: str) -> int:
    """The step of the latest checkpoint."""
    return int(Path(root, "transformer/latest").read_text().strip().removeprefix("step_"))


@pytest.mark.long
def test_the_tokenizer_is_stopped_and_goes_on_by_the_same_script(slurm: Slurm, tmp_path: Path) -> None:
    root = image_sets.make_root(tmp_path / "root")
    rare = ("tokenizer.steps=80", "tokenizer.checkpoint_every=100000")
    Path(root, "spec.yaml").write_text(image_sets.tiny_spec(*rare).to_yaml())
    job, metrics = submit(slurm, root, "--nodes=1", stage="train-tokenizer"), Path(root, "tokenizer/metrics.jsonl")
    wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 5, 400, "steps of the tokenizer")
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    slurm.hurry(job)
    end = ended(slurm, job)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), Path(root, "log").read_text()[-4000:]
    assert Path(root, "tokenizer/tokenizer.safetensors").exists()
    assert "saved; back into the queue" in Path(root, "log").read_text()


def test_what_no_restart_mends_ends_the_job(slurm: Slurm, tmp_path: Path) -> None:
    root = root_of(tmp_path / "root", "train.batch_size=7")  # does not divide among two ranks
    end = ended(slurm, submit(slurm, root, "--nodes=1", RANKS_PER_NODE="2"))
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("FAILED", "2:0", "0")
    log = Path(root, "log").read_text()
    assert "use a number of ranks that divides 7" in log and "attempt 2" not in log


def test_a_job_has_all_cores_of_its_nodes(slurm: Slurm, tmp_path: Path) -> None:
    cores = os.cpu_count() or 1
    job = submit(slurm, str(tmp_path), "--nodes=1", stage="check", RANKS_PER_NODE=str(cores))
    assert ended(slurm, job)["JobState"] == "COMPLETED", (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    assert f"{cores} of {cores} ranks on {cores} cores" in log and f"over {cores} ranks by gloo" in log
    shared = ("--nodes=1", "--oversubscribe", "--gpus-per-node=1", "--cpus-per-gpu=1", "--mem=500")
    ended(slurm, submit(slurm, str(tmp_path), *shared, stage="check", RANKS_PER_NODE="1"))
    assert "Slurm gave 1 GPUs, torch sees 0" in (tmp_path / "log").read_text()  # this Slurm's GPUs are not there


def test_a_run_that_makes_no_checkpoint_is_not_requeued_for_ever(slurm: Slurm, tmp_path: Path) -> None:
    root = root_of(tmp_path / "root", "train.steps=100000")
    job = submit(slurm, root, "--nodes=1", SLURM_RESTART_COUNT="3")
    wait_for(lambda: Path(root, "log").exists() and "launch.sh: train" in Path(root, "log").read_text(), 200, "ranks")
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    assert ended(slurm, job)["JobState"] == "FAILED"
    assert "no new checkpoint in this run" in Path(root, "log").read_text()


@pytest.mark.long
def test_a_cancelled_job_saves_and_is_not_requeued(slurm: Slurm, tmp_path: Path) -> None:
    root = root_of(tmp_path / "root", "train.steps=100000")
    job = submit(slurm, root)
    after_rows(slurm, job, root, 5)
    slurm.run("scancel", job)
    assert ended(slurm, job)["JobState"] == "CANCELLED"
    wait_for(lambda: Path(root, "transformer/latest").exists(), 30, "the checkpoint")
    assert saved_step(root) >= 5 and "back into the queue" not in Path(root, "log").read_text()


@pytest.mark.long
def test_a_storm_of_preemptions_ends_as_the_undisturbed_run(slurm: Slurm, tmp_path: Path) -> None:
    moments = random.Random(1)
    whole, cut = root_of(tmp_path / "whole", "train.steps=600"), root_of(tmp_path / "cut", "train.steps=600")
    jobs = submit(slurm, whole), submit(slurm, cut)
    stops = 0
    while ended_by(slurm, jobs[1], moments.uniform(1, 15)) != "COMPLETED" and stops < 8:  # some before the first step
        slurm.run("scontrol", "requeue", jobs[1])
        slurm.hurry(jobs[1])
        stops += 1
    assert stops > 2 and ended(slurm, jobs[1])["JobState"] == ended(slurm, jobs[0])["JobState"] == "COMPLETED"
    assert figures(cut) == figures(whole)


def ended_by(slurm: Slurm, job: str, seconds: float) -> str:
    """The state of a job so many seconds after it began to run, or of its end."""
    wait_for(lambda: slurm.job(job)["JobState"] != "PENDING", 60, f"job {job}'s start")
    with suppress(TimeoutError):
        wait_for(lambda: slurm.job(job)["JobState"] != "RUNNING", seconds, f"job {job}'s end")
    return slurm.job(job)["JobState"]
