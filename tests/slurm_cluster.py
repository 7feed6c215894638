"""A real Slurm on loopback for tests: munged, slurmctld and nodes with all cores (`apt-get install slurm-wlm munge`).

Each node says that it has every core of this machine, and binds tasks to the cores it gives them; and two GPUs, which
Slurm counts and nobody has.

Every cluster has its own ports, key and folder, and is up in about two seconds; only what was started here is ever
ended. By hand: `python tests/slurm_cluster.py` starts one and prints the SLURM_CONF to export; Ctrl-C stops it.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from ray_cluster import free_ports

BINARIES = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
CONF = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SchedulerType=sched/backfill
MpiDefault=none
ReturnToService=2
KillWait=30
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
"""
NODE = (
    "NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CoresPerSocket={cores} RealMemory=2000 "
    "Gres=gpu:2 State=UNKNOWN"
)


class Slurm(NamedTuple):
    """A running cluster: its folder, and the environment in which sbatch and srun find it."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """What a Slurm command says; raises AssertionError with its complaint where it fails."""
        done = subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """A job's fields, as `scontrol show job` names them."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def hurry(self, number: str) -> None:
        """Lets a requeued job start now instead of in two minutes. Waits until it is in the queue again."""
        wait_for(lambda: self.job(number)["JobState"] == "PENDING", 60, f"job {number} in the queue")
        self.run("scontrol", "update", f"JobId={number}", "StartTime=now")


def missing_binaries() -> list[str]:
    """What of Slurm is not installed."""
    return [name for name in BINARIES if shutil.which(name, path=_path()) is None]


def _path() -> str:
    """Where commands are found, the daemons as well."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def wait_for(what: object, seconds: float, name: str) -> None:
    """Waits until what() is true; raises TimeoutError saying what was waited for."""
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name}: not in {seconds} s")
        time.sleep(0.05)


@contextmanager
def slurm_cluster(num_nodes: int = 2) -> Iterator[Slurm]:
    """A cluster of so many nodes; its jobs and daemons end with the block, and with this process."""
    folder = Path(tempfile.mkdtemp(prefix="dnd-slurm-", dir="/tmp"))  # short: socket paths end at 107 characters
    slurm = Slurm(folder, os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()})
    children: list[subprocess.Popen[bytes]] = []
    try:
        _start(slurm, num_nodes, children)
        yield slurm
    finally:
        _end_jobs(slurm)
        for child in reversed(children):
            child.kill()
            child.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start(slurm: Slurm, num_nodes: int, children: list[subprocess.Popen[bytes]]) -> None:
    def daemon(*command: str) -> None:
        with (slurm.folder / f"{len(children)}-{command[0]}.out").open("wb") as out:
            child = ["setpriv", "--pdeathsig", "KILL", *command]  # ends with this process, however that ends
            children.append(subprocess.Popen(child, env=slurm.environment, stdout=out, stderr=out))

    folder = slurm.folder
    _configure(slurm, num_nodes)
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munge.seed"}
    options = [f"--{name}={folder / file}" for name, file in files.items()]
    daemon("munged", "--foreground", "--force", *options, f"--log-file={folder / 'munged.log'}")
    wait_for((folder / "munge.socket").exists, 30, "munged")
    daemon("slurmctld", "-D", "-f", str(folder / "slurm.conf"))
    for number in range(num_nodes):
        daemon("slurmd", "-D", "-f", str(folder / "slurm.conf"), "-N", f"n{number}")
    wait_for(lambda: _idle(slurm) == num_nodes, 60, f"Slurm's nodes, see {folder}")


def _configure(slurm: Slurm, num_nodes: int) -> None:
    folder, host = slurm.folder, socket.gethostname()
    folder.chmod(0o755)
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(secrets.token_bytes(64))
    (folder / "munge.key").chmod(0o400)
    control, *ports = free_ports(1 + num_nodes)
    same = {"host": host, "cores": os.cpu_count()}
    nodes = "\n".join(NODE.format(number=number, port=port, **same) for number, port in enumerate(ports))
    text = CONF.format(host=host, user=getpass.getuser(), folder=folder, control=control, nodes=nodes)
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")


def _idle(slurm: Slurm) -> int:
    command = ["sinfo", "--noheader", "--format=%D", "--states=idle"]
    done = subprocess.run(command, env=slurm.environment, capture_output=True, text=True, timeout=60, check=False)
    return int(done.stdout.split()[0]) if done.returncode == 0 and done.stdout.split() else 0


def _end_jobs(slurm: Slurm) -> None:
    """Kills what jobs have left: their processes know the cluster by SLURM_CONF, the daemons are ours to end."""
    conf = str(slurm.folder / "slurm.conf")
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environment = process.environ()
            of_job = "SLURM_JOB_ID" in environment or process.name() == "slurmstepd"
            if of_job and environment.get("SLURM_CONF") == conf and process.pid != os.getpid():
                process.kill()


if __name__ == "__main__":
    with slurm_cluster() as running:
        print(f"export SLURM_CONF={running.folder / 'slurm.conf'}", flush=True)
        signal.sigwait([signal.SIGINT, signal.SIGTERM])
