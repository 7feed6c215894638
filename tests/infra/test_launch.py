"""infra/launch.sh without Slurm: a hostfile's hosts (all of them this machine), signals, exit codes, and its lint."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from code_sets import make_root, tiny_spec
from namesakes import write_namesakes
from ray_cluster import free_ports
from slurm_cluster import wait_for

from data_specs.metrics import read_rows

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = [path for suffix in ("*.sh", "*.sbatch") for path in sorted(REPOSITORY.glob(f"infra/**/{suffix}"))]
ENVIRONMENT = os.environ | {"DND_WANDB": "0", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def root_of(folder: Path, *overrides: str) -> str:
    root = make_root(folder)
    Path(root, "spec.yaml").write_text(tiny_spec("train.validate_every=10000", *overrides).to_yaml())
    return root


def hostfile(folder: Path, slots: int) -> dict[str, str]:
    """A file of two hosts, both of them this machine, as the launchers take it, and a free port."""
    folder.mkdir(exist_ok=True)
    (folder / "hosts").write_text(f"# two\n127.0.0.1 slots={slots}\nlocalhost slots={slots}\n")
    return {"HOSTFILE": str(folder / "hosts"), "MASTER_PORT": str(free_ports(1)[0])}


def launch(*arguments: str, folder: Path | str = "/", **variables: str) -> subprocess.Popen[str]:
    command = [str(REPOSITORY / "infra/launch.sh"), *arguments]
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1"} | variables
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=environment, cwd=folder, text=True, **pipes)  # type: ignore[call-overload]


def has_rows(root: str) -> bool:
    return len(read_rows(f"{root}/transformer/metrics.jsonl")) > 5


def test_one_host_told_to_stop_stops_both_which_save_and_end_with_75(tmp_path: Path) -> None:
    root = root_of(tmp_path / "root", "train.steps=100000", "train.checkpoint_every=100000")
    hosts = hostfile(tmp_path, slots=1)
    nodes = [launch("train", "--root", root, NODE_RANK=str(number), **hosts) for number in range(2)]
    try:
        wait_for(lambda: has_rows(root) or any(node.poll() is not None for node in nodes), 400, "steps")
        nodes[1].send_signal(signal.SIGTERM)
        said = [node.communicate(timeout=200)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [75, 75], said
    assert "node 1 of 2, 1 of 2 ranks on" in said[1]
    assert Path(root, "transformer/latest").exists()


def test_told_to_stop_while_its_rank_starts_it_ends_with_75(tmp_path: Path) -> None:
    alone = launch("train", "--root", root_of(tmp_path / "root", "train.steps=100000"))
    assert alone.stdout is not None and "node 0 of 1" in alone.stdout.readline()
    alone.send_signal(signal.SIGTERM)
    said, _ = alone.communicate(timeout=200)
    assert alone.returncode == 75 and not Path(tmp_path, "root/transformer/done").exists(), said


@pytest.mark.parametrize("stage", ["train", "train-tokenizer"])
def test_a_root_without_spec_ends_with_2(tmp_path: Path, stage: str) -> None:
    """And no process imports from the working directory."""
    imported = write_namesakes(tmp_path)
    alone = launch(*([stage] if stage != "train" else []), "--root", str(tmp_path / "nowhere"), folder=tmp_path)
    said, _ = alone.communicate(timeout=400)
    assert alone.returncode == 2 and "spec.yaml" in said and f"{stage}, node 0 of 1, 1 of 1 ranks" in said
    assert not imported.exists()


def test_what_cannot_train_is_refused_before_a_rank_starts(tmp_path: Path) -> None:
    cases = {
        "give train, train-tokenizer or check": (("render", "--root", str(tmp_path)), {}),
        "cores for 1024 ranks": (("train", "--root", str(tmp_path)), {"RANKS_PER_NODE": "1024"}),
        "1 cores for 2 ranks": (("train", "--root", str(tmp_path)), {"RANKS_PER_NODE": "2", "SLURM_CPUS_ON_NODE": "1"}),
        "Slurm gave 99 GPUs": (("train", "--root", str(tmp_path)), {"SLURM_GPUS_ON_NODE": "99"}),
    }
    refused = {said: launch(*arguments, **variables) for said, (arguments, variables) in cases.items()}
    for said, process in refused.items():
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 2 and said in output and "ranks on" not in output.replace(said, ""), output


def test_the_check_reduces_over_all_ranks_and_says_how_fast(tmp_path: Path) -> None:
    checked = launch("check", RANKS_PER_NODE="2", MASTER_PORT=str(free_ports(1)[0]))
    output, _ = checked.communicate(timeout=300)
    assert checked.returncode == 0 and "all-reduce of 64 MiB over 2 ranks by gloo: " in output, output
    lonely = launch("check", NODE_RANK="5", NUM_NODES="2", MASTER_ADDR="localhost")
    assert "node rank 5, but there are 2 nodes" in lonely.communicate(timeout=300)[0] and lonely.returncode == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("a slots=2\nb\n", "every line"), ("a slots=2\nb slots=1\n", "same number"), ("a slots=1\n", "does not name")],
)
def test_a_hostfile_that_does_not_do_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "hosts").write_text(text)
    refused = launch("--root", str(tmp_path), HOSTFILE=str(tmp_path / "hosts"))
    said, _ = refused.communicate(timeout=200)
    assert refused.returncode == 2 and complaint in said


def test_a_rank_that_dies_ends_the_others(tmp_path: Path) -> None:
    import psutil

    root = root_of(tmp_path / "root", "train.steps=100000")
    alone = launch("train", "--root", root, RANKS_PER_NODE="2", MASTER_PORT=str(free_ports(1)[0]), GRACE="2")
    try:
        wait_for(lambda: has_rows(root) or alone.poll() is not None, 400, "steps")
        ranks = [p for p in psutil.Process(alone.pid).children() if "train.loop" in " ".join(p.cmdline())]
        ranks[1].kill()
        said, _ = alone.communicate(timeout=200)
    finally:
        alone.kill()
    assert alone.returncode not in (0, 2, 75), said
    assert not any(rank.is_running() for rank in ranks)


@pytest.mark.parametrize("form", [["--root", "{}"], ["--root={}"]], ids=len)
def test_a_batch_job_finds_the_checkpoints_of_a_root_with_a_blank(tmp_path: Path, form: list[str]) -> None:
    """Its fourth start, stopped, goes back into the queue, since this one made a checkpoint (srun's place is taken)."""
    latest = tmp_path / "my run/transformer/latest"
    latest.parent.mkdir(parents=True)
    for name, line in {"srun": f"echo step_1 > '{latest}'; exit 75", "scontrol": 'echo "scontrol $*"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "3", "PATH": f"{tmp_path}:{ENVIRONMENT['PATH']}"}
    root = [word.format(tmp_path / "my run") for word in form]
    words = ["bash", str(REPOSITORY / "infra/slurm/train.sbatch"), "train", *root]
    done = subprocess.run(words, env=ENVIRONMENT | slurm, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (75, "scontrol requeue 7\n"), done.stderr


@pytest.mark.long
def test_deepspeeds_own_launcher_takes_the_hostfile_without_ssh(tmp_path: Path) -> None:
    root, hosts = root_of(tmp_path / "root"), hostfile(tmp_path, slots=1)
    command = ["deepspeed", "--hostfile", hosts["HOSTFILE"], "--no_ssh", "--master_addr", "127.0.0.1"]
    command += ["--master_port", hosts["MASTER_PORT"]]
    train = ["--module", "train.loop", "--root", root]
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY)}
    nodes = [subprocess.Popen([*command, "--node_rank", str(n), *train], env=environment) for n in range(2)]
    assert [node.wait(180) for node in nodes] == [0, 0]
    assert Path(root, "transformer/done").exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck_and_name_no_machine(script: Path) -> None:
    text = script.read_text()
    assert not re.search(r"/(home|work|users|scratch|lustre)/|--account|-A \w|\b\d{12}\b", text)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck not installed: apt-get install shellcheck")
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
