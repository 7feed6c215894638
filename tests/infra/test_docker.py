"""The Dockerfile passes hadolint, builds by the Makefile's own steps, and needs nothing but its two registries.

The CPU image was built for real by Debian's buildah, from a base of debootstrap's; CI has no container engine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILE = REPOSITORY / "infra/docker/Dockerfile"


def instructions() -> list[str]:
    """Lines of the Dockerfile without comments, continued ones joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.M)
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    (tmp_path / "Dockerfile").write_text("FROM debian:latest\nADD https://example.org/x.tar /x\nUSER root\n")
    done = subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and {"DL3007", "DL3002"} <= set(re.findall(r"DL\d+", done.stdout))


def test_layers_stand_in_the_order_of_change_and_the_user_is_not_root() -> None:
    lines = instructions()
    order = ["RUN apt-get", "USER 1000", "COPY --chown=1000 Makefile requirements.lock", "RUN make .venv/packages"]
    order += ["COPY --chown=1000 . .", "RUN make .venv/installed", "HEALTHCHECK"]
    at = [next(i for i, line in enumerate(lines) if line.startswith(start)) for start in order]
    assert at == sorted(at)
    assert re.search(r"^ARG PYTHON_IMAGE=python:\d+\.\d+\.\d+\S*$", "\n".join(lines), re.M)
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"]
    assert lines[at[-1]].endswith('CMD ["dnd", "doctor"]')


def test_nccl_finds_its_fabric_and_no_cuda_toolkit_is_carried() -> None:
    text = "\n".join(instructions())
    assert all(name in text for name in ("libibverbs1", "ibverbs-providers", "librdmacm1", "efa_installer.sh"))
    assert "nvidia/cuda" not in text and "CUDA_HOME" not in text
    torch = re.search(r"^torch==(\S+)$", (REPOSITORY / "requirements.lock").read_text(), re.M)
    assert torch and f"torch=={torch[1]}" in DOCKERFILE.read_text()


def test_deepspeed_and_our_engine_need_no_cuda_toolkit() -> None:
    bare = {name: value for name, value in os.environ.items() if name not in ("CUDA_HOME", "CUDA_PATH")}
    check = "import torch; torch.version.cuda = '13.0'; import deepspeed, train.engine; print('imported')"
    words = [sys.executable, "-c", check]
    done = subprocess.run(words, cwd=REPOSITORY, env=bare | {"DS_ACCELERATOR": "cuda"}, capture_output=True, text=True)
    assert "imported" in done.stdout, done.stderr


def test_the_first_make_step_needs_no_more_than_its_layer_holds(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    for name in ("Makefile", "requirements.lock", "tools/install.py"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    packages = subprocess.run(
        ["make", "-n", ".venv/packages"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "python tools/install.py requirements.lock" in packages.stdout
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/python").touch()
    (tmp_path / ".venv/packages").touch()
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    rest = subprocess.run(["make", "-n", ".venv/installed"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "requirements.lock" not in rest.stdout  # the packages' layer is kept when the code changes


@pytest.mark.parametrize(("kind", "torch"), [("cpu", ""), ("cuda", "--build-arg TORCH=cu130")])
def test_make_builds_both_images_from_one_file(kind: str, torch: str) -> None:
    make = ["make", "-n", f"image-{kind}", "EFA=1.43.2", "ENGINE=podman"]
    shown = subprocess.run(make, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert (
        f"podman build --format docker -f infra/docker/Dockerfile -t dnd-transformer:{kind}" in shown and torch in shown
    )
    assert ("TORCH" in shown) == (kind == "cuda") and "--build-arg EFA=1.43.2" in shown


def test_what_is_secret_or_large_stays_out_of_the_image() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)
