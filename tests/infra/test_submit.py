"""`dnd submit`: what it prints, what it runs here and under Slurm, and that a root alone is enough to run again."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import dnd
from slurm_cluster import Slurm, missing_binaries, slurm_cluster, wait_for

import infra.cli
from data_specs import code_version, storage
from infra.submit.engines import request
from infra.submit.job import Job

TINY = Path(__file__).parent.parent / "tiny.yaml"


@pytest.fixture
def few(tmp_path: Path) -> tuple[str, str]:
    """Options that render forty passages."""
    lines = (json.dumps({"id": f"p{i}", "text": f"a b {i}"}) for i in range(40))
    (tmp_path / "passages.jsonl").write_text("\n".join(lines))
    return "--set", f"render.sources=[{{kind: text, uri: '{tmp_path}/passages.jsonl'}}]"


@pytest.fixture
def submit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """submit(arguments …) -> exit code, what it printed, what it complained of; the command in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dnd", "submit", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            infra.cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


Submit = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--on", "local", "--stage", "render"), "python -m infra.cli render s3://bucket/run/submitted/render.yaml"),
        (("--on", "ray", "--stage", "tokenize", "--workers", "8"), "DND_WORKER_GPUS: '1'"),
        (("--on", "ray", "--stage", "train", "--gpus", "4"), "entrypoint_num_gpus: 4"),
        (
            ("--on", "slurm", "--stage", "train", "--gpus", "8"),
            "sbatch --nodes=1 --job-name=dnd-train --gpus-per-node=8",
        ),
        (("--on", "slurm", "--stage", "train-tokenizer"), "train.sbatch train-tokenizer --root s3://bucket/run --spec"),
        (("--on", "slurm", "--stage", "render"), "--exclusive --mem=0 --nodes=1 --ntasks=1"),
        (("--on", "slurm", "--stage", "tokenize", "--nodes", "3"), "--part $SLURM_ARRAY_TASK_ID/3"),
        (("--on", "kubernetes", "--stage", "train", "--nodes", "4", "--image", "r/dnd:7"), "image: r/dnd:7"),
        (("--on", "ray", "--stage", "render", "--workers", "8", "--", "--extend"), "--workers 8 --extend"),
    ],
)
def test_a_dry_run_prints_the_job(submit: Submit, options: tuple[str, ...], said: str) -> None:
    code, out, complaint = submit(TINY, "--root", "s3://bucket/run", "--dry-run", *options)  # no bucket: none is asked
    assert code == 0 and said in out, out + complaint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--on", "ray", "--stage", "render"), "give --workers"),
        (("--on", "kubernetes", "--stage", "train"), "give an s3:// address"),
        (("--on", "ray", "--stage", "render", "--nodes", "2"), "`render` spreads over --workers"),
        (("--on", "slurm", "--stage", "reconstruct", "--nodes", "2"), "is not made in units"),
        (("--on", "ray", "--stage", "train", "--nodes", "2"), "training spreads over nodes by slurm or kubernetes"),
        (("--on", "slurm", "--stage", "train", "--nodes", "3"), "train.batch_size 8 does not divide among 3 nodes"),
        (("--on", "slurm", "--stage", "train-tokenizer", "--gpus", "7"), "tokenizer.batch_size 8 does not divide"),
        (("--on", "slurm", "--stage", "train", "--workers", "7"), "a rank for each GPU: give --nodes and --gpus"),
        (("--on", "local", "--stage", "render", "--set", "seed=x"), "seed"),
    ],
)
def test_what_cannot_run_is_refused_and_leaves_nothing(
    submit: Submit, options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    code, _, complaint = submit(TINY, "--root", tmp_path / "root", *options)
    assert code == 1 and said in complaint
    assert not (tmp_path / "root").exists()


def test_jobs_carry_where_the_data_is_and_never_who_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASECRET")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://storage.example")
    for on in ("ray", "slurm", "kubernetes", "local"):
        text = request(Job("train", "s3://bucket/run", image="i"), on).text
        assert "AKIASECRET" not in text and "verysecret" not in text, on
    for on in ("ray", "kubernetes"):
        assert "https://storage.example" in request(Job("train", "s3://bucket/run", image="i"), on).text


@pytest.mark.system
def test_a_root_alone_is_enough_to_run_again(tmp_path: Path, few: tuple[str, str]) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    done = dnd("submit", TINY, "--root", first, "--on", "local", "--stage", "render", "--workers", 0, *few)
    assert done.returncode == 0, done.stderr[-2000:]
    began, noted = json.loads((first / "code.json").read_text())["entries"]
    assert (began["began"], noted["submitted"], noted["on"]) == (
        "images",
        "render",
        "local",
    )  # it runs, then it is sent
    for entry in (began, noted):
        assert entry["packages"]["ray"] and entry["python"] and entry["commit"] == began["commit"]
        assert entry["dirty"] == bool(entry["patch"]) and (not entry["patch"] or (first / entry["patch"]).is_file())
    shutil.copytree(first, again, ignore=shutil.ignore_patterns("images", "inputs"))
    words = shlex.split(noted["job"])[3:]
    repeated = dnd(*(word.replace(str(first), str(again)) for word in words))
    assert repeated.returncode == 0, repeated.stderr[-2000:]
    manifests = [(root / "images/train/manifest.json").read_bytes() for root in (first, again)]
    assert manifests[0] == manifests[1] and json.loads(manifests[0])["totals"]["written"] > 10


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_patch_brings_back_what_was_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, fresh = tmp_path / "work", tmp_path / "fresh"
    work.mkdir()
    git(work, "init", "-q")
    (work / "model.py").write_text("layers = 1\n")
    (work / ".gitignore").write_text("runs\n")
    git(work, "add", "-A")
    git(work, "commit", "-qm", "first")
    assert code_version.checkout(work) == (git(work, "rev-parse", "HEAD")[:-1], b"")
    (work / "model.py").write_text("layers = 2\n")
    (work / "table.bin").write_bytes(bytes(range(256)))
    git(work, "add", "table.bin")
    (work / "notes.txt").write_text("what git does not track stays here")
    (work / "runs").write_text("not code")
    before = git(work, "status", "--porcelain")
    code = code_version.checkout(work)
    code_version.record_code(str(tmp_path / "root"), code, began="images")
    (entry,) = json.loads((tmp_path / "root/code.json").read_text())["entries"]
    assert entry["dirty"] and git(work, "status", "--porcelain") == before
    git(tmp_path, "clone", "-q", str(work), str(fresh))
    git(fresh, "apply", str(tmp_path / "root" / entry["patch"]))
    assert (fresh / "model.py").read_text() == "layers = 2\n" and (fresh / "table.bin").read_bytes() == bytes(
        range(256)
    )
    assert not (fresh / "runs").exists() and not (fresh / "notes.txt").exists()


def test_what_looks_like_a_key_is_left_out_of_the_patch(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    git(work, "init", "-q")
    (work / "run.py").write_text("steps = 1\n")
    git(work, "add", "-A")
    git(work, "commit", "-qm", "first")
    keys = ["AKIAIOSFODNN7EXAMPLE", "hunter2hunter2", "hf_abcdefghijklmnopqrst", "MIIEvQIBADANBg"]
    (work / "run.py").write_text(
        f"key = '{keys[0]}'\npassword = \"{keys[1]}\"\nos.environ['HF'] = '{keys[2]}'\n"
        f"-----BEGIN PRIVATE KEY-----\n{keys[3]}\n-----END PRIVATE KEY-----\ntoken_count = 12345678\n"
    )
    patch = code_version.checkout(work).patch.decode()
    assert not [key for key in keys if key in patch]
    assert "left out: it looks like a key" in patch and "token_count = 12345678" in patch


def test_code_json_only_grows_and_says_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = code_version.Code("1" * 40, b""), code_version.Code("2" * 40, b"+ line")
    for code in (one, one, two, one):
        code_version.record_code(str(tmp_path), code, began="images")
    monkeypatch.setenv("DND_IMAGE", "registry/dnd@sha256:12")
    code_version.record_code(str(tmp_path), one, began="transformer")
    code_version.record_code(str(tmp_path), one, submitted="train", on="slurm", job="sbatch")
    entries = json.loads((tmp_path / "code.json").read_text())["entries"]
    assert [entry["commit"][0] for entry in entries] == ["1", "2", "1", "1", "1"]
    assert [entry["image"] for entry in entries] == ["", "", ""] + 2 * ["registry/dnd@sha256:12"]
    assert (tmp_path / entries[1]["patch"]).read_bytes() == b"+ line"


def test_a_job_without_history_says_what_its_submission_told_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_version, "REPOSITORY", tmp_path)
    monkeypatch.setenv("DND_COMMIT", "3" * 40)
    monkeypatch.setenv("DND_PATCH", "code-01234567.patch")
    code_version.this_code.cache_clear()
    try:
        code_version.record_code(str(tmp_path), began="codes")
    finally:
        code_version.this_code.cache_clear()
    (entry,) = json.loads((tmp_path / "code.json").read_text())["entries"]
    assert (entry["commit"], entry["patch"], entry["dirty"]) == ("3" * 40, "code-01234567.patch", True)


def test_a_submission_that_is_refused_leaves_the_root_as_it_was(submit: Submit, tmp_path: Path) -> None:
    where = ("--root", tmp_path, "--on", "ray", "--stage", "train", "--ray-address", "http://127.0.0.1:9")
    (tmp_path / "submitted").mkdir()
    (tmp_path / "submitted/train.yaml").write_text("before")
    code, _, complaint = submit(TINY, *where)
    assert code == 1 and "127.0.0.1:9" in complaint and complaint.count("\n") == 1, complaint
    assert [path.name for path in tmp_path.rglob("*")] == ["submitted", "train.yaml"]
    assert (tmp_path / "submitted/train.yaml").read_text() == "before"


def test_a_stage_that_is_refused_here_leaves_the_root_as_it_was(submit: Submit, tmp_path: Path) -> None:
    none = f"render.sources=[{{kind: text, uri: '{tmp_path}/none'}}]"
    code, _, _ = submit(TINY, "--root", tmp_path / "root", "--on", "local", "--stage", "render", "--set", none)
    assert code == 1 and [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """One node; skips where Slurm is not installed."""
    if missing := missing_binaries():
        pytest.skip(f"{', '.join(missing)} not installed: apt-get install --no-install-recommends slurm-wlm munge")
    with slurm_cluster(1) as cluster:
        yield cluster


@pytest.mark.system
@pytest.mark.parametrize("workers", [("--workers", 0), pytest.param((), id="on Ray", marks=pytest.mark.long)])
def test_slurm_runs_what_was_submitted_as_an_array_of_parts(
    workers: tuple[object, ...],
    slurm: Slurm,
    submit: Submit,
    tmp_path: Path,
    few: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm.environment[name])
    monkeypatch.chdir(tmp_path)  # the log lies where it was submitted
    root = tmp_path / "root"
    small = ("--set", "render.documents_per_unit=8")
    array = ("--on", "slurm", "--stage", "render", "--nodes", 2, *workers)
    code, out, complaint = submit(TINY, "--root", root, *array, *few, *small)
    assert code == 0 and "Submitted batch job" in out, complaint
    number = out.split()[-1]
    wait_for(lambda: not slurm.run("squeue", "--noheader", f"--jobs={number}"), 800, "the end of both parts")
    logs = [(tmp_path / f"dnd-render-{number}_{part}.log").read_text() for part in (1, 2)]
    states = slurm.run("scontrol", "--oneliner", "show", "job", number).splitlines()
    assert len(states) == 2 and all("JobState=COMPLETED" in state for state in states), logs
    assert sum("is done; images/train" in log for log in logs) == 1  # and whoever ended last says what there is:
    assert sum("\nimages/train: " in f"\n{log}" for log in logs) == 1
    assert json.loads((root / "images/train/manifest.json").read_text())["totals"]["written"] > 10
    monkeypatch.setenv("SBATCH_PARTITION", "none")  # sbatch's own variables reach it
    code, _, complaint = submit(TINY, "--root", root, "--on", "slurm", "--stage", "train", "--gpus", 0, *few)
    assert code == 1 and complaint.startswith("dnd: sbatch: ") and complaint.count("\n") == 1, complaint


def test_kubectl_out_of_reach_is_told_in_one_line(
    submit: Submit, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: see kubernetes.io/docs/tasks/tools")
    monkeypatch.setenv("KUBECONFIG", os.devnull)
    code, _, complaint = submit(
        TINY, "--root", f"{s3_root}/run", "--on", "kubernetes", "--stage", "train", "--image", "i"
    )
    assert code == 1 and complaint.startswith("dnd: kubectl: ") and complaint.count("\n") == 1, complaint


def test_the_spec_of_another_root_serves(submit: Submit, s3_root: str) -> None:
    storage.write_text(f"{s3_root}/old/spec.yaml", "base: demo\nname: old\n")
    options = ("--root", f"{s3_root}/new", "--on", "local", "--stage", "render", "--dry-run")
    code, out, complaint = submit(f"{s3_root}/old/spec.yaml", *options)
    assert code == 0 and f"{s3_root}/new/submitted/render.yaml" in out, complaint


def test_a_ray_request_sends_the_checkout_without_tests_and_history() -> None:
    sent: dict[str, Any] = yaml.safe_load(request(Job("render", "s3://bucket/run", 4), "ray").text)
    assert sent["runtime_env"]["working_dir"] == str(TINY.parents[1]) and ".git" in sent["runtime_env"]["excludes"]
    assert sent["runtime_env"]["env_vars"]["DND_COMMIT"] and sent["metadata"] == {
        "stage": "render",
        "root": "s3://bucket/run",
    }
