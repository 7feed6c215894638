"""The rehearsal of a cluster's life on this machine: `make rehearsal` (docs/rehearsal.md).

Three Ray nodes, a Slurm of two and a Ceph S3 server, all real and all ours: once with a node killed in rendering and
another in tokenizing and the training preempted by `scontrol requeue`, once undisturbed. Then both must be equal.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ray_cluster import Cluster, ray_cluster
from s3_server import Server, aws_environment, ceph_server, missing_binaries
from slurm_cluster import Slurm, slurm_cluster, wait_for
from slurm_cluster import missing_binaries as missing_slurm

from data_specs import s3_client, storage
from data_specs.metrics import read_rows

REPOSITORY = Path(__file__).resolve().parent.parent
SPEC, BIN = "tests/rehearsal.yaml", Path(sys.executable).parent
PASSAGES, LIMIT = 240, 900  # seconds for a step: a busy machine takes ten times as long as an idle one
SAME_BYTES = (
    *(f"{made}/{split}/manifest.json" for made in ("images", "codes") for split in ("train", "val")),
    *("tokenizer/tokenizer.safetensors", "transformer/transformer.safetensors", "transformer/ema.safetensors"),
    *("samples/default/codes/manifest.json", "samples/default/images/manifest.json"),
    *("reconstructions/val/images/manifest.json", "evaluation/gfid.json"),
)
LOSSES = ("step", "position", "bits_per_code_by_depth", "grad_norm", "val_ema_bits_per_code_by_depth")


class Place(NamedTuple):
    """Where a run happens: its root, and the folder of its logs."""

    root: str
    folder: Path


def main() -> None:
    """Runs both, compares them, and leaves log and report in --out; ends with 1 where anything is not as promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs/rehearsal")
    out: Path = parser.parse_args().out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=_handlers(out / "log"))
    LOG.setLevel(logging.INFO)
    if missing := [*missing_binaries(), *missing_slurm()]:
        sys.exit(
            f"rehearsal: {', '.join(missing)} not installed: apt-get install --no-install-recommends "
            "radosgw ceph-mon ceph-osd slurm-wlm munge"
        )
    data = papers()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and ends what it started
    with ExitStack() as stack:
        server = stack.enter_context(step("a Ceph S3 server", ceph_server()))
        os.environ |= aws_environment(server, server.owner) | {"OMP_NUM_THREADS": "1", "DND_WANDB": "0"}
        os.environ["PATH"] = f"{BIN}:{os.environ['PATH']}"
        upload(data, server)
        slurm = stack.enter_context(step("a Slurm of two nodes", slurm_cluster(2)))
        places = [Place(f"s3://runs/{name}", out / name) for name in ("disturbed", "undisturbed")]
        disturbed(places[0], slurm)
        undisturbed(places[1])
        equal = compare(*(place.root for place in places))
        (out / "index.html").write_bytes(storage.read_bytes(f"{places[0].root}/report/index.html"))
    say(f"{'all equal' if equal else 'NOT EQUAL'}; the report: {out}/index.html")
    sys.exit(0 if equal else 1)


# ---- what is there before ------------------------------------------------------------------------------------------
def papers() -> Path:
    """The folder of the shared test data: arXiv's miniature and passages."""
    shared = Path(os.environ.get("DND_SHARED", REPOSITORY.parent / "shared"))
    if not (shared / "data/arxiv_bulk").is_dir():
        sys.exit(f"rehearsal: shared test data is not at {shared}; set DND_SHARED")
    return shared / "data"


def upload(data: Path, server: Server) -> None:
    """The bulk bucket of somebody else, where the requester pays, and ours with passages; makes that of the runs."""
    for bucket in ("texts", "runs"):
        s3_client.client().create_bucket(Bucket=bucket)
    lines = (data / "text/passages.jsonl").read_text(encoding="utf-8").split("\n")[:PASSAGES]
    storage.write_text("s3://texts/passages.jsonl", "\n".join(lines) + "\n")
    os.environ |= aws_environment(server, server.other)
    client, files = s3_client.client(), sorted((data / "arxiv_bulk/pdf").iterdir())
    client.create_bucket(Bucket="arxiv", ACL="public-read")
    for path in files:
        client.upload_file(str(path), "arxiv", f"pdf/{path.name}", ExtraArgs={"ACL": "public-read"})
    client.put_bucket_request_payment(Bucket="arxiv", RequestPaymentConfiguration={"Payer": "Requester"})
    os.environ |= aws_environment(server, server.owner)
    say(f"uploaded {len(files)} files to s3://arxiv, where the requester pays, and {len(lines)} passages to s3://texts")


# ---- the two runs --------------------------------------------------------------------------------------------------
def disturbed(place: Place, slurm: Slurm) -> None:
    """From papers to the report on the clusters; a node dies in each Ray job, and the training is preempted."""
    begin(place)
    with step("a Ray cluster of three nodes, with a token", ray_cluster(3, 1, dict(os.environ))) as ray:
        ray.gather(3)
        submit(place, ray, "render", "images/train")
        command(place, "train-tokenizer", SPEC, "--ranks", "2")
        submit(place, ray, "tokenize", "codes/train")
    train(place, slurm)
    train_again(place, slurm)
    sample_by_an_array(place, slurm)
    command(place, "run", SPEC)  # what is left: pictures, reconstructions, the evaluation's summary
    score(place)


def undisturbed(place: Place) -> None:
    """The same on this machine alone, by the one command of a laptop."""
    begin(place)
    command(place, "run", SPEC, "--ranks", "2")
    score(place)


def begin(place: Place) -> None:
    """An empty folder for a run's logs, and a cache of its own."""
    say(f"---- {place.root} ----")
    place.folder.mkdir(exist_ok=True)
    os.environ["DND_CACHE"] = str(place.folder / "cache")


def score(place: Place) -> None:
    """Scores samples against the training set, writes the report, and re-reads every byte of every shard set."""
    images = f"{place.root}/samples/default/images"
    command(place, "evaluate", "images", images, "--reference", f"{place.root}/images/train", "--kind", "training")
    command(place, "report")
    command(place, "verify")


def submit(place: Place, ray: Cluster, verb: str, set_name: str) -> None:
    """`ray job submit -- dnd VERB`, in which a node dies."""
    arguments = ("dnd", verb, SPEC, "--root", place.root)
    with ThreadPoolExecutor(1) as pool, timed(f"ray job submit -- dnd {verb}"):
        job = pool.submit(ray.submit, *arguments, cwd=REPOSITORY, timeout=LIMIT)
        kill_a_node(place, ray, set_name, job.done)
        done = job.result()
    if done.returncode:
        for path in ray.folder.glob("*/session_*/logs/*worker*"):
            (place.folder / path.name).write_bytes(path.read_bytes())
    finish(place, verb, done)


def kill_a_node(place: Place, ray: Cluster, set_name: str, over: Callable[[], bool]) -> None:
    """Kills the youngest node when two units have their receipts, and puts a new one in its place."""
    wait_for(lambda: over() or committed(place.root, set_name) >= 2, LIMIT, f"units of {set_name}")
    before, planned = committed(place.root, set_name), planned_units(place.root, set_name)
    ray.kill_node(len(ray.nodes) - 1)
    assert 0 < before < planned and not over(), f"killed too late: {before} of {planned} units were done"
    say(f"killed a node: {before} of {planned} units of {set_name} were done")
    ray.add_node(1)


def committed(root: str, set_name: str) -> int:
    """Receipts of a shard set: NNNNNN.json."""
    names = (file.uri.rpartition("/")[2] for file in storage.list_files(f"{root}/{set_name}"))
    return sum(name.removesuffix(".json").isdigit() for name in names)


def planned_units(root: str, set_name: str) -> int:
    """Units of a shard set's plan: its lines but the header."""
    return sum(1 for _ in storage.open_stream(f"{root}/{set_name}/plan.jsonl")) - 1


def train(place: Place, slurm: Slurm) -> None:
    """infra/slurm/train.sbatch on two nodes with all their cores, requeued behind its first checkpoint."""
    slurm = slurm._replace(environment=slurm.environment | {"DND_CACHE": os.environ["DND_CACHE"]})
    script = ("infra/slurm/train.sbatch", "train", "--root", place.root)
    with timed("sbatch infra/slurm/train.sbatch"):
        options = ("--parsable", "--nodes=2", f"--output={place.folder}/train.log")
        job = slurm.run("sbatch", *options, *script, cwd=REPOSITORY)
        preempt(place, slurm, job)
        running = ("PENDING", "RUNNING", "COMPLETING")
        wait_for(lambda: slurm.job(job)["JobState"] not in running, LIMIT, "the end of training")
    end = slurm.job(job)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), f"{end}; see {place.folder}/train.log"
    assert f"ranks on {os.cpu_count()} cores" in (place.folder / "train.log").read_text()


def train_again(place: Place, slurm: Slurm) -> None:
    """A second submission of what is finished: it ends well, and changes nothing."""
    before = storage.stat(f"{place.root}/transformer/transformer.safetensors")
    submit_to_slurm(place, slurm, "train", 1)
    assert storage.stat(f"{place.root}/transformer/transformer.safetensors") == before
    say("the second submission of the training changed nothing")


def sample_by_an_array(place: Place, slurm: Slurm) -> None:
    """The samples' codes by two jobs of an array, each on a node and with a Ray of its own."""
    submit_to_slurm(place, slurm, "sample", 2)
    done, planned = (count(place.root, "samples/default/codes") for count in (committed, planned_units))
    assert done == planned > 1, f"{done} of {planned} units"
    say(f"two parts of an array made {done} units of samples")


def submit_to_slurm(place: Place, slurm: Slurm, stage: str, nodes: int) -> None:
    """`dnd submit --on slurm`, and the end of its job or of all jobs of its array."""
    words = [str(BIN / "dnd"), "submit", "--root", place.root, "--on", "slurm", "--stage", stage]
    words += ["--nodes", str(nodes), "--gpus", "0"]
    environment = slurm.environment | {"DND_CACHE": os.environ["DND_CACHE"]}
    with timed(f"dnd submit --on slurm --stage {stage} --nodes {nodes}"):
        done = subprocess.run(words, cwd=place.folder, env=environment, capture_output=True, text=True, check=False)
        finish(place, f"submit-{stage}", done)
        number = done.stdout.split()[-1]
        wait_for(lambda: not slurm.run("squeue", "--noheader", f"--jobs={number}"), LIMIT, f"the end of {stage}")
    states = slurm.run("scontrol", "--oneliner", "show", "job", number).splitlines()
    assert all("JobState=COMPLETED" in state for state in states), f"{states}; see {place.folder}"


def preempt(place: Place, slurm: Slurm, job: str) -> None:
    """`scontrol requeue`, once there is a checkpoint."""
    latest = f"{place.root}/transformer/latest"
    wait_for(lambda: storage.exists(latest) or slurm.job(job)["JobState"] == "FAILED", LIMIT, "the first checkpoint")
    assert storage.exists(latest), f"training failed: see {place.folder}/train.log"
    slurm.run("scontrol", "requeue", job)
    slurm.hurry(job)
    assert not storage.exists(f"{place.root}/transformer/done"), "preempted too late: training had finished"
    say(f"scontrol requeue: it saved {storage.read_text(latest).strip()} and is in the queue again")


def command(place: Place, *arguments: str) -> None:
    """A `dnd` command on this machine, with the S3 root."""
    name = "dnd " + " ".join(arguments[: 1 + (arguments[0] == "evaluate")])
    with timed(name):
        where = [place.root] if arguments == ("verify",) else ["--root", place.root]
        words = [str(BIN / "dnd"), *arguments, *where]
        done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT, check=False)
    finish(place, name.replace(" ", "-"), done)


def finish(place: Place, name: str, done: subprocess.CompletedProcess[str]) -> None:
    """Keeps what a command said; ends the rehearsal where it failed."""
    path = place.folder / f"{name}.log"
    path.write_text(done.stdout + done.stderr)
    if done.returncode:
        sys.exit(f"rehearsal: {name} ended with {done.returncode}; see {path}:\n{(done.stdout + done.stderr)[-3000:]}")


# ---- the comparison ------------------------------------------------------------------------------------------------
def compare(first: str, second: str) -> bool:
    """Whether what the design promises to be equal is equal in two roots; says it of each."""
    same = {name: read(first, name) == read(second, name) for name in SAME_BYTES}
    same["transformer/metrics.jsonl, losses"] = losses(first) == losses(second)
    same["evaluation/summary.json, figures"] = figures(first) == figures(second)
    for name, equal in same.items():
        say(f"{'equal' if equal else 'DIFFERENT'}: {name}")
    return all(same.values())


def read(root: str, name: str) -> bytes:
    """A file under a root, without the root's own address where it names it."""
    return storage.read_bytes(f"{root}/{name}").replace(root.encode(), b"ROOT")


def losses(root: str) -> list[list[Any]]:
    """Rows of the training's metrics, without what the clock put in."""
    return [[row.get(name) for name in LOSSES] for row in read_rows(f"{root}/transformer/metrics.jsonl")]


def figures(root: str) -> dict[str, Any]:
    """The evaluation's summary, without the command that made it and the time of the row it took from the training."""
    summary: dict[str, Any] = json.loads(read(root, "evaluation/summary.json"))
    del summary["command"], summary["transformer"]["time"]
    return summary


# ---- the log -------------------------------------------------------------------------------------------------------
STARTED, LOG = time.monotonic(), logging.getLogger("rehearsal")


def _handlers(path: Path) -> list[logging.Handler]:
    return [logging.StreamHandler(sys.stdout), logging.FileHandler(path, "w", encoding="utf-8")]


def say(line: str) -> None:
    """A line of the log: seconds since the start, what happened."""
    LOG.info("%6.1f s  %s", time.monotonic() - STARTED, line)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Says how long the block took."""
    started = time.monotonic()
    yield
    say(f"{what}: done in {time.monotonic() - started:.1f} s")


@contextmanager
def step(what: str, started: Any) -> Iterator[Any]:
    """Starts something that runs while the block does, and says so."""
    with ExitStack() as stack:
        with timed(what):
            made = stack.enter_context(started)
        yield made


if __name__ == "__main__":
    main()
