"""Installs a lock into this Python's environment, by uv where it can be had: `python tools/install.py LOCK`

Packages come by their hashes, and as the lock has them: what they demand of each other was settled when it was made.
torch and torchvision, whose builds differ by machine, come by their versions, with CUDA's libraries, both from one
index: PyTorch's for CPUs where a Linux machine has no GPU, else (or where that cannot be reached) the ones that pip is
set up for. Needs nothing but Python's own library.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
BUILDS = ("torch==", "torchvision==")  # lines of a lock without hashes
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
UV = [  # takes the best build of all indexes, as pip does: 2.13.0+cpu before 2.13.0
    *(sys.executable, "-m", "uv", "pip", "install", "-q"),
    *("--python", sys.executable, "--index-strategy", "unsafe-best-match"),
]


def main(lock: Path) -> int:
    """Install; return the installer's exit code."""
    setup = pip_settings()
    extra = setup.get("extra-index-url", [])
    if wants_cpu_build() and not any("download.pytorch.org" in index for index in extra) and reachable(CPU_INDEX):
        extra = [*extra, CPU_INDEX]
    builds, hashed = split(lock)
    if has_uv():
        install = UV
        environment = uv_environment(setup, extra)
    else:
        options = [word for index in extra for word in ("--extra-index-url", index)]
        install = [*PIP, "install", "-q", *options]
        environment = {}
    failed = run([*install, *builds], environment) if builds else 0
    return failed or run([*install, "--no-deps", "--require-hashes", "-r", "/dev/stdin"], environment, hashed)


def pip_settings() -> dict[str, list[str]]:
    """Return pip's settings on this machine, from files and environment: {option: values}."""
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=True).stdout
    pairs = (line.partition("=") for line in listed.splitlines())
    return {name.rpartition(".")[2]: value.strip("'\"").split() for name, _, value in pairs}


def wants_cpu_build() -> bool:
    """Whether PyPI's torch, which brings CUDA's libraries, would serve nothing here."""
    return platform.system() == "Linux" and not (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists())


def reachable(index: str) -> bool:
    """Whether an index answers within seconds."""
    try:
        urllib.request.urlopen(f"{index}/torch/", timeout=10).close()  # noqa: S310
    except OSError:
        return False
    return True


def has_uv() -> bool:
    """Whether uv is here, or pip can fetch it."""
    fetched = subprocess.run([*PIP, "install", "-q", "uv>=0.9"], capture_output=True, check=False)
    return fetched.returncode == 0


def uv_environment(setup: dict[str, list[str]], extra: list[str]) -> dict[str, str]:
    """pip's settings in uv's words; indexes on disk are pip's alone."""
    found = {
        "UV_FIND_LINKS": ",".join(setup.get("find-links", [])),
        "UV_DEFAULT_INDEX": " ".join(setup.get("index-url", [])),
        "UV_EXTRA_INDEX_URL": " ".join(index for index in extra if not index.startswith("file:")),
        "SSL_CERT_FILE": " ".join(setup.get("cert", [])),
    }
    return {name: value for name, value in found.items() if value and name not in os.environ}


def split(lock: Path) -> tuple[list[str], str]:
    """Split a lock file into the requirements without hashes and the text of all others."""
    lines = lock.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line.strip() for line in lines if line.startswith(BUILDS)], "".join(
        line for line in lines if not line.startswith(BUILDS)
    )


def run(command: list[str], environment: dict[str, str], given: str | None = None) -> int:
    """Run a command and return its exit code."""
    return subprocess.run(command, env=os.environ | environment, input=given, text=True, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
