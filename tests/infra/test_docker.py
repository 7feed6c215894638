"""The Dockerfiles pass hadolint, differ in nothing but CUDA, and build by the Makefile's own steps.

No Docker engine is needed, or was at hand where this was written: that the images build was not shown.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((REPOSITORY / "infra/docker").glob("Dockerfile.*"))


def instructions(path: Path) -> list[str]:
    """Lines of a Dockerfile without comments, continued ones joined."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.M)
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    (tmp_path / "Dockerfile").write_text("FROM debian:latest\nADD https://example.org/x.tar /x\nUSER root\n")
    done = subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and {"DL3007", "DL3002"} <= set(re.findall(r"DL\d+", done.stdout))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_layers_stand_in_the_order_of_change_and_the_user_is_not_root(path: Path) -> None:
    lines = instructions(path)
    order = ["RUN apt-get", "USER 1000", "COPY --chown=1000 Makefile requirements.lock", "RUN make .venv/packages"]
    order += ["COPY --chown=1000 . .", "RUN make .venv/installed", "HEALTHCHECK"]
    at = [next(i for i, line in enumerate(lines) if line.startswith(start)) for start in order]
    assert at == sorted(at)
    assert all(re.search(r":\d+\.\d+\.\d+\S*", line) for line in lines if line.startswith("FROM"))
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"]
    assert lines[at[-1]].endswith('CMD ["dnd", "doctor"]')


def test_the_images_differ_in_cuda_only() -> None:
    cpu, cuda = ([line for line in instructions(path) if line.startswith(("RUN", "USER"))] for path in DOCKERFILES)
    assert cpu == cuda
    torch = re.search(r"^torch==(\S+)$", (REPOSITORY / "requirements.lock").read_text(), re.M)
    assert torch and all(f"torch=={torch[1]}" in path.read_text() for path in DOCKERFILES)


def test_the_first_make_step_needs_no_more_than_its_layer_holds(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(REPOSITORY / name, tmp_path)
    packages = subprocess.run(
        ["make", "-n", ".venv/packages"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "pip install" in packages.stdout and "-r requirements.lock" in packages.stdout
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/packages").touch()
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    rest = subprocess.run(["make", "-n", ".venv/installed"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "requirements.lock" not in rest.stdout  # the packages' layer is kept when the code changes


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_make_builds_each_image_from_its_file(kind: str) -> None:
    shown = subprocess.run(["make", "-n", f"image-{kind}"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert f"-f infra/docker/Dockerfile.{kind} -t dnd-transformer:{kind}" in shown.stdout


def test_what_is_secret_or_large_stays_out_of_the_image() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)
